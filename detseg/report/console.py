"""What a run says while it runs: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from detseg.structures import MetricTable

_SECONDS_BETWEEN_LINES = 15.0


def plain_console(*, quiet: bool = False, file: TextIO | None = None) -> Console:
    """A console that takes text for text: names of classes and paths may look like rich's markup or its emoji."""
    return Console(quiet=quiet, file=file, markup=False, emoji=False, highlight=False)


class Reporter:
    """Shows how far a run is. Use as a context; `say` prints above the bar.

    total: None where nobody knows it. unit: what is counted in the speed, for example "images". first: where a resumed
    run starts.
    """

    def __init__(self, console: Console, total: int | None, *, first: int, title: str, unit: str) -> None:
        self.console, self.total, self.unit, self.title = console, total, unit, title
        self._first, self._started, self._said = first, time.monotonic(), -math.inf
        columns = (TextColumn("{task.description}", markup=False), BarColumn(),
                   TextColumn("{task.completed}" if total is None else "{task.completed}/{task.total}"),
                   TextColumn("{task.fields[speed]}", markup=False),
                   TimeRemainingColumn(), TextColumn("{task.fields[status]}", markup=False))
        self._bar = Progress(*columns, console=console, disable=console.quiet or not console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=first, speed="", status="")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def busy(self, status: str) -> None:
        """Says what else goes on, without a step being done."""
        self._bar.update(self._task, status=status)
        if self._due():
            self.say(f"{self.title} {status}")

    def advance(self, done: int, *, speed: float | None = None, status: str = "") -> None:
        """Says that `done` of the total are done, at `speed` units a second (from the start, unless given)."""
        if speed is None:
            speed = (done - self._first) / max(1e-9, time.monotonic() - self._started)
        self._bar.update(self._task, completed=done, speed=f"{speed:.1f} {self.unit}/s", status=status)
        if self._due(last=done == self.total):
            if self.total is None:
                self.say(f"{self.title} {done}  {speed:.1f} {self.unit}/s  {status}")
                return
            each = (time.monotonic() - self._started) / max(1, done - self._first)
            left = timedelta(seconds=round(each * (self.total - done)))
            self.say(f"{self.title} {done}/{self.total}  {speed:.1f} {self.unit}/s  {left} left  {status}")

    def _due(self, *, last: bool = False) -> bool:
        now = time.monotonic()
        if self.console.is_terminal or (now - self._said < _SECONDS_BETWEEN_LINES and not last):
            return False
        self._said = now
        return True


@contextmanager
def shown_turns(console: Console, *, unit: str = "images") -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that shows whose turn it is, and how many of how many are done, from 0 on; a bar for each."""
    with ExitStack() as stack:
        bars: dict[str, Reporter] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in bars:
                stack.close()
                bars[name] = stack.enter_context(Reporter(console, total, first=0, title=name, unit=unit))
            if done:
                bars[name].advance(done)

        yield progress


def render(table: MetricTable) -> RenderableType:
    """A metric's table for a terminal, and those that follow."""
    drawn = Table(*(Column(Text(title)) for title in table.columns))
    for number, column in enumerate(drawn.columns):
        if any(isinstance(row[number], float) for row in table.rows if number < len(row)):
            column.justify = "right"
    for number, row in enumerate(table.rows):
        # Text, because a class's name may look like markup.
        cells = [Text(shown(cell) if isinstance(cell, float) else str(cell)) for cell in row]
        drawn.add_row(*cells, end_section=number in table.sections)
    return Group(drawn, *map(Text, table.notes), *map(render, table.more))


def shown(value: float) -> str:
    """A number of a metric as tables and lines show it; a dash for one that does not exist."""
    return "-" if math.isnan(value) else f"{value:.3f}"
