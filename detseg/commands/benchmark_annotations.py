"""Measures how an annotation file of COCO's size is read, beside pycocotools.

    detseg benchmark-annotations [--images N] [--annotations N] [--repeat N]

Writes one of 118,287 images and 860,001 annotations with outlines into a temporary folder, and reads it with
pycocotools, with detseg, and with detseg from its cache, each in a process of its own. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from detseg.cli import command_parser, exit_code

_COCO_IMAGES, _COCO_ANNOTATIONS = 118_287, 860_001
"""Of COCO 2017's training set."""


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("--images", type=int, default=_COCO_IMAGES, metavar="N", help="%(default)s")
    parser.add_argument("--annotations", type=int, default=_COCO_ANNOTATIONS, metavar="N", help="%(default)s")
    parser.add_argument("--repeat", type=int, default=1, metavar="N",
                        help="measure so often, and show the fastest of each (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _benchmark(build_parser().parse_args(arguments)))


def _benchmark(options: argparse.Namespace) -> None:
    for name in ("images", "annotations", "repeat"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is at least 1, got {getattr(options, name)}")
    from detseg.benchmark.annotations import markdown, measure, write_annotations

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = write_annotations(folder / "data", images=options.images, annotations=options.annotations)
        print(f"{options.images:,} images, {options.annotations:,} annotations, {file.stat().st_size / 1e6:,.0f} MB\n",
              flush=True)
        runs = [measure(file, cache=folder / f"cache{k}") for k in range(options.repeat)]
        print(markdown([min(same, key=lambda figures: figures.seconds) for same in zip(*runs, strict=True)]))
