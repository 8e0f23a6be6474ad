"""The README's table of backbones is what the command prints."""

from __future__ import annotations

import re
from functools import cache

import pytest

from detseg.backbones import builders, chosen, spec_of
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.backbones.mobilenet_v3 import mobilenet_v3_small
from detseg.benchmark.table import END, START, Row, latencies, markdown, ready, row
from detseg.commands.backbone_table import main
from detseg.interfaces import FeatureSpec

from . import discovery
from .conftest import ROOT


@cache
def _rows() -> tuple[Row, ...]:
    return tuple(row(name, build) for name, build in builders().items())


def _without_latency(table: str) -> list[str]:
    return [line.rpartition(" | ")[0] for line in table.splitlines() if line.startswith("| `")]


def test_the_readme_has_what_the_command_prints() -> None:
    """But for the milliseconds, which belong to a machine."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert (text.count(START), text.count(END)) == (1, 1), "detseg backbone-table prints the whole table"
    told = text[text.index(START):text.index(END)]
    assert _without_latency(told) == _without_latency(markdown(_rows(), {each.name: 0.0 for each in _rows()}))
    assert len(_without_latency(told)) == len(builders())
    assert re.search(r"\d\.\d \|\n", told), "milliseconds are there"


def test_every_builder_is_found_and_both_minimalistic_versions() -> None:
    assert builders().keys() == discovery.backbones().keys()
    minimalistic = {name for name in builders() if name.endswith("_minimalistic")}
    assert minimalistic == {"mobilenet_v3_large_minimalistic", "mobilenet_v3_small_minimalistic"}


def test_a_row_by_hand() -> None:
    # figures.md counts 2,542,856 parameters and 56,510,400 multiply-adds with two layers behind c5.
    assert row("small", mobilenet_v3_small) == Row(
        "small", 2_542_856 - (576 * 1024 + 1024 + 1024 * 1000 + 1000), 56_510_400 - (576 * 1024 + 1024 * 1000),
        {"c2": FeatureSpec(16, 4), "c3": FeatureSpec(24, 8), "c4": FeatureSpec(48, 16),
         "c4.expansion": FeatureSpec(288, 16), "c5.bottleneck": FeatureSpec(96, 32), "c5": FeatureSpec(576, 32)})
    assert spec_of(mobilenet_v1, "c4.expansion") is None


def test_the_table_by_hand() -> None:
    rows = [Row("wide", 1_234, 5_678, {"c2": FeatureSpec(16, 4), "c5": FeatureSpec(96, 32)}),
            Row("odd", 1, 2, {"c5": FeatureSpec(8, 32)})]
    assert markdown(rows, {"wide": 1.25, "odd": 12.0}).splitlines() == [
        START,
        "| backbone | parameters | multiply-adds | `c2` (/4) | `c5` (/32) | ms |",
        "| -- | -- | -- | -- | -- | -- |",
        "| `wide` | 1,234 | 5,678 | 16 | 96 | 1.2 |",
        "| `odd` | 1 | 2 | - | 8 | 12.0 |",
        END,
    ]


def test_what_is_timed_is_ready_for_inference() -> None:
    backbone = mobilenet_v3_small(width=0.5)
    prepared = ready(backbone)
    assert backbone.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert not prepared.training
    kinds = {type(module).__name__ for module in prepared.modules()}
    assert "BatchNorm2d" not in kinds
    found = latencies({"a": mobilenet_v1, "b": mobilenet_v3_small}, seconds=0.0)
    assert found["a"] > 0
    assert found["b"] > 0


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mobilenet_v3_small", "mobilenet_v2", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == (START, END)
    assert [line.split("`")[1] for line in lines[3:-1]] == ["mobilenet_v3_small", "mobilenet_v2"]
    assert main(["mobilenet_v3_smal"]) == 2
    assert capsys.readouterr().err == ("error: there is no backbone 'mobilenet_v3_smal'; did you mean "
                                       f"mobilenet_v3_small?\nthese exist: {', '.join(builders())}\n")
    assert main(["mobilenet_v2", "--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: threads must be 1 or more, got 0\n"
    assert list(chosen(())) == list(builders())
