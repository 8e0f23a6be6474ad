"""Predicts images, videos, cameras and streams with a trained network, and draws what it finds.

    detseg predict RUN IMAGE|DIR|GLOB ... [--out DIR] [--threshold T] [--labels DIR] [--csv FILE] [--yolo DIR] ...
    detseg predict RUN VIDEO|CAMERA|STREAM ... [--every N] [--frames N]
    detseg predict CONFIG CHECKPOINT IMAGE|VIDEO ...
    detseg predict ARTEFACT IMAGE|VIDEO ...

Of a run folder, its own config and best weights are taken. A camera is a number or a device (0, /dev/video0), a stream
an address (rtsp://..., http://...); Ctrl-C ends them, and keeps what was predicted. Leaves in --out:

    <name of the image>   the picture with the predictions of at least --threshold on it, or under the colours of its
                          classes, or with its best classes; images of one name from several folders keep their
                          folders
    <name of the video>.mp4   the same of every frame, at the video's frame rate
    predictions.json      every prediction, also the unsure ones, in COCO's results format and original pixels
    images.json           which image_id is which file, or which frame of it, its size, and the classes, in COCO's
                          annotation format, so that `COCO("images.json").loadRes("predictions.json")` of pycocotools
                          reads both

With --labels it also leaves there the label map of each image: a PNG of the image's size and name that holds class ids
as the data set numbers them. For Cityscapes' server:

    detseg predict RUN 'data/cityscapes/leftImg8bit/test/*/*.png' --labels DIR

Boxes of at least --threshold also go to --csv FILE, one a row; to --yolo DIR, a text file of each image with lines of
class, middle and size as shares of the image, to be corrected and trained on; and to --crops DIR, the pixels of each.
Frames are called VIDEO_000012.

Every kind of picture that Pillow reads is predicted, and every video that OpenCV reads. One that cannot be read is
named and left out, and of a video that breaks off the frames before are kept; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli import add_engine, add_model_settings, add_views, command_parser, exit_code
from detseg.config_files import find_config

if TYPE_CHECKING:
    from detseg.api import Model
    from detseg.report.prediction_files import PredictionFiles
    from detseg.structures import Threshold
    from detseg.video import Video

_MOST_NAMED = 10


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("model", type=Path, metavar="RUN|CONFIG CHECKPOINT|ARTEFACT",
                        help="a run folder; an exported file; or the config that was trained and, behind it, best.pt "
                             "or last.pt of its run or published weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR|GLOB|VIDEO|CAMERA|STREAM",
                        help="image files, folders (the images directly in them), patterns such as 'photos/**/*.jpg'; "
                             "video files; a camera's number or device; the address of a stream")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR",
                        help="the folder to write to (%(default)s)")
    parser.add_argument("--threshold", type=float, metavar="T",
                        help="the smallest score, 0 to 1, that is drawn and counted here (of each class the one that "
                             "detseg analyze has found best for these weights, else 0.4); predictions.json has all. "
                             "Label maps have none, and the best classes of an image are always drawn")
    add_engine(parser)
    add_views(parser)
    parser.add_argument("--config-changed", action="store_true",
                        help="take the checkpoint although it was trained with another config")
    add_model_settings(parser)
    parser.add_argument("--labels", type=Path, metavar="DIR", help="the folder to write label maps to")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a table to write the boxes to, one a row")
    parser.add_argument("--yolo", type=Path, metavar="DIR",
                        help="the folder to write label files in YOLO's format to, with classes.txt")
    parser.add_argument("--yolo-scores", action="store_true", help="end each of their lines with the score")
    parser.add_argument("--crops", type=Path, metavar="DIR",
                        help="the folder to write what is inside the boxes to, in a folder for each class")
    parser.add_argument("--every", type=int, default=1, metavar="N",
                        help="of videos, cameras and streams predict every Nth frame; the others show its boxes (1)")
    parser.add_argument("--frames", type=int, metavar="N", help="stop a video, a camera or a stream after N frames")
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
    from detseg.predict import (
        counted_suffixes,
        find_sources,
        image_stems,
        label_paths,
        passed_over,
        picture_paths,
        predict_files,
        video_paths,
    )
    from detseg.report.pictures import draw, write_picture
    from detseg.report.prediction_files import Asked, PredictionFiles
    from detseg.report.results import summary
    from detseg.video import Video, shown
    from detseg.views import parse_tile, parse_tta

    flip, scales = parse_tta(options.tta)
    tile = None if options.tiles is None else parse_tile(options.tiles)
    patterns, checkpoint = list(options.images), None
    if not options.model.is_dir() and not is_artefact(options.model):
        checkpoint = Path(patterns.pop(0))
        if not patterns:
            raise ValueError(f"{options.model} is no run folder, so {checkpoint} is taken for its checkpoint; name the "
                             "images behind it")
    _check_counts(options)
    paths, videos = find_sources(patterns)
    pictures, clips = picture_paths(paths, options.out), video_paths(videos, options.out)
    for folder, suffix, what in ((options.labels, ".png", "label map"), (options.yolo, ".txt", "label file"),
                                 (options.crops, "_0.jpg", "crop")):
        if folder is not None:
            label_paths(paths, folder, suffix=suffix, what=what)
    # A single one that cannot be read leaves nothing behind; of several, the others go on.
    single = Video(videos[0]) if len(videos) == 1 and not paths else None
    model = load_model(options.model, checkpoint, config_changed=options.config_changed, settings=options.settings,
                       classes=options.classes)
    if model.source is not None and options.engine == "torch":  # an exported file stays with its runtime
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.run_with(options.engine, say=partial(print, flush=True))
    model.use_views(flip=flip, scales=scales, tile=tile, overlap=options.overlap)
    task, title = model.task, model.title
    threshold = _threshold(options.threshold, scored=task.scored, usual=model.threshold)
    classes = model.classes
    asked = Asked(out=options.out, threshold=threshold, csv=options.csv, yolo=options.yolo,
                  yolo_scores=options.yolo_scores, labels=options.labels, crops=options.crops)
    asked.check(boxes=task.scored, label_maps=task.label_maps, what=str(options.model))

    if others := passed_over(patterns):
        print(f"passed over, as their names are no pictures': {counted_suffixes(others)}", flush=True)
    print(*model.notes, title, sep="\n", flush=True)
    if options.threshold is None and model.thresholds:
        print(f"shown from the scores that detseg analyze has found best: {_listed(model.thresholds)}", flush=True)
    started, done, problems = time.perf_counter(), 0, list[str]()

    def show(prediction: Any, image: Any) -> Any:
        return draw(prediction, image, classes, threshold=threshold)

    with PredictionFiles(asked, classes, title=title) as files:
        stems = image_stems(paths)
        for image_id, path, image, prediction in predict_files(model.network, task, paths, unreadable=_name):
            write_picture(pictures[image_id], show(prediction, image))
            files.add(prediction, image, str(path), stem=stems[image_id])
            print(f"{path}: {summary(prediction, classes, threshold=threshold)}", flush=True)
        if (images := len(files.images)) < len(paths):
            problems.append(f"{len(paths) - images} of {len(paths)} images could not be read and were left out")
        first_id = len(paths)
        for source, clip in zip(videos, clips, strict=True):
            try:
                video = single or Video(source)
            except (OSError, ValueError) as problem:
                _name(problem)
                problems.append(f"{shown(source)} was left out")
                continue
            number = _predict_video(video, clip, model=model, files=files, show=show, first_id=first_id,
                                    options=options)
            first_id, done = first_id + number, done + number
            problems += [video.broken] if video.broken is not None else []
    speed = (images + done) / (time.perf_counter() - started)

    counted = " and ".join([*([f"{images} images"] if paths else []), *([f"{done} frames"] if videos else [])])
    kinds = " and ".join([*(["pictures"] if paths else []), *(["videos"] if videos else [])])
    places = {"label maps": asked.labels, "boxes": asked.csv, "label files": asked.yolo, "crops": asked.crops}
    print(f"{counted}, {speed:.1f} {'images' if paths else 'frames'}/s with reading and drawing; {kinds}, "
          f"predictions.json and images.json are in {options.out}"
          + "".join(f", {what} in {place}" for what, place in places.items() if place is not None))
    if problems:
        raise OSError("; ".join(problems))


def _predict_video(
    video: Video, clip: Path, *, model: Model, files: PredictionFiles, show: Callable[[Any, Any], Any], first_id: int,
    options: argparse.Namespace,
) -> int:
    """How many frames there were."""
    from detseg.predict import predict_frames
    from detseg.report.console import Reporter, plain_console
    from detseg.video import video_file

    number = 0
    with video, video_file(clip, rate=video.rate) as add_frame:
        total = min((count for count in (video.count, options.frames) if count is not None), default=None)
        frames = predict_frames(model.network, model.task, islice(video, options.frames), every=options.every,
                                first_id=first_id)
        with (contextlib.closing(frames), Reporter(plain_console(), total, first=0, title=video.name, unit="frames"
                                                   ) as report, _until_interrupted(video.live)):
            for frame in frames:
                add_frame(show(frame.prediction, frame.image))
                if frame.predicted:
                    files.add(frame.prediction, frame.image, video.name, frame=frame.number, time=frame.time,
                              stem=Path(f"{clip.stem}_{frame.number:06}"))
                number += 1
                report.advance(number)
    return number


@contextlib.contextmanager
def _until_interrupted(live: bool) -> Iterator[None]:
    """Ctrl-C ends what has no end, and is no failure there."""
    try:
        yield
    except KeyboardInterrupt:
        if not live:
            raise


def _check_counts(options: argparse.Namespace) -> None:
    for name, value in (("--every", options.every), ("--frames", options.frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is a number of frames, at least 1, got {value}")


def _threshold(asked: float | None, *, scored: bool, usual: Threshold) -> Threshold:
    if asked is None:
        return usual
    if not scored:
        raise ValueError("--threshold is for boxes: label maps have no scores, and an image always has its best "
                         "classes; leave it out")
    if not 0 <= asked <= 1:
        raise ValueError(f"--threshold is a score from 0 to 1, got {asked:g}")
    return asked


def _listed(thresholds: Mapping[str, float]) -> str:
    if len(thresholds) > _MOST_NAMED:
        return f"{min(thresholds.values()):.2f} to {max(thresholds.values()):.2f}, as the class"
    return ", ".join(f"{name} {value:.2f}" for name, value in thresholds.items())


def _name(problem: Exception) -> None:
    print(f"left out: {problem}", file=sys.stderr, flush=True)
