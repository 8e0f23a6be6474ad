"""What people see on a terminal of a metric's table."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from detseg.report.console import render, shown
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
