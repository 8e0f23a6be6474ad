"""XML files and annotation files of COCO's kind, wherever they lie; and what is said where nothing is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detseg.data.check import check_place
from detseg.data.layouts import read_boxes
from detseg.data.layouts.layout import Place
from detseg.data.location import Location

from .crockery import NAMES, TRAIN, VAL, boxes_are_those_of, coco_json, roboflow_coco, save, voc, voc_xml, write


def test_xml_files_lie_beside_their_images_or_anywhere(tmp_path: Path) -> None:
    for picture in (*TRAIN, *VAL):
        write(tmp_path / f"{picture.name}.xml", voc_xml(picture))
        save(tmp_path / f"{picture.name}.png", picture.array())
    write(tmp_path / "settings.xml", "<project/>")
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"whole": (*TRAIN, *VAL)})
    images = tmp_path / "elsewhere"
    for picture in (*TRAIN, *VAL):
        (images / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{picture.name}.png").rename(images / f"deep/{picture.name}.png")
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"whole": (*TRAIN, *VAL)})
    shutil.move(images, tmp_path.parent / f"{tmp_path.name}-images")
    found = read_boxes.find(Place(tmp_path, tmp_path.parent / f"{tmp_path.name}-images"))
    boxes_are_those_of(found.parts, {"whole": (*TRAIN, *VAL)})


def test_xml_files_and_images_in_folders_of_the_splits(tmp_path: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            write(tmp_path / f"annotations/{split}/{picture.name}.xml", voc_xml(picture))
            save(tmp_path / f"images/{split}/{picture.name}.png", picture.array())
    found = read_boxes.find(Place(tmp_path))
    boxes_are_those_of(found.parts, {"train": TRAIN, "val": VAL})
    save(tmp_path / "images/train/extra.png", TRAIN[0].array())
    (tmp_path / "images/val/desk.png").unlink()
    save(tmp_path / "images/train/extra 2.png", TRAIN[0].array())
    assert found.parts["train"]().notes[0].startswith("1 of 7 images have no XML file, and are left out: one without ")
    (fault,) = found.parts["val"]().faults
    assert fault.where == str(tmp_path / "annotations/val/desk.xml")
    assert fault.reason.endswith("; add the image, or remove the file")


def test_vocs_other_lists(tmp_path: Path) -> None:
    """CVAT has one list, default.txt; VOC 2007's devkit may come with trainval and test only; a list may be named."""
    voc(tmp_path)
    lists = tmp_path / "ImageSets/Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"train": TRAIN, "test": VAL})
    boxes_are_those_of(read_boxes.find(Place(lists / "test.txt")).parts, {"whole": VAL})
    (lists / "trainval.txt").rename(lists / "default.txt")
    (lists / "test.txt").unlink()
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"whole": TRAIN})


def test_cvats_subsets(tmp_path: Path) -> None:
    for split, pictures in (("Train", TRAIN), ("Validation", VAL)):
        write(tmp_path / f"annotations/instances_{split}.json", coco_json(pictures))
        for picture in pictures:
            save(tmp_path / f"images/{split}/{picture.name}.png", picture.array())
    found = read_boxes.find(Place(tmp_path))
    assert found.layout.title == "CVAT, COCO"
    boxes_are_those_of(found.parts, {"train": TRAIN, "val": VAL})


def test_an_annotation_file_may_be_named_and_its_images_lie_anywhere(tmp_path: Path) -> None:
    write(tmp_path / "annotations/mine.json", coco_json(TRAIN))
    write(tmp_path / "annotations/captions.json", '{"images": [], "annotations": [{"caption": "a cup"}]}')
    for picture in TRAIN:
        save(tmp_path / f"a/b/{picture.name}.png", picture.array())
    for place in (Place(tmp_path), Place(tmp_path / "annotations/mine.json"),
                  Place(tmp_path / "annotations/mine.json", tmp_path / "a/b")):
        found = read_boxes.find(place)
        assert found.layout.title == "COCO's files"
        boxes_are_those_of(found.parts, {"whole": TRAIN})
    write(tmp_path / "annotations/other.json", coco_json(VAL))
    with pytest.raises(ValueError, match=r"has several annotation files of COCO's kind that are not told apart by "
                                         r"train and "
                                         r"val in their names, .*mine\.json and .*other\.json; name one with --data "
                                         r"FILE"):
        read_boxes.find(Place(tmp_path))
    assert [finding.level for finding in check_place(Location(tmp_path)).report.findings] == ["problem"]
    with pytest.raises(FileNotFoundError, match=r"no data in .*captions\.json\. Looked for"):
        read_boxes.find(Place(tmp_path / "annotations/captions.json"))
    with pytest.raises(FileNotFoundError, match=r"no data in .*gone\.json \(no such file\)\. Looked for"):
        read_boxes.find(Place(tmp_path / "gone.json"))


def test_a_folder_of_one_split_is_a_whole(tmp_path: Path) -> None:
    roboflow_coco(tmp_path)
    boxes_are_those_of(read_boxes.find(Place(tmp_path / "valid")).parts, {"whole": VAL})
    shutil.rmtree(tmp_path / "train")
    assert read_boxes(tmp_path, "val").classes.names == NAMES
    with pytest.raises(FileNotFoundError, match=r"no train data in .*: it is in the layout Roboflow, COCO, because "
                                                r"it has "
                                                r"valid/_annotations\.coco\.json, and has only val"):
        read_boxes(tmp_path, "train")


def test_what_lies_there_is_said_where_nothing_is_recognised(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "notes.txt", "cats")
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        read_boxes.find(Place(tmp_path))
    message = str(caught.value)
    assert "What is there: sub/, notes.txt, 3 files *.png\n" in message
    for layout in read_boxes.layouts:
        assert f"  {layout.title}: {layout.looks_for}\n" in message
    with pytest.raises(FileNotFoundError, match="What is there: nothing"):
        read_boxes.find(Place(tmp_path / "sub"))
