"""Checks a data set: reads both splits and decodes every image.

    detseg check-data DIR

Boxes in COCO's layout or PASCAL VOC's, label maps in Cityscapes', PASCAL VOC's or folders of images and masks: whatever
is there. Counts what is in it and decodes every image and every label map. Exit code 0: it can be trained on; 1:
something is broken; 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="with boxes or label maps")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints every finding as it comes and gives the exit code."""
    parser = build_parser()
    folder: Path = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"no folder {folder}")
    from detseg.data.check import check_folder

    problems = 0
    for finding in check_folder(folder):
        problems += finding.level == "problem"
        print(finding.text if finding.level == "count" else f"  {finding.level}: {finding.text}", flush=True)
    print(f"problems: {problems}")
    return 1 if problems else 0
