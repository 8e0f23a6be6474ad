"""Makes a small JPEG for a page of a large picture, such as the one that a run leaves.

    detseg small-picture runs/ssdlite_v3_large docs/sample.jpg
    detseg small-picture report.png docs/report.jpg --width 800 --kilobytes 60

A run's folder means its predictions.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run's folder, or a picture")
    parser.add_argument("out", type=Path, metavar="OUT.jpg")
    parser.add_argument("--width", type=int, default=960, help="pixels at most (960)")
    parser.add_argument("--kilobytes", type=int, default=60, metavar="N", help="at most (60)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: _write(options))


def _write(options: argparse.Namespace) -> None:
    from detseg.data.images import read_image
    from detseg.report.pictures import write_small_picture

    source = options.source / "predictions.jpg" if options.source.is_dir() else options.source
    image = read_image(source)
    write_small_picture(options.out, image, width=options.width, most_bytes=1024 * options.kilobytes)
    print(f"written: {options.out}, {options.out.stat().st_size / 1024:.0f} KB")
