"""Converts a data set of any layout to COCO's layout, or to a folder of images and masks.

    detseg convert-data PLACE OUT [--to coco|masks] [--images DIR] [--link | --symlink]
    detseg convert-data PLACE OUT --val-share 0.1       # with a split, decided by the images' names

Outlines come along where the layout has them. OUT is a new folder, and appears when everything is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import add_images, command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("path", type=Path, metavar="PLACE",
                        help="a folder with boxes or label maps, or an annotation file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument("--to", choices=("coco", "masks"), help="the layout (coco where there are boxes, else masks)")
    add_images(parser)
    parser.add_argument("--val", type=Path, metavar="PLACE",
                        help="validation data: a folder, an annotation file, or the name of one of the data's splits")
    parser.add_argument("--val-share", type=float, metavar="SHARE",
                        help="keep a share of the images for validation, such as 0.1, by a hash of their names")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--copy", action="store_const", const="copy", dest="way", default="copy",
                      help="copy the images (this is what happens)")
    ways.add_argument("--link", action="store_const", const="link", dest="way",
                      help="give the images a second name instead: hard links, which take no room")
    ways.add_argument("--symlink", action="store_const", const="symlink", dest="way",
                      help="point to the images, which must then stay where they are")
    parser.add_argument("--skip-broken", action="store_true",
                        help="leave out what is broken, and name it in OUT/skipped.txt")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    if not options.path.exists():
        raise FileNotFoundError(f"no folder or file {options.path}")
    # Reading takes torch; a misspelt argument should be answered at once.
    from detseg.data.convert import convert
    from detseg.data.location import Location

    location = Location(options.path, options.images, options.val, options.val_share)
    converted = convert(location, options.out, to=options.to, way=options.way, skip_broken=options.skip_broken)
    print(*converted.lines, sep="\n")
