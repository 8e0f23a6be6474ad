"""The page about one's own data: its table is current, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from detseg.__main__ import verbs
from detseg.data.layouts import LAYOUTS
from detseg.data.layouts.layout import TABLE_MARKS, as_markdown, with_table

from .commands import run
from .conftest import ROOT

PAGE = ROOT / "docs" / "your_data.md"


def test_the_table_of_layouts_is_current() -> None:
    text = PAGE.read_text("utf-8")
    assert with_table(text, as_markdown(LAYOUTS), page="the page") == text, "detseg layout-table " \
                                                                            "docs/your_data.md writes it anew"


def test_what_the_page_shows_is_there_and_small() -> None:
    text = PAGE.read_text("utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) >= 2
    assert all(0 < (PAGE.parent / picture).stat().st_size < 60 * 1024 for picture in pictures)
    typed = set(re.findall(r"(?:^\$ |`)detseg ([a-z-]+)", text, re.MULTILINE))
    assert len(typed) >= 5
    assert typed <= verbs().keys()
    assert set(re.findall(r"--[a-z][a-z-]+", text)) >= {"--val-share", "--fix", "--html", "--config"}


def test_the_command_writes_the_table_between_the_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{TABLE_MARKS[0]}\nold\n{TABLE_MARKS[1]}\nafter\n")
    assert run("layout_table", str(page), capsys=capsys)[:2] == (0, f"written: {page}, {len(LAYOUTS)} layouts\n")
    assert page.read_text() == (
        f"before\n{TABLE_MARKS[0]}\n{as_markdown(LAYOUTS)}{TABLE_MARKS[1]}\nafter\n")
    assert run("layout_table", capsys=capsys)[1] == as_markdown(LAYOUTS)
    page.write_text("nothing")
    code, _, error = run("layout_table", str(page), capsys=capsys)
    assert code == 2
    assert f"{page} lacks the marks of the table" in error
