"""Predicts images with a trained network, and draws what it finds.

    python tools/predict.py CONFIG CHECKPOINT IMAGE|DIR|GLOB ... [--out DIR] [--threshold T]

Leaves in --out:

    <name of the image>   the picture with the predictions of at least --threshold on it; images of one name from
                          several folders keep their folders
    predictions.json      every prediction, also the unsure ones, in COCO's results format and original pixels
    images.json           which image_id is which file, its size, and the classes, in COCO's annotation format, so that
                          `COCO("images.json").loadRes("predictions.json")` of pycocotools reads both

An image that cannot be read is named and left out; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detseg import config as configs
from detseg.files import write_records
from detseg.predict import find_images, picture_paths, predict_files
from detseg.report.command import exit_code, write_whole
from detseg.report.pictures import write_picture
from detseg.trained import load_trained


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="the config that was trained")
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of its run, or published weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR|GLOB",
                        help="image files, folders (the images directly in them), patterns such as 'photos/**/*.jpg'")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR",
                        help="the folder to write to (%(default)s)")
    parser.add_argument("--threshold", type=float, default=0.4, metavar="T",
                        help="the smallest score, 0 to 1, that is drawn and counted here (%(default)s); "
                             "predictions.json has all")
    return exit_code(lambda: _predict(parser.parse_args(arguments)))


def _predict(options: argparse.Namespace) -> None:
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold is a score from 0 to 1, got {options.threshold:g}")
    paths = find_images(options.images)
    pictures = picture_paths(paths, options.out)
    model, config, title = load_trained(configs.load(options.config), options.checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    task, classes = config.experiment.task, model.classes

    images: list[Mapping[str, Any]] = []
    predictions: list[Any] = []
    print(title, flush=True)
    started = time.perf_counter()
    for image_id, path, image, prediction in predict_files(model, task, paths, unreadable=_name):
        write_picture(pictures[image_id], task.draw(image, prediction, classes, threshold=options.threshold))
        images.append({"id": image_id, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
        predictions.append(prediction)
        print(f"{path}: {task.summary(prediction, classes, threshold=options.threshold)}", flush=True)
    speed = len(images) / (time.perf_counter() - started)

    write_records(options.out / "predictions.json",
                  (record for prediction in predictions for record in task.records(prediction, classes)))
    categories = [{"id": source_id, "name": name} for source_id, name in classes.used.items()]
    content = {"info": {"description": title}, "images": images, "categories": categories, "annotations": []}
    write_whole(options.out / "images.json", json.dumps(content, indent=1) + "\n")
    print(f"{len(images)} images, {speed:.1f} images/s with reading and drawing; pictures, predictions.json and "
          f"images.json are in {options.out}")
    if len(images) < len(paths):
        raise OSError(f"{len(paths) - len(images)} of {len(paths)} images could not be read and were left out")


def _name(problem: Exception) -> None:
    print(f"left out: {problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
