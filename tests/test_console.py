"""What people see on a terminal of a metric's table."""

from __future__ import annotations

import io
import math
import sys

import pytest
from rich.console import Console

from detseg.cli import exit_code
from detseg.report.console import Reporter, plain_console, render, shown
from detseg.structures import MetricTable


def printed(table: MetricTable) -> list[str]:
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(render(table))
    return console.export_text().splitlines()


def rows(table: MetricTable) -> list[list[str]]:
    """The cells of the lines that have some."""
    lines = [line.replace("┃", "│").strip("│") for line in printed(table) if line[:1] in ("│", "┃")]
    return [[cell.strip() for cell in line.split("│")] for line in lines]


@pytest.mark.parametrize(("value", "text"), [
    (0.5, "0.500"), (0.12345, "0.123"), (0.9996, "1.000"), (0.0, "0.000"), (1.0, "1.000"), (math.nan, "-")])
def test_a_number_has_three_digits_and_one_that_does_not_exist_is_a_dash(value: float, text: str) -> None:
    assert shown(value) == text
    assert rows(MetricTable(("measure", "value"), (("AP", value),))) == [["measure", "value"], ["AP", text]]


def test_texts_stand_as_they_are_and_numbers_to_the_right() -> None:
    table = MetricTable(("measure", "of", "value"), (("AP", "100", 0.25), ("AP/a class", "1", math.nan)))
    assert rows(table) == [["measure", "of", "value"], ["AP", "100", "0.250"], ["AP/a class", "1", "-"]]
    lines = printed(table)
    assert any("│     - │" in line for line in lines)
    assert any("│ AP  " in line for line in lines)


def test_a_line_ends_a_section_and_notes_stand_below() -> None:
    table = MetricTable(("measure", "value"), (("a", 0.1), ("b", 0.2), ("c", 0.3)), sections=(1,),
                        notes=("first note", "second note"))
    lines = printed(table)
    starts = [line[:1] for line in lines]
    assert starts == ["┏", "┃", "┡", "│", "│", "├", "│", "└", "f", "s"]
    assert [line.rstrip() for line in lines[-2:]] == ["first note", "second note"]


def test_names_in_brackets_are_names_and_no_markup() -> None:
    table = MetricTable(("measure", "value"), (("AP/sign [stop]", 0.5), ("AP/[/b]", 0.25), ("AP/:car:", 0.0)),
                        notes=("not in the label maps: [red]",))
    assert [row[0] for row in rows(table)[1:]] == ["AP/sign [stop]", "AP/[/b]", "AP/:car:"]
    assert printed(table)[-1].rstrip() == "not in the label maps: [red]"


def test_titles_lines_and_bars_are_text_too() -> None:
    """Names of classes and paths: what looks like markup, an emoji or a number stays as it is."""
    file = io.StringIO()
    console = plain_console(file=file)
    table = MetricTable(("valve [/closed]", "bolt [red]"), (("[/x]", 0.5),), notes=("no pixel is [bold] :smile:",))
    with Reporter(console, 3, first=0, title="image [/a]", unit="images") as report:
        report.say("runs/[red]x[/]")
        report.busy("at [/b]")
        report.advance(3, status=":bug: [/c]")
    console.print("best: runs/[/x]/best.pt", render(table), sep="\n")
    said = file.getvalue()
    for text in ("runs/[red]x[/]", "at [/b]", ":bug: [/c]", "best: runs/[/x]/best.pt", "valve [/closed]", "bolt [red]",
                 "[/x]", "no pixel is [bold] :smile:"):
        assert text in said


def test_a_bar_on_a_terminal_shows_brackets() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Reporter(console, 3, first=0, title="[/a]", unit="images") as report:
        report.advance(1, status="[/b] [red]x")
    assert "[/a]" in file.getvalue()
    assert "[/b] [red]x" in file.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_show_a_name_shows_what_it_can(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def work() -> None:
        sys.stdout.write("a 安全帽\n")
        plain_console().print(render(MetricTable(("class", "AP"), (("安全帽", 0.5),))))
        raise ValueError("no 安全帽")

    assert exit_code(work) == 2
    out.flush()
    err.flush()
    said = out.buffer.getvalue().decode(encoding)
    assert said.startswith("a ???\n")
    assert "0.500" in said
    assert err.buffer.getvalue() == b"error: no ???\n"
