"""Predicts images with a trained network, and draws what it finds.

    detseg predict RUN IMAGE|DIR|GLOB ... [--out DIR] [--threshold T] [--labels DIR]
    detseg predict CONFIG CHECKPOINT IMAGE|DIR|GLOB ...
    detseg predict ARTEFACT IMAGE|DIR|GLOB ...

Of a run folder, its own config and best weights are taken. Leaves in --out:

    <name of the image>   the picture with the predictions of at least --threshold on it, or under the colours of its
                          classes, or with its best classes; images of one name from several folders keep their
                          folders
    predictions.json      every prediction, also the unsure ones, in COCO's results format and original pixels
    images.json           which image_id is which file, its size, and the classes, in COCO's annotation format, so that
                          `COCO("images.json").loadRes("predictions.json")` of pycocotools reads both

With --labels it also leaves there the label map of each image: a PNG of the image's size and name that holds class ids
as the data set numbers them. For Cityscapes' server:

    detseg predict RUN 'data/cityscapes/leftImg8bit/test/*/*.png' --labels DIR

Every kind of picture that Pillow reads is predicted. One that cannot be read is named and left out; the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from detseg.atomic import records_file, write_text
from detseg.cli import add_engine, add_model_settings, add_views, command_parser, exit_code
from detseg.config_files import find_config

_THRESHOLD = 0.4


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("model", type=Path, metavar="RUN|CONFIG CHECKPOINT|ARTEFACT",
                        help="a run folder; an exported file; or the config that was trained and, behind it, best.pt "
                             "or last.pt of its run or published weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR|GLOB",
                        help="image files, folders (the images directly in them), patterns such as 'photos/**/*.jpg'")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR",
                        help="the folder to write to (%(default)s)")
    parser.add_argument("--threshold", type=float, metavar="T",
                        help=f"the smallest score, 0 to 1, that is drawn and counted here ({_THRESHOLD}); "
                             "predictions.json has all. Label maps have none, and the "
                             "best classes of an image are always drawn")
    add_engine(parser)
    add_views(parser)
    parser.add_argument("--config-changed", action="store_true",
                        help="take the checkpoint although it was trained with another config")
    add_model_settings(parser)
    parser.add_argument("--labels", type=Path, metavar="DIR", help="the folder to write label maps to")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _predict(build_parser().parse_args(arguments)))


def _predict(options: argparse.Namespace) -> None:
    if options.model.suffix in ("", ".py") and not options.model.is_dir():
        find_config(options.model)
    import torch

    from detseg.api import load_model
    from detseg.export.artefact import is_artefact
    from detseg.predict import counted_suffixes, find_images, label_paths, passed_over, picture_paths, predict_files
    from detseg.report.pictures import draw, write_labels, write_picture
    from detseg.report.results import label_image, records, summary
    from detseg.views import parse_tta

    flip, scales = parse_tta(options.tta)
    patterns, checkpoint = list(options.images), None
    if not options.model.is_dir() and not is_artefact(options.model):
        checkpoint = Path(patterns.pop(0))
        if not patterns:
            raise ValueError(f"{options.model} is no run folder, so {checkpoint} is taken for its checkpoint; name the "
                             "images behind it")
    paths = find_images(patterns)
    pictures = picture_paths(paths, options.out)
    label_maps = [] if options.labels is None else label_paths(paths, options.labels)
    if options.labels is not None and options.labels.resolve() == options.out.resolve():
        raise ValueError(f"--labels and --out are both {options.out}; label maps would replace pictures")
    model = load_model(options.model, checkpoint, config_changed=options.config_changed, settings=options.settings,
                       classes=options.classes)
    if model.source is not None and options.engine == "torch":  # an exported file stays with its runtime
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.run_with(options.engine, say=partial(print, flush=True))
    model.use_views(flip=flip, scales=scales, tile=options.tiles, overlap=options.overlap)
    task, title = model.task, model.title
    threshold = _threshold(options.threshold, scored=task.scored)
    if label_maps and not task.label_maps:
        raise ValueError(f"{options.model} predicts no label maps; leave --labels out")
    classes = model.classes

    if others := passed_over(patterns):
        print(f"passed over, as their names are no pictures': {counted_suffixes(others)}", flush=True)
    images: list[Mapping[str, Any]] = []
    print(*model.notes, title, sep="\n", flush=True)
    started = time.perf_counter()
    with records_file(options.out / "predictions.json") as add_records:
        for image_id, path, image, prediction in predict_files(model.network, task, paths, unreadable=_name):
            if label_maps:
                write_labels(label_maps[image_id], label_image(prediction, classes))
            write_picture(pictures[image_id], draw(prediction, image, classes, threshold=threshold))
            add_records(records(prediction, classes))
            images.append({"id": image_id, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
            print(f"{path}: {summary(prediction, classes, threshold=threshold)}", flush=True)
    speed = len(images) / (time.perf_counter() - started)

    categories = [{"id": source_id, "name": name} for source_id, name in classes.used.items()]
    content = {"info": {"description": title}, "images": images, "categories": categories, "annotations": []}
    write_text(options.out / "images.json", json.dumps(content, indent=1) + "\n")
    print(f"{len(images)} images, {speed:.1f} images/s with reading and drawing; pictures, predictions.json and "
          f"images.json are in {options.out}" + (f", label maps in {options.labels}" if label_maps else ""))
    if len(images) < len(paths):
        raise OSError(f"{len(paths) - len(images)} of {len(paths)} images could not be read and were left out")


def _threshold(asked: float | None, *, scored: bool) -> float:
    if asked is None:
        return _THRESHOLD
    if not scored:
        raise ValueError("--threshold is for boxes: label maps have no scores, and an image always has its best "
                         "classes; leave it out")
    if not 0 <= asked <= 1:
        raise ValueError(f"--threshold is a score from 0 to 1, got {asked:g}")
    return asked


def _name(problem: Exception) -> None:
    print(f"left out: {problem}", file=sys.stderr, flush=True)
