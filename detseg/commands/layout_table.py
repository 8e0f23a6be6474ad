"""Writes the table of the data layouts that are known into a page, between its two marks.

    detseg layout-table docs/your_data.md
    detseg layout-table                        # prints it
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.cli import command_parser, exit_code


def build_parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("page", type=Path, nargs="?", metavar="PAGE", help="a Markdown file with the marks")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Reads the command line, does what it says, and gives the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code(lambda: _write(options))


def _write(options: argparse.Namespace) -> None:
    from detseg.atomic import write_text
    from detseg.data.layouts import LAYOUTS
    from detseg.data.layouts.layout import as_markdown, with_table

    table = as_markdown(LAYOUTS)
    if options.page is None:
        print(table, end="")
        return
    write_text(options.page, with_table(options.page.read_text("utf-8"), table, page=str(options.page)))
    print(f"written: {options.page}, {len(LAYOUTS)} layouts")
