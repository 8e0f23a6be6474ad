from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.data.check import check_place
from detseg.data.clean import write_clean
from detseg.data.convert import Form, convert, new_names
from detseg.data.label_index import LabelIndex
from detseg.data.layouts import LAYOUTS, SPLITS, read_boxes, read_labels
from detseg.data.layouts.layout import Layout, PartName, Place
from detseg.data.location import Location

from .commands import run
from .crockery import (
    TRAIN,
    VAL,
    WRITERS,
    coco,
    coco_files,
    coco_json,
    expected_boxes,
    found_boxes,
    labelme,
    masks,
    roboflow_voc,
    save,
    write,
    xml_apart,
    yolo,
)
from .test_check import change, turned


def title(layout: Layout) -> str:
    return layout.title


def read(folder: Path, form: Form) -> dict[PartName, Any]:
    reader: Any = read_boxes if form == "coco" else read_labels
    found = reader.find(Place(folder))
    assert found.layout.title == ("COCO" if form == "coco" else "masks")
    return {name: index() for name, index in found.parts.items()}


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.boxes], ids=title)
def test_boxes_of_every_layout_are_the_same_when_converted(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    parts = read_boxes.find(Place(tmp_path / "data")).parts
    convert(Location(tmp_path / "data"), tmp_path / "new")
    for name, index in read(tmp_path / "new", "coco").items():
        before = parts["whole" if "whole" in parts else name]()
        assert not index.faults
        assert index.classes.used == before.classes.used
        assert found_boxes(index) == found_boxes(before)
        np.testing.assert_allclose(np.sort(index.areas), np.sort(before.areas))
        wanted = expected_boxes((*TRAIN, *VAL) if "whole" in parts else {"train": TRAIN, "val": VAL}[name])
        assert found_boxes(index).keys() == wanted.keys()


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.label_maps], ids=title)
def test_label_maps_of_every_layout_are_the_same_when_converted(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    parts = read_labels.find(Place(tmp_path / "data")).parts
    convert(Location(tmp_path / "data"), tmp_path / "new", to="masks")
    for name, index in read(tmp_path / "new", "masks").items():
        same_labels(index, parts["whole" if "whole" in parts else name]())


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.boxes and layout.label_maps], ids=title)
def test_outlines_come_along(layout: Layout, tmp_path: Path) -> None:
    WRITERS[layout.title](tmp_path / "data")
    before = read_labels.find(Place(tmp_path / "data")).parts
    convert(Location(tmp_path / "data"), tmp_path / "new", to="coco")
    after = read_labels.find(Place(tmp_path / "new")).parts
    for name, index in after.items():
        same_labels(index(), before["whole" if "whole" in before else name]())


def same_labels(index: LabelIndex, before: LabelIndex) -> None:
    assert index.classes.names == before.classes.names
    assert not index.faults
    assert len(index) == len(before)
    position = {before.path(i).stem: i for i in range(len(before))}
    for i in range(len(index)):
        k = position[index.path(i).stem]
        assert index.size(i) == before.size(k)
        np.testing.assert_array_equal(index.labels(i, index.size(i)), before.labels(k, before.size(k)))
        np.testing.assert_array_equal(index.image(i), before.image(k))


def test_a_share_is_kept_for_validation_as_training_would(tmp_path: Path) -> None:
    xml_apart(tmp_path / "data")
    convert(Location(tmp_path / "data", val_share=0.34), tmp_path / "new")
    parts = read(tmp_path / "new", "coco")
    assert sorted(parts) == ["train", "val"]
    assert sum(len(index) for index in parts.values()) == 6
    assert parts["train"].classes.used == parts["val"].classes.used
    assert found_boxes(parts["train"]) | found_boxes(parts["val"]) == expected_boxes((*TRAIN, *VAL))


def test_outlines_come_along_where_the_split_is_decided_here(tmp_path: Path) -> None:
    write(tmp_path / "data/all.json", coco_json((*TRAIN, *VAL)))
    for picture in (*TRAIN, *VAL):
        save(tmp_path / f"data/{picture.name}.png", picture.array())
    convert(Location(tmp_path / "data/all.json", val_share=0.34), tmp_path / "new")
    for index in (part() for part in read_labels.find(Place(tmp_path / "new")).parts.values()):
        for i in range(len(index)):
            (picture,) = [one for one in (*TRAIN, *VAL) if one.name == index.path(i).stem]
            np.testing.assert_array_equal(index.labels(i, picture.size), picture.labels())


def test_validation_data_from_another_place_and_a_test_split(tmp_path: Path) -> None:
    write(tmp_path / "mine.json", coco_json(TRAIN))
    write(tmp_path / "other.json", coco_json(VAL))
    for picture in (*TRAIN, *VAL):
        save(tmp_path / f"photos/{picture.name}.png", picture.array())
    convert(Location(tmp_path / "mine.json", val=tmp_path / "other.json"), tmp_path / "new")
    parts = read(tmp_path / "new", "coco")
    assert {name: len(index) for name, index in parts.items()} == {"train": 4, "val": 2}
    coco_files(tmp_path / "three")
    shutil.copyfile(tmp_path / "three/val.json", tmp_path / "three/test.json")
    convert(Location(tmp_path / "three"), tmp_path / "again")
    assert {name: len(index) for name, index in read(tmp_path / "again", "coco").items()} == {
        "train": 4, "val": 2, "test": 2}


def test_run_lengths_keep_their_form(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    runs = {"size": [40, 64], "counts": [0, 40, 2520]}
    change(tmp_path / "data", "train", lambda content: content["annotations"][0].update(segmentation=runs, iscrowd=1))
    convert(Location(tmp_path / "data"), tmp_path / "new")
    content = json.loads((tmp_path / "new/annotations/instances_train2017.json").read_text())
    assert content["annotations"][0]["segmentation"]["size"] == [40, 64]
    assert content["annotations"][0]["iscrowd"] == 1
    assert content["annotations"][1]["segmentation"] == [[10, 10, 20, 10, 20, 22, 10, 22]]
    (before, after) = (read_labels(tmp_path / folder, "train") for folder in ("data", "new"))
    same_labels(after, before)
    assert (after.labels(0, (40, 64)) == 255).sum() == 40


def test_sub_folders_stay_and_masks_of_one_stem_part(tmp_path: Path) -> None:
    assert new_names([tmp_path / "a/x.png", tmp_path / "a/b/x.png"]) == ["x.png", "b/x.png"]
    assert new_names([tmp_path / "a/x.png"]) == ["x.png"]
    assert new_names([tmp_path / "a/x.png", tmp_path / "a/x.jpg", tmp_path / "a/y.jpg"], different_stems=True) == [
        "x_png.png", "x_jpg.jpg", "y.jpg"]
    assert new_names([]) == []


@pytest.mark.parametrize("way", ["copy", "link", "symlink"])
def test_images_are_copied_or_linked(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "data")
    code, out, _ = run("convert_data", str(tmp_path / "data"), str(tmp_path / "new"), f"--{way}", capsys=capsys)
    assert code == 0
    assert out.endswith(f"written to {tmp_path / 'new'}: train 4 images, 5 boxes; val 2 images, 3 boxes\n")
    (old, new) = (tmp_path / folder / "train2017/wall.png" for folder in ("data", "new"))
    assert new.is_symlink() == (way == "symlink")
    assert (new.stat().st_ino == old.stat().st_ino) == (way != "copy")
    assert new.read_bytes() == old.read_bytes()


def test_a_link_that_cannot_be_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco(tmp_path / "data")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(ValueError, match=r"a hard link stays on one disk; use --symlink, or copy"):
        convert(Location(tmp_path / "data"), tmp_path / "new", way="link")
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path / "data")
    (tmp_path / "new").mkdir()
    write(tmp_path / "full/a.txt", "mine")
    code, _, error = run("convert_data", str(tmp_path / "data"), str(tmp_path / "full"), capsys=capsys)
    assert (code, error) == (2, f"error: {tmp_path / 'full'} is not empty; name a folder that is new\n")
    code, _, error = run("convert_data", str(tmp_path / "data"), str(tmp_path / "full/a.txt"), capsys=capsys)
    assert (code, error) == (2, f"error: {tmp_path / 'full/a.txt'} is a file; name a folder that is new\n")
    assert run("convert_data", str(tmp_path / "data"), str(tmp_path / "new"), capsys=capsys)[0] == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["annotations", "train2017", "val2017"]


@pytest.mark.parametrize(("make", "form", "said"), [
    (masks, "coco", "which say the class of each pixel and not which object it is of.*Convert them --to masks"),
    (roboflow_voc, "masks", "and masks need outlines or label maps. Convert it --to coco"),
    (lambda folder: folder.mkdir(), None, "no label maps in .*Looked for"),
])
def test_what_cannot_have_the_form_is_refused(
    make: Callable[[Path], object], form: Form | None, said: str, tmp_path: Path
) -> None:
    make(tmp_path / "data")
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s){said}"):
        convert(Location(tmp_path / "data"), tmp_path / "new", to=form)
    assert not (tmp_path / "new").exists()


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run("convert_data", str(tmp_path / "gone"), str(tmp_path / "new"), capsys=capsys)
    assert (code, error) == (2, f"error: no folder or file {tmp_path / 'gone'}\n")


def test_broken_records_are_refused_or_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "data")
    change(tmp_path / "data", "train", lambda content: content["annotations"][1].update(bbox=[1, 2, 3]))
    code, _, error = run("convert_data", str(tmp_path / "data"), str(tmp_path / "new"), capsys=capsys)
    assert code == 2
    assert "1 place is broken; mend them, or leave them out with --skip-broken" in error
    code, out, _ = run("convert_data", str(tmp_path / "data"), str(tmp_path / "new"), "--skip-broken", capsys=capsys)
    assert code == 0
    assert "train 4 images, 4 boxes; val 2 images, 3 boxes; 1 broken left out, named in skipped.txt" in out
    assert "annotation 2" in (tmp_path / "new/skipped.txt").read_text()


def test_broken_label_maps_are_refused_or_skipped_and_named(tmp_path: Path) -> None:
    masks(tmp_path / "data")
    (tmp_path / "data/masks/train/wall.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"(?s)1 place is broken.*wall.png: it is no image"):
        convert(Location(tmp_path / "data"), tmp_path / "new")
    assert len(convert(Location(tmp_path / "data"), tmp_path / "new", skip_broken=True).skipped) == 1
    assert len(read(tmp_path / "new", "masks")["train"]) == 3


@pytest.mark.parametrize("name", ["void", "cup\nmug"])
def test_names_that_a_class_file_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    coco(tmp_path / "data")
    for split in ("train", "val"):
        change(tmp_path / "data", split, lambda content: content["categories"][0].update(name=name))
    with pytest.raises(ValueError, match=r"classes.txt cannot hold the name"):
        convert(Location(tmp_path / "data"), tmp_path / "new", to="masks")


def test_splits_of_other_classes_make_no_masks(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    change(tmp_path / "data", "val", lambda content: content["categories"][0].update(name="mug"))
    with pytest.raises(ValueError, match=r"(?s)one classes.txt is for all splits.*'cup' here, 'mug' there"):
        convert(Location(tmp_path / "data"), tmp_path / "new", to="masks")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="whoever may read everything is refused nothing")
def test_a_file_without_permission_leaves_nothing(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    (tmp_path / "data/train2017/wall.png").chmod(0)
    with pytest.raises(PermissionError):
        convert(Location(tmp_path / "data"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------- cleaned copies


def test_a_cleaned_copy_has_nothing_to_mend_and_says_what_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path / "data")
    turned(tmp_path / "data")
    (tmp_path / "data/train2017/wall.png").write_bytes(b"broken")

    def odd(content: dict[str, list[dict[str, object]]]) -> None:
        first = content["annotations"][0]
        for number, box in enumerate(([4, 6, 40, 30], [5, 5, 0, 9], [60, 30, 10, 20], [70, 5, 9, 9], [1, 2, 3])):
            content["annotations"].append(first | {"id": 100 + number, "bbox": box, "segmentation": []})

    change(tmp_path / "data", "train", odd)
    page = str(tmp_path / "data")
    code, out, _ = run("check_data", page, "--fix", str(tmp_path / "new"), capsys=capsys)
    assert code == 1, "the data that were checked are as they were"
    assert f"written: {tmp_path / 'new'}, a copy with 7 changes, which its changes.txt lists" in out
    text = (tmp_path / "new/changes.txt").read_text()
    (tmp_path / "new/changes.txt").unlink()
    image = f"train: {tmp_path / 'data/train2017/table 1.png'}: annotation"
    for line in (
        f"{image} 100 (plate): left out, there is another of its class on the same object",
        f"{image} 101 (plate): left out, it has no area inside the image",
        f"{image} 102 (plate): clipped from [60, 30, 10, 20] to [60, 30, 4, 10]",
        f"{image} 103 (plate): left out, it has no area inside the image",
        f"train: {tmp_path / 'data/train2017/wall.png'}: left out, it is broken",
        f"{tmp_path / 'data/val2017/desk.png'}: written upright",
    ):
        assert f"{line}\n" in text
    assert "annotation 104" in text
    checked = check_place(Location(tmp_path / "new"))
    assert {finding.kind for finding in checked.report.findings} == {"rare classes"}
    assert not checked.turned
    train, val = read(tmp_path / "new", "coco").values()
    wanted = expected_boxes(TRAIN[:3])
    wanted["table 1"] = sorted([*wanted["table 1"], ("plate", (60.0, 30.0, 4.0, 10.0))])
    assert found_boxes(train) == wanted
    assert found_boxes(val) == expected_boxes(VAL)
    np.testing.assert_array_equal(np.asarray(Image.open(val.path(0))), VAL[0].array())


def test_outlines_of_a_cleaned_copy_and_what_is_left_to_decide(tmp_path: Path) -> None:
    labelme(tmp_path / "data")
    write_clean(tmp_path / "new", check_place(Location(tmp_path / "data")))
    assert (tmp_path / "new/changes.txt").read_text() == "nothing was changed\n"
    for name, before in read_labels.find(Place(tmp_path / "data")).parts.items():
        same_labels(read_labels.find(Place(tmp_path / "new")).parts[name](), before())
    yolo(tmp_path / "yolo")
    text = (tmp_path / "yolo/data.yaml").read_text().replace("1: fork", "1: Cup")
    (tmp_path / "yolo/data.yaml").write_text(text)
    write_clean(tmp_path / "near", check_place(Location(tmp_path / "yolo")))
    assert "left as it is, for you to decide:\nnear names: classes with almost the same name, which may be one: 'Cup' "\
           "and 'cup'" in (tmp_path / "near/changes.txt").read_text()


def test_a_cleaned_copy_of_label_maps(tmp_path: Path) -> None:
    masks(tmp_path / "data")
    (tmp_path / "data/masks/train/wall.png").write_bytes(b"broken")
    (tmp_path / "data/images/train/shelf.jpg").write_bytes(b"broken")
    write_clean(tmp_path / "new", check_place(Location(tmp_path / "data")))
    assert {name: len(index) for name, index in read(tmp_path / "new", "masks").items()} == {"train": 2, "val": 2}
    text = (tmp_path / "new/changes.txt").read_text()
    assert text.count("the image and its label map left out, one of them is broken") == 2


def test_a_copy_of_nothing_is_refused_before_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path / "data")
    code, out, error = run("check_data", str(tmp_path / "data"), "--fix", str(tmp_path / "data"), capsys=capsys)
    assert (code, out, error) == (2, "", f"error: {tmp_path / 'data'} is not empty; name a folder that is new\n")
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"broken")
    code, _, error = run("check_data", str(tmp_path / "data"), "--fix", str(tmp_path / "new"), capsys=capsys)
    assert (code, error.splitlines()[-1]) == (2, f"error: {tmp_path / 'new'} was not written: no image is left")
    assert not (tmp_path / "new").exists()


@pytest.mark.real
@pytest.mark.parametrize(("name", "form"), [("coco_mini", "coco"), ("bccd", "coco"), ("cityscapes_mini", "masks")])
def test_real_data_are_the_same_when_converted(shared: Path, tmp_path: Path, name: str, form: Form) -> None:
    convert(Location(shared / "data" / name), tmp_path / "new", to=form, way="symlink")
    parts: Any = (read_boxes if form == "coco" else read_labels).find(Place(shared / "data" / name)).parts
    for split, index in read(tmp_path / "new", form).items():
        before = parts[split]()
        if form == "masks":
            same_labels(index, before)
            continue
        assert index.classes.used == before.classes.used
        np.testing.assert_array_equal(index.boxes, before.boxes)
        np.testing.assert_array_equal(index.crowd, before.crowd)
        np.testing.assert_array_equal(index.areas, before.areas)
    if name == "coco_mini":
        for part in SPLITS:
            same_labels(read_labels(tmp_path / "new", part), read_labels(shared / "data" / name, part))
