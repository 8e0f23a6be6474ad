"""Checks a data set before it is trained on.

    detseg check-data PLACE [--images DIR] [--val PLACE | --val-share SHARE] [--config CONFIG]
    detseg check-data PLACE --html report.html     # a page with a picture of each finding
    detseg check-data PLACE --fix DIR              # a cleaned copy

PLACE is a folder or an annotation file, with boxes or label maps in any layout that is known. Every image and every
label map is decoded. With --config, objects are seen at the size of that config's network and compared with its
anchors. Exit code 0: it can be trained on; 1: something has to be mended first; 2: the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from detseg.cli import add_images, command_parser, exit_code
from detseg.config_files import find_config


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("path", type=Path, metavar="PLACE",
                        help="a folder with boxes or label maps, or an annotation file")
    add_images(parser)
    parser.add_argument("--val", type=Path, metavar="PLACE",
                        help="validation data: a folder, an annotation file, or the name of one of the data's splits")
    parser.add_argument("--val-share", type=float, metavar="SHARE",
                        help="split as training with this share would")
    parser.add_argument("--config", type=Path, metavar="CONFIG",
                        help="see objects at its network's size, and against its anchors (320 x 320, and none)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="of the config, as in model.size=640")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with a picture of each finding")
    parser.add_argument("--fix", type=Path, metavar="DIR",
                        help="write a copy without what is broken, boxes clipped, images upright; DIR/changes.txt "
                             "says what was changed")
    parser.add_argument("--all", action="store_true", dest="everything", help="name every place, not the first few")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    options = build_parser().parse_args(arguments)
    problems: list[int] = []
    code = exit_code(lambda: problems.append(_check(options)))
    return code or int(problems[0] > 0)


def _check(options: argparse.Namespace) -> int:
    """How many problems there are."""
    if not options.path.exists():
        raise FileNotFoundError(f"no folder or file {options.path}")
    if options.overrides and options.config is None:
        raise ValueError("--set changes a config; name one with --config")
    if options.html is not None and options.html.is_dir():
        raise ValueError(f"--html {options.html} is a folder; name a file in it")
    config = None if options.config is None else find_config(options.config)
    # The checks read images, which takes torch; a misspelt argument should be answered at once.
    from detseg.atomic import check_new_folder
    from detseg.data.check import check_place, usual_view
    from detseg.data.location import Location
    from detseg.report.check import print_report, shown_progress
    from detseg.report.console import plain_console

    if options.fix is not None:
        check_new_folder(options.fix)
    view = usual_view
    if config is not None:
        from detseg import config as configs
        from detseg.network_view import network_view

        view = partial(network_view, configs.load(config, options.overrides))
    location = Location(options.path, options.images, options.val, options.val_share)
    with shown_progress(plain_console(file=sys.stderr), "decoding") as progress:
        checked = check_place(location, view=view, progress=progress)
    print_report(plain_console(), checked.report, everything=options.everything)
    if options.html is not None:
        from detseg.report.check_page import write_check_page

        write_check_page(options.html, checked.report)
        print(f"written: {options.html}")
    if options.fix is not None:
        from detseg.data.clean import write_clean

        print(write_clean(options.fix, checked))
    return len(checked.report.problems)
