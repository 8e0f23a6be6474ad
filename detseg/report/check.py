"""What a check of data has found, on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from detseg.data.check import Finding, Report, Table
from detseg.report.console import Reporter

_MOST_ROWS = 60
_MOST_PLACES = {"problem": 50, "note": 3}
_INDENT = "    "


def print_report(console: Console, report: Report, *, everything: bool = False) -> None:
    """Prints the tables, the problems, the notes and the verdict; `everything`: every place, and every row."""
    for line in report.layouts:
        _say(console, line)
    for table in report.tables:
        console.print()
        console.print(_drawn(table, most=None if everything else _MOST_ROWS))
    for title, findings in (("problems", report.problems), ("notes", report.notes)):
        if findings:
            _say(console, f"\n{title}")
        for finding in findings:
            _print_finding(console, finding, everything=everything)
    _say(console, f"\nverdict: {report.verdict}")


def _print_finding(console: Console, finding: Finding, *, everything: bool) -> None:
    _say(console, f"  {finding.kind}: {finding}".replace("\n", f"\n{_INDENT}"))
    places = [spot.where for spot in finding.spots if spot.where not in finding.text]
    most = len(places) if everything else _MOST_PLACES[finding.level]
    for place in places[:most]:
        _say(console, f"{_INDENT}{place}")
    if len(places) > most:
        _say(console, f"{_INDENT}... and {len(places) - most:,} more (--all names them)")


def _drawn(table: Table, *, most: int | None) -> RichTable:
    drawn = RichTable(title=Text(table.title), title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows[:most]:
        drawn.add_row(*(Text(cell) for cell in row))
    if most is not None and (more := len(table.rows) - most) > 0:
        drawn.add_row(Text(f"and {more} more (--all)"))
    return drawn


def _say(console: Console, text: str) -> None:
    # Names of classes and files may look like rich's markup.
    console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def shown_progress(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that shows how many images of how many are through."""
    with contextlib.ExitStack() as stack:
        bars: list[Reporter] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Reporter(console, total, first=0, title=title, unit="images")))
            bars[0].advance(done)

        yield progress
