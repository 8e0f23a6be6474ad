"""The benchmark of readers: what it writes is COCO's format, what it shows are the readers' figures."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from detseg.benchmark.annotations import Figures, markdown, write_annotations
from detseg.commands.benchmark_annotations import main
from detseg.data.coco import COCO_80, read_coco
from detseg.data.coco_outlines import read_outlines


def test_the_file_is_cocos(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "data", images=7, annotations=100)
    index = read_coco(path, tmp_path / "data" / "images")
    assert (len(index), len(index.boxes), index.classes, index.faults) == (7, 100, COCO_80, ())
    assert all(index.path(i).is_file() for i in range(7))
    assert len(read_outlines(path).present()) == 100
    assert read_outlines(path).present().all()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(path))
    assert {row["id"]: row["bbox"] for row in theirs.anns.values()} == dict(
        zip(index.annotation_ids.tolist(), index.boxes.tolist(), strict=True))


def test_the_table_shows_ratios_to_the_first() -> None:
    shown = markdown([Figures("a", 8.0, 5.0, 2_000_000_000, 50_000_000),
                      Figures("b", 2.0, 1.0, 500_000_000, 4_000_000)])
    assert shown.splitlines()[2:] == ["| a | 8.00 | 1.00 | 5.00 | 1.00 | 2,000 MB | 1.00 | 50 MB |",
                                      "| b | 2.00 | 0.25 | 1.00 | 0.20 | 500 MB | 0.25 | 4 MB |"]


def test_numbers_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "0"]) == 2
    assert "--images is at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_every_reader_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "10", "--annotations", "60000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10 images, 60,000 annotations, ")
    assert [line.split("|")[1].strip() for line in lines[4:]] == [
        "pycocotools, `COCO(file)`", "detseg, `read_coco`, the first time", "detseg, `read_coco`, from its cache"]
    assert all(float(line.split("|")[2]) > 0 for line in lines[4:])
