"""Writes the page of a training run: how good it is and why, how it learned, and what it costs.

    detseg report RUN                              # RUN/report.html
    detseg report RUN --data DIR --out page.html   # measured on other data

One file that needs nothing else: no network, no account. The best checkpoint is measured once more, by class and with
intervals. Training writes the page at its end (--set report=false leaves it out); exported files that have been put
into the folder since are on a new one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import add_images, check_images, command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--data", type=Path, metavar="PLACE",
                        help="the data set's folder, or an annotation file (the run's)")
    add_images(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page to write (RUN/report.html)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _report(build_parser().parse_args(arguments)))


def _report(options: argparse.Namespace) -> None:
    check_images(options)
    if options.out is not None and options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder; name a file in it")
    from detseg.data.location import Location
    from detseg.launch import evaluation_device
    from detseg.report.console import plain_console, shown_turns
    from detseg.run_report import write_report

    device, is_rank_zero = evaluation_device()
    console = plain_console(quiet=not is_rank_zero)
    location = None if options.data is None else Location(options.data, options.images)
    with shown_turns(console) as progress:
        path = write_report(options.run, out=options.out, location=location, device=device, is_rank_zero=is_rank_zero,
                            progress=progress)
    console.print(f"written: {path}", soft_wrap=True)
