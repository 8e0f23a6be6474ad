"""The table of heads x formats x contracts: made of what was run, and whole in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from detseg import config
from detseg.benchmark.format_table import END, START, small_predictor
from detseg.choices import CONTRACTS
from detseg.export.formats import formats

from . import discovery
from .commands import run
from .conftest import ROOT

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]
CONFIG = str(ROOT / "configs" / "fcn_v3_large.py")
SMALL = ["--images", "1", "--set", "model.width=0.35", "model.size=64"]


def test_it_is_written_in_place_of_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "formats.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    code, out, errors = run("format_table", CONFIG, "--format", "pt2", "ncnn", "--write", str(page), *SMALL,
                            capsys=capsys)
    assert code == 0, errors
    assert "FCN (`fcn_v3_large`), pt2, final: 100 %" in out
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    rows = re.findall(r"^\| FCN \(`fcn_v3_large`\) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == len(CONTRACTS)
    assert all(re.fullmatch(r"\de-\d\d", cell) for row in rows[:2] for cell in row)
    assert rows[2] == ("100 %", "no (1)")
    assert "\n1. ncnn: ncnn has no topk" in text


def test_a_page_without_a_place_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "formats.md"
    page.write_text(START)
    code, _, errors = run("format_table", CONFIG, "--write", str(page), capsys=capsys)
    assert code == 2
    assert f"{page} has no place for the table: {START} and {END}" in errors


def test_a_row_does_not_depend_on_the_rows_before_it() -> None:
    made = config.load(Path(CONFIG), ["model.width=0.35", "model.size=64"])
    first = small_predictor(made).state_dict()
    torch.rand(1)
    torch.testing.assert_close(small_predictor(made).state_dict(), first, rtol=0, atol=0)


def test_the_docs_have_every_head_in_every_format() -> None:
    text = (ROOT / "docs" / "formats.md").read_text("utf-8")
    tables = re.findall(r"^`(\w+)`\n\n(\| head \|.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert [contract for contract, _ in tables] == list(CONTRACTS)
    for _, table in tables:
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        assert head[1:] == [kind.title for kind in formats().values()]
        assert len(rows) == len(discovery.head_classes())
        assert all(cell for row in rows for cell in row)
