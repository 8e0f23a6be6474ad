"""tools/benchmark.py --artefact: files that are made or given, in one table with eager code."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = [pytest.mark.conversion, pytest.mark.filterwarnings("ignore")]
CONFIG = str(ROOT / "configs" / "ssdlite_v3_small.py")
SEGMENTER = str(ROOT / "configs" / "lraspp_v3_small.py")
SMALL = ["--set", "model.size=96", "model.width=0.35", "--seconds", "0"]


@pytest.mark.parametrize(("config", "candidates", "names"), [
    (SEGMENTER, [], ["PyTorch"]),
    pytest.param(CONFIG, ["--candidates", "10", "20"], ["PyTorch 10", "PyTorch 20"], marks=pytest.mark.slow),
    pytest.param(CONFIG, ["onnx", "--int8", "--scores-above", "0.1"], ["PyTorch", "ONNX", "ONNX int8"],
                 marks=pytest.mark.slow)])
def test_formats_are_made_and_timed(
    config: str, candidates: list[str], names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("detseg.commands.benchmark").main
    assert main([config, "--artefact", "pt2", *candidates, "--json", str(tmp_path / "x.json"), *SMALL]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if re.match(r"│ (eager|(PyTorch|ONNX)( 10| 20| int8)?) ", line)]
    assert len(rows) == 1 + len(names)
    assert "1 thread, medians, in turns" in out
    written = json.loads((tmp_path / "x.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["eager", *names]
    eager, *files = written["rows"]
    assert eager["whole"]["ratio"] == 1
    assert eager["megabytes"] is eager["runtime"] is None
    for row in files:
        assert row["runtime"]["median"] > 0
        assert row["megabytes"] > 0.5
        assert row["peak_megabytes"] > 0.1


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--artefact", "nowhere.onnx"], 2, "there is no file nowhere.onnx"),
    (["--artefact", "onyx"], 2, "onyx is no exported file; those end in"),
    (["--artefact", "onnx", "--scores-above", "10"], 2, "--scores-above is a share between 0 and 1, got 10.0"),
    (["--artefact", "pt2", "--int8"], 2, "--int8 is for files that are made here; name executorch, litert, onnx"),
    (["--artefact", "x.onnx", "--scores-above", "0.1"], 2, "--scores-above is for files that are made here"),
    (["--int8"], 2, "--int8 is for files; name some, or formats, with --artefact"),
])
def test_what_a_user_does_wrong(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert importlib.import_module("detseg.commands.benchmark").main([CONFIG, *arguments, *SMALL]) == code
    assert message in capsys.readouterr().err
