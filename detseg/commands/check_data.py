"""Checks a data set: recognises its layout, reads all splits and decodes every image.

    detseg check-data PLACE [--images DIR]

A folder or an annotation file, boxes or label maps in any layout that is known: it says which one it has recognised and
why. Counts what is in it and decodes every image and every label map. Exit code 0: it can be trained on; 1: something
is broken; 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("path", type=Path, metavar="PLACE",
                        help="a folder with boxes or label maps, or an annotation file")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="where an annotation file's images lie, if they are not found by themselves")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints every finding as it comes and gives the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if not options.path.exists():
        parser.error(f"no folder or file {options.path}")
    from detseg.data.check import check_place
    from detseg.data.layouts.layout import Place

    problems = 0
    for finding in check_place(Place(options.path, options.images)):
        problems += finding.level == "problem"
        print(finding.text if finding.level == "count" else f"  {finding.level}: {finding.text}", flush=True)
    print(f"problems: {problems}")
    return 1 if problems else 0
