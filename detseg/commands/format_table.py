"""Writes the table of heads x formats x contracts, as they were exported, run and compared.

    detseg format-table CONFIG ... [--format NAME ...] [--write FILE.md] [--set a.b=c ...]

Of each config's head, with synthetic weights, on one convolution for each tap of its backbone, a file is made in every
format and contract, run in its runtime and compared. Each cell is the largest difference, relative to the largest
number of that output; of final predictions, the share that is the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detseg.atomic import write_text
from detseg.cli import command_parser, exit_code
from detseg.config_files import find_config
from detseg.export.formats import format_named, format_names


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="one of each head")
    parser.add_argument("--format", nargs="+", choices=format_names(), default=format_names(),
                        help="which formats (all)")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="to compare on (%(default)s)")
    parser.add_argument("--candidates", type=int, default=50, metavar="N",
                        help="of detectors: boxes that enter suppression (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE",
                        help="put the table into a document, in place of the one that is there")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="overrides",
                        help="change numbers of the configs that have them, as in model.width=0.35")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    return exit_code(lambda: _table(build_parser().parse_args(arguments)))


def _table(options: argparse.Namespace) -> None:
    configs = [find_config(path) for path in options.configs]
    from detseg.benchmark.format_table import END, START, cells, markdown
    from detseg.report.console import plain_console

    chosen = [format_named(name) for name in options.format]
    before, after = "", ""
    if options.write is not None:
        before, start, rest = options.write.read_text("utf-8").partition(START)
        _, end, after = rest.partition(END)
        if not start or not end:
            raise ValueError(f"{options.write} has no place for the table: {START} and {END}")
    console, found = plain_console(file=sys.stdout), []
    with console.status("") as status:
        for cell in cells(configs, chosen, options.overrides, images=options.images,
                          candidates=options.candidates, say=status.update):
            found.append(cell)
            console.print(f"{cell.head}, {cell.format}, {cell.contract}: {cell.text} {cell.reason}",
                          soft_wrap=True)
    table = markdown(found, chosen)
    if options.write is None:
        print(table)
    else:
        write_text(options.write, before + table + after)
