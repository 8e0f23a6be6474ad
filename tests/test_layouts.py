"""One small data set in every layout, written in the form that its tool writes, read and found the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detseg.api import load_model
from detseg.config import load as load_config
from detseg.data.check import check_place
from detseg.data.layouts import LAYOUTS, read_boxes, read_labels
from detseg.data.layouts.layout import Layout, PartName, Place, as_markdown, parts_of_tree, split_of
from detseg.data.layouts.reader import LayoutReader
from detseg.data.location import Location
from detseg.structures import VOID
from detseg.train import fit

from . import tiny_segmenter
from .conftest import ROOT
from .crockery import BACKGROUND, NAMES, TRAIN, VAL, WRITERS, Picture, expected_boxes, found_boxes, xml_apart

BOXES = [layout for layout in LAYOUTS if layout.boxes]
LABEL_MAPS = [layout for layout in LAYOUTS if layout.label_maps]


def title(layout: Layout) -> str:
    return layout.title


def test_every_layout_has_a_writer() -> None:
    assert len(LAYOUTS) >= 18
    assert sorted(WRITERS) == sorted(layout.title for layout in LAYOUTS)


def sides(part_names: Sequence[PartName]) -> dict[PartName, tuple[Picture, ...]]:
    if "whole" in part_names:
        return {"whole": (*TRAIN, *VAL)}
    return {"train": TRAIN, "val": VAL}


@pytest.mark.parametrize("layout", BOXES, ids=title)
def test_the_same_boxes_are_found_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path)
    found = read_boxes.find(Place(tmp_path))
    assert found.layout.title == layout.title
    assert found.why
    expected = sides(tuple(found.parts))
    assert found.parts.keys() == expected.keys()
    for name, pictures in expected.items():
        index = found.parts[name]()
        assert index.classes.names == NAMES
        assert not index.faults
        boxes, wanted = found_boxes(index), expected_boxes(pictures)
        assert boxes.keys() == wanted.keys()
        for picture, things in wanted.items():
            assert [name for name, _ in boxes[picture]] == [name for name, _ in things]
            for (_, box), (_, true) in zip(boxes[picture], things, strict=True):
                assert box == pytest.approx(true, abs=1e-3)


@pytest.mark.parametrize("layout", LABEL_MAPS, ids=title)
def test_the_same_label_maps_are_found_in_every_layout(layout: Layout, tmp_path: Path) -> None:
    called = WRITERS[layout.title](tmp_path) or {}
    found = read_labels.find(Place(tmp_path))
    assert found.layout.title == layout.title
    expected = sides(tuple(found.parts))
    assert found.parts.keys() == expected.keys()
    for name, pictures in expected.items():
        index = found.parts[name]()
        assert not index.faults
        assert len(index) == len(pictures)
        by_size = {picture.size: picture for picture in pictures}
        for i in range(len(index)):
            picture = by_size[index.size(i)]
            wanted = [called.get(name, name) for name in (BACKGROUND, *NAMES)]
            table = np.array([VOID if name is None else index.classes.names.index(name) for name in wanted], np.uint8)
            np.testing.assert_array_equal(index.labels(i, picture.size), table[picture.labels()])
            assert index.image(i).shape == (*picture.size, 3)
    if layout.label_maps == "outlines":
        assert index.classes.names == (BACKGROUND, *NAMES)


@pytest.mark.parametrize("layout", LAYOUTS, ids=title)
def test_every_layout_has_a_page_with_its_tree(layout: Layout) -> None:
    assert layout.boxes or layout.label_maps
    assert layout.page.splitlines()[0].endswith(".")
    tree = layout.tree.splitlines()
    assert len(tree) >= 3
    assert not tree[0].startswith(" ")
    assert any(line.startswith("  ") for line in tree) or layout.title == "YOLO, no data.yaml"


def test_the_table_of_layouts_is_made_of_the_list() -> None:
    text = as_markdown(LAYOUTS)
    rows = text.splitlines()[2 : 2 + len(LAYOUTS)]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [layout.title for layout in LAYOUTS]
    assert "| masks | masks/train/, images/train/ and classes.txt, the same of val |  | yes |" in rows
    assert "**Label Studio, COCO.** Label Studio's COCO export.\n\n```\nresult.json\nimages/\n" in text


@pytest.mark.parametrize("layout", LAYOUTS, ids=title)
def test_the_check_names_the_layout_and_finds_no_problem(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path)
    report = check_place(Location(tmp_path)).report
    assert report.layouts[0].startswith(f"layout of {tmp_path}: {layout.title}, because ")
    assert not report.problems
    notes = [note for note in report.notes if "--val-share" in note.text]
    whole = "whole" in (read_boxes if layout.boxes else read_labels).find(Place(tmp_path)).parts
    assert len(notes) == whole


def test_a_detector_trains_on_data_without_a_split_and_is_evaluated(tmp_path: Path) -> None:
    xml_apart(tmp_path / "data")
    config = load_config(ROOT / "configs" / "ssdlite_v3_small.py", [
        "model.size=64", "model.width=0.35", "batch_size=4", "schedule.epochs=1", "schedule.warmup_steps=0",
        "workers=0"])
    location = Location(tmp_path / "data", val_share=0.34)
    run, numbers, _ = fit(config, location, out=tmp_path / "run")
    assert 0 <= numbers["AP"] <= 1
    assert run.location == location
    kept = run.kept_split
    assert kept is not None
    assert len(kept.train) + len(kept.val) == 6
    model = load_model(run.path, None)
    assert model.classes.names == NAMES
    index, lines = model.read_validation(model.location)
    assert lines[0] == f"layout of {tmp_path / 'data'}: {read_boxes.find(Place(tmp_path / 'data'))}"
    assert [f"images/{index.path(i).name}" for i in range(len(index))] == list(kept.val)
    resumed = fit(config, None, out=tmp_path / "run", resume=True)
    assert resumed.numbers["AP"] == numbers["AP"], "the data and the split are those of the run"
    run.split.write_text("{}")
    with pytest.raises(ValueError, match=r"split\.json is damaged; which images the run has trained on is not known "
                                         "any more, so name other validation data with --val"):
        model.read_validation(model.location)


@pytest.mark.parametrize("layout", [layout for layout in LABEL_MAPS if layout.title in ("labelme", "colour masks")],
                         ids=title)
def test_a_segmenter_trains_and_is_evaluated(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    config = load_config(tiny_segmenter.write_config(tmp_path), ["schedule.epochs=1", "validate_every=1"])
    location = Location(tmp_path / "data", val_share=None if layout.title == "labelme" else 0.34)
    _, numbers, _ = fit(config, location, out=tmp_path / "run")
    assert 0 <= numbers["mIoU"] <= 1
    model = load_model(tmp_path / "run", None)
    assert model.classes.names == (BACKGROUND, *NAMES)
    assert len(model.read_validation(model.location)[0]) == (2 if layout.title == "labelme" else len(
        ((model.run and model.run.kept_split) or pytest.fail("nothing was kept")).val))


def located(folder: Path, find: LayoutReader[Any]) -> Location:
    """With a share of the images for validation where the layout has no split."""
    found = find.find(Place(folder))
    return Location(folder, val_share=None if {"train", "val"} <= found.parts.keys() else 0.34)


@pytest.mark.slow
@pytest.mark.parametrize("layout", BOXES, ids=title)
def test_a_detector_trains_on_every_layout_and_is_evaluated(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    config = load_config(ROOT / "configs" / "ssdlite_v3_small.py", [
        "model.size=64", "model.width=0.35", "batch_size=2", "schedule.epochs=1", "schedule.warmup_steps=0",
        "workers=0"])
    run, numbers, _ = fit(config, located(tmp_path / "data", read_boxes), out=tmp_path / "run")
    assert 0 <= numbers["AP"] <= 1
    assert load_model(run.path, None).classes.names == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("layout", LABEL_MAPS, ids=title)
def test_a_segmenter_trains_on_every_layout_and_is_evaluated(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    config = load_config(tiny_segmenter.write_config(tmp_path), ["schedule.epochs=1", "validate_every=1"])
    _, numbers, _ = fit(config, located(tmp_path / "data", read_labels), out=tmp_path / "run")
    assert 0 <= numbers["mIoU"] <= 1


@pytest.mark.parametrize(("name", "split"), [
    ("train", "train"), ("training", "train"), ("train2017", "train"), ("instances_Train", "train"), ("val", "val"),
    ("valid", "val"), ("Validation", "val"), ("val_set", "val"), ("test", "test"), ("obj_train_data", "train"),
    ("trainval", None), ("train_val", None), ("default", None), ("values", None), ("latest", None),
])
def test_the_split_that_a_name_tells(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_files_belong_to_the_split_of_a_folder_above_or_all_are_one() -> None:
    assert parts_of_tree(["train/a", "x/valid/b"]) == {"train": ["train/a"], "val": ["x/valid/b"]}
    assert parts_of_tree(["train/a", "b"]) == {"whole": ["train/a", "b"]}
    assert parts_of_tree(["train/val/a"]) == {"whole": ["train/val/a"]}
