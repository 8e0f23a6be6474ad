"""YOLO's text files: the forms that tools give them, and what is wrong with them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from detseg.data.box_index import BoxIndex
from detseg.data.layouts import read_boxes, read_labels
from detseg.data.layouts.layout import Place

from .crockery import TRAIN, VAL, Picture, boxes_are_those_of, save, write, yolo, yolo_lines, yolo_of_label_studio


def around(
    folder: Path, split: str, pictures: Sequence[Picture], *, labels: str = "labels", images: str = "images"
) -> None:
    """YOLO's files in train/images/ and train/labels/, or as named."""
    for picture in pictures:
        save(folder / split / images / f"{picture.name}.png", picture.array())
        write(folder / split / labels / f"{picture.name}.txt", yolo_lines(picture))


def test_yolo_of_roboflow(tmp_path: Path) -> None:
    """Its data.yaml leads out of the folder, and its lists of names are lists."""
    around(tmp_path, "train", TRAIN)
    around(tmp_path, "valid", VAL)
    write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\n"
                                  "names: ['cup', 'fork', 'plate']\n\nroboflow:\n  workspace: kitchen\n")
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"train": TRAIN, "val": VAL})
    boxes_are_those_of(read_boxes.find(Place(tmp_path / "data.yaml")).parts, {"train": TRAIN, "val": VAL})


def test_yolo_with_lists_of_images_and_absolute_paths_of_another_machine(tmp_path: Path) -> None:
    """CVAT's Ultralytics export, after it was used elsewhere."""
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            save(tmp_path / f"images/{split}/{picture.name}.png", picture.array())
            write(tmp_path / f"labels/{split}/{picture.name}.txt", yolo_lines(picture))
    write(tmp_path / "train.txt", "".join(f"./images/train/{picture.name}.png\n" for picture in TRAIN) + "\n")
    write(tmp_path / "val.txt", "".join(f"C:\\data\\crockery\\images\\val\\{picture.name}.png\n" for picture in VAL))
    write(tmp_path / "dataset.yml", "path: C:/data/crockery\ntrain: train.txt\nval: [val.txt]\nnames: {0: cup, 1: "
                                    "fork, "
                                    "2: plate}\n")
    found = read_boxes.find(Place(tmp_path))
    boxes_are_those_of(found.parts, {"train": TRAIN, "val": VAL})
    write(tmp_path / "train.txt", "images/train/wall.png\nimages/train/lost.png\n")
    index = found.parts["train"]()
    assert len(index) == 1
    assert [str(fault) for fault in index.faults] == [
        f"{tmp_path / 'train.txt'}, line 2: there is no image images/train/lost.png; remove the line, or add the image"]


@pytest.mark.parametrize(("names", "images", "labels"), [
    ("train/_darknet.labels", ".", "."), ("classes.txt", "images", "labels"), ("labels/classes.txt", None, None)])
def test_yolo_without_a_yaml(tmp_path: Path, names: str, images: str | None, labels: str | None) -> None:
    if images is None or labels is None:
        yolo(tmp_path)
        (tmp_path / "data.yaml").unlink()
    else:
        around(tmp_path, "train", TRAIN, images=images, labels=labels)
        around(tmp_path, "valid", VAL, images=images, labels=labels)
    write(tmp_path / names, "cup\nfork\nplate\n")
    found = read_boxes.find(Place(tmp_path))
    assert found.layout.title == "YOLO, no data.yaml"
    boxes_are_those_of(found.parts, {"train": TRAIN, "val": VAL})


@pytest.mark.parametrize("folder", [".", "obj_train_data"])
def test_darknet_has_text_files_beside_the_images(tmp_path: Path, folder: str) -> None:
    around(tmp_path, folder, (*TRAIN, *VAL), images=".", labels=".")
    write(tmp_path / "obj.names", "cup\nfork\nplate\n")
    write(tmp_path / "train.txt", "data/obj_train_data/wall.png\n")
    write(tmp_path / "obj.data", "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    boxes_are_those_of(read_boxes.find(Place(tmp_path)).parts, {"whole": (*TRAIN, *VAL)})


def yolo_split(folder: Path, *lines: str, names: str = "names: [cup, fork]") -> BoxIndex:
    """One image of 40 x 80 with these lines, and one of the same size with a good one."""
    for name, text in (("a", "\n".join(lines)), ("b", "1 0.5 0.5 0.25 0.5")):
        save(folder / f"images/train/{name}.png", np.zeros((40, 80, 3), np.uint8))
        write(folder / f"labels/train/{name}.txt", text)
    write(folder / "data.yaml", f"train: images/train\n{names}\n")
    return read_boxes.find(Place(folder / "data.yaml")).parts["train"]()


def test_yolos_boxes_and_outlines_are_read(tmp_path: Path) -> None:
    index = yolo_split(tmp_path, "0 0.5 0.5 0.25 0.5", "1.0 0 0 0.5 0 0.5 1", "", "0 0.5 0.5 0.25 0.5")
    assert index.boxes.tolist() == [[30, 10, 20, 20], [0, 0, 40, 40], [30, 10, 20, 20]]
    assert index.areas.tolist() == [400, 800, 400]
    assert index.labels.tolist() == [0, 1, 1]
    assert index.notes == ("1 line stood twice in a label file, counted once",)


def test_yolos_poses_are_boxes(tmp_path: Path) -> None:
    pose = "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 1"
    index = yolo_split(tmp_path, pose, names="names: [cup, fork]\nkpt_shape: [2, 3]")
    assert index.boxes[0].tolist() == [30, 10, 20, 20]
    assert index.areas[0] == 400


@pytest.mark.parametrize(("line", "reason"), [
    ("0 0.5 0.5 0.25", "need a class and four numbers, or a class and the x and y of at least three corners, got 4"),
    ("0 0.5 0.5 0.25 0.5 0.9", "need a class and four numbers, .* got 6 numbers"),
    ("2 0.5 0.5 0.25 0.5", r"there is no class 2; the names have the numbers 0\.\.1"),
    ("0.5 0.5 0.5 0.25 0.5", r"there is no class 0\.5"),
    ("0 40 20 20 20", r"coordinates are shares of the image's width and height, 0\.\.1, got 40; are these pixels\?"),
    ("cup 0.5 0.5 0.25 0.5", "need numbers, got 'cup 0.5 0.5 0.25 0.5'"),
    ("0 nan 0.5 0.25 0.5", "need finite numbers"),
])
def test_a_broken_line_of_yolo_is_a_fault_and_its_image_is_left_out(tmp_path: Path, line: str, reason: str) -> None:
    index = yolo_split(tmp_path, "1 0.5 0.5 0.25 0.5", line)
    assert [index.path(i).name for i in range(len(index))] == ["b.png"]
    (fault,) = index.faults
    assert fault.where == f"{tmp_path / 'labels/train/a.txt'}, line 2"
    assert re.match(reason, fault.reason)


def test_other_faults_of_yolo_are_named_too(tmp_path: Path) -> None:
    yolo_split(tmp_path)
    save(tmp_path / "images/train/c.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "images/train/d.png", "no image")
    write(tmp_path / "labels/train/lost.txt", "0 0.5 0.5 0.25 0.5")
    index = read_boxes.find(Place(tmp_path)).parts["train"]()
    assert [index.path(i).name for i in range(len(index))] == ["a.png", "b.png", "c.png"]
    assert index.notes == ("2 of 4 images have no label file, taken as without objects",)
    assert [fault.where for fault in index.faults] == [
        str(tmp_path / "images/train/d.png"), str(tmp_path / "labels/train/lost.txt")]
    assert index.faults[1].reason == (f"there is no image for it in {tmp_path / 'images/train'}; add the image, or "
                                      f"remove "
                                      "the file")


@pytest.mark.parametrize(("text", "message"), [
    ("train: images/train\nnames: 3\n", r"data\.yaml: need the classes as `names: \[cat, dog\]` or as `names: \{0: "
                                        r"cat"),
    ("train: images/train\nnc: 2\nnames: [cup]\n", r"data\.yaml: nc is 2, but there are 1 names; correct one of them"),
    ("train: images/train\nnames: [cup, cup]\n", r"data\.yaml: class names must differ"),
    ("train: elsewhere/images\nnames: [cup]\n", r"data\.yaml: train is elsewhere/images, which is neither in .*; "
                                                r"correct"),
])
def test_a_wrong_data_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    yolo_split(tmp_path)
    write(tmp_path / "data.yaml", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_boxes.find(Place(tmp_path)).parts["train"]()


def test_a_data_yaml_with_a_number_of_classes_alone_numbers_them(tmp_path: Path) -> None:
    assert yolo_split(tmp_path, names="nc: 2").classes.names == ("class_0", "class_1")


def test_a_yaml_that_is_broken_or_about_something_else_is_passed_over(tmp_path: Path) -> None:
    for text in ("a: [", "- a\n- b\n", "train: 3\n"):
        write(tmp_path / "data.yaml", text)
        with pytest.raises(FileNotFoundError, match="no data in"):
            read_boxes.find(Place(tmp_path))


def test_two_files_that_describe_yolo_data_are_refused(tmp_path: Path) -> None:
    yolo_split(tmp_path)
    shutil.copy(tmp_path / "data.yaml", tmp_path / "one.yaml")
    assert read_boxes.find(Place(tmp_path)).why == "data.yaml has names and train"
    (tmp_path / "data.yaml").rename(tmp_path / "two.yaml")
    with pytest.raises(ValueError, match=r"has several files that describe YOLO data, one\.yaml, two\.yaml; name "
                                         r"one with "
                                         "--data FILE"):
        read_boxes.find(Place(tmp_path))


def test_yolo_labels_without_any_names_say_what_to_write(tmp_path: Path) -> None:
    yolo_of_label_studio(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"nothing says what the numbers in YOLO's label files of .* mean\. Write "
                                         r".*classes\.txt with a name in each line, from class 0 on"):
        read_boxes.find(Place(tmp_path)).parts["whole"]()
    wrong = (("", "the file is empty"), ("cup\n\nfork\n", "line 2 is empty"), ("a\na\n", "names must differ"))
    for text, message in wrong:
        write(tmp_path / "classes.txt", text)
        with pytest.raises(ValueError, match=message):
            read_boxes.find(Place(tmp_path)).parts["whole"]()


def test_yolos_images_without_any_label_file_are_refused(tmp_path: Path) -> None:
    yolo(tmp_path)
    shutil.rmtree(tmp_path / "labels/val")
    with pytest.raises(ValueError, match=r"none of the 2 images in .*val has a label file; looked for "
                                         r".*labels/val/desk\.txt"):
        read_boxes.find(Place(tmp_path)).parts["val"]()
    shutil.rmtree(tmp_path / "images/val")
    (tmp_path / "images/val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*images/val"):
        read_boxes.find(Place(tmp_path)).parts["val"]()


def test_label_maps_need_outlines_of_every_object(tmp_path: Path) -> None:
    yolo_split(tmp_path, "0 0 0 0.5 0 0.5 1")
    index = read_labels.find(Place(tmp_path)).parts["train"]()
    assert [index.path(i).name for i in range(len(index))] == ["a.png"]
    (fault,) = index.faults
    assert fault == (str(tmp_path / "images/train/b.png"), "an object has a box and no outline, so its pixels are "
                                                           "unknown; "
                                                          "outline it")
    with pytest.raises(ValueError, match="a label map has its image's size"):
        index.labels(0, (4, 4))
    yolo_split(tmp_path, "0 0.5 0.5 0.25 0.5")
    with pytest.raises(ValueError, match=r"the label files of .* has boxes only, no outlines; label maps are drawn "
                                         r"from"):
        read_labels.find(Place(tmp_path)).parts["train"]()


def test_a_class_that_is_called_background_is_the_background(tmp_path: Path) -> None:
    yolo_split(tmp_path, "0 0 0 0.5 0 0.5 1", "1 0.5 0 1 0 1 1", names="names: [Background, fork]")
    write(tmp_path / "labels/train/b.txt", "")
    index = read_labels.find(Place(tmp_path)).parts["train"]()
    assert index.classes.names == ("background", "fork")
    assert np.unique(index.labels(0, (40, 80))[:, :40]).tolist() == [0]
    assert index.labels(0, (40, 80))[0, 60] == 1
