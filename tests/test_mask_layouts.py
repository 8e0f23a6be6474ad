"""Folders of images and masks: where they lie, and what says what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detseg.data.layouts import read_labels
from detseg.data.layouts.layout import Place
from detseg.structures import VOID

from .crockery import (
    COLOURS,
    NAMES,
    TRAIN,
    VAL,
    ade20k,
    binary_masks,
    cityscapes,
    cityscapes_coarse,
    labels_are_those_of,
    save,
    write,
)


@pytest.mark.parametrize(("images", "masks", "end"), [
    ("{split}/images", "{split}/masks", ""), ("{split}", "{split}_labels", "_L"), ("{split}", "{split}annot", ""),
    ("JPEGImages/{split}", "SegmentationClass/{split}", "_mask"), ("images/{split}", "labels/{split}", "_gt")])
def test_masks_in_other_folders(tmp_path: Path, images: str, masks: str, end: str) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            save(tmp_path / images.format(split=split) / f"{picture.name}.jpg", picture.array())
            save(tmp_path / masks.format(split=split) / f"{picture.name}{end}.png", picture.labels())
    write(tmp_path / "classes.txt", "0 background\n1 cup\n2 fork\n3 plate\n")
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        labels_are_those_of(read_labels.find(Place(tmp_path)).parts[split](), pictures)  # type: ignore[index]


def test_camvids_colours(tmp_path: Path) -> None:
    for split, pictures in (("train", TRAIN), ("val", VAL)):
        for picture in pictures:
            save(tmp_path / f"{split}/{picture.name}.png", picture.array())
            save(tmp_path / f"{split}_labels/{picture.name}_L.png", COLOURS[picture.labels()])
    write(tmp_path / "class_dict.csv", "name,r,g,b\nVoid,0,0,0\ncup,250,50,83\nfork,36,179,83\nplate,51,221,255\n")
    found = read_labels.find(Place(tmp_path))
    index = found.parts["train"]()
    assert index.classes.names == NAMES
    assert index.classes.colours == ((250, 50, 83), (36, 179, 83), (51, 221, 255))
    labels_are_those_of(index, TRAIN, (VOID, 0, 1, 2))
    turned = index.relabel(type(index.classes)(("plate", "cup", "fork"), (2, 0, 1)))
    labels_are_those_of(turned, TRAIN, (VOID, 1, 2, 0))
    with pytest.raises(ValueError, match="a label map has its image's size"):
        index.labels(0, (3, 3))
    strange = COLOURS[TRAIN[2].labels()]
    strange[0, :3] = (1, 2, 3)
    save(tmp_path / "train_labels/empty_room_L.png", strange)
    with pytest.raises(ValueError, match=r"empty_room_L\.png has colours that are no class \(R G B and their "
                                         r"numbers of "
                                         r"pixels\): 1 2 3 x 3\. Add them to .*class_dict\.csv; many colours"):
        index.labels(0, TRAIN[2].size)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("class_dict.csv", "name,r,g\ncup,1,2\n", "need the columns name, r, g and b, got name, r, g"),
    ("class_dict.csv", "name,r,g,b\ncup,1,2,300\n", r"line 2: need NAME,R,G,B with 0\.\.255, each colour once"),
    ("class_dict.csv", "name,r,g,b\ncup,1,2,3\nfork,1,2,3\n", r"line 3: .*\(the colour of cup\)"),
    ("class_dict.csv", "name,r,g,b\nvoid,0,0,0\n", "need at least one class that is not void"),
    ("labelmap.txt", "cup\n", "line 1: need NAME:R,G,B:: with"),
    ("labelmap.txt", "cup:1,2,3::\nfork:1,2,3::\n", r"line 2: .*\(the colour of cup\)"),
])
def test_a_wrong_list_of_colours_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    save(tmp_path / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "masks/a.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message):
        read_labels.find(Place(tmp_path)).parts["whole"]()


def test_black_and_white_masks_have_names_if_a_file_says_them(tmp_path: Path) -> None:
    binary_masks(tmp_path)
    for text, names in (("rock\nore\n", ("rock", "ore")), ("ore\n", ("background", "ore"))):
        write(tmp_path / "classes.txt", text)
        index = read_labels.find(Place(tmp_path)).parts["whole"]()
        assert index.classes.names == names
        assert index.classes.source_ids == (0, 255)
    write(tmp_path / "classes.txt", "0 rock\n255 ore\n")
    assert read_labels.find(Place(tmp_path)).layout.title == "masks"
    (tmp_path / "classes.txt").unlink()
    save(tmp_path / "masks/wall.png", np.full(TRAIN[3].size, 7, np.uint8))
    with pytest.raises(FileNotFoundError, match="no label maps in"):
        read_labels.find(Place(tmp_path))


def test_images_and_masks_without_a_partner_are_faults(tmp_path: Path) -> None:
    binary_masks(tmp_path)
    (tmp_path / "masks/wall.png").unlink()
    (tmp_path / "images/desk.jpg").unlink()
    index = read_labels.find(Place(tmp_path)).parts["whole"]()
    assert len(index) == 4
    assert {str(fault) for fault in index.faults} == {
        f"{tmp_path / 'images/wall.jpg'}: there is no mask for it in {tmp_path / 'masks'}; add it, or remove the image",
        f"{tmp_path / 'masks/desk.png'}: there is no image for it in {tmp_path / 'images'}; add it, or remove the mask"}
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .*images has a mask of its name in .*masks"):
        read_labels.find(Place(tmp_path)).parts["whole"]()


def test_ade20k_needs_names_and_takes_them_from_either_file(tmp_path: Path) -> None:
    ade20k(tmp_path)
    table = tmp_path / "objectInfo150.txt"
    assert read_labels(tmp_path, "train").classes.names == NAMES
    write(table, "Index\tName\n1\tcup\n")
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: need columns Idx and Name, parted by tabs"):
        read_labels(tmp_path, "train")
    table.unlink()
    with pytest.raises(ValueError, match=r"nothing says what the masks in .*annotations mean\. Write .*classes\.txt "
                                         r"with a "
                                         r"line `ID NAME` for each class, from 1 on, or add ADE20K's "
                                         r"objectInfo150\.txt"):
        read_labels(tmp_path, "train")
    write(tmp_path / "classes.txt", "1 cup\n2 fork\n3 plate\n")
    labels_are_those_of(read_labels(tmp_path, "train"), TRAIN, (VOID, 0, 1, 2))


def test_coarse_cityscapes_beside_fine_ones(tmp_path: Path) -> None:
    """The fine ones win; the coarse ones are named by their folder; train_extra is trained on where it is alone."""
    cityscapes(tmp_path)
    cityscapes_coarse(tmp_path)
    assert read_labels.find(Place(tmp_path)).layout.title == "Cityscapes"
    coarse = read_labels.find(Place(tmp_path / "gtCoarse"))
    assert coarse.layout.title == "Cityscapes, coarse"
    assert "gtCoarse" in coarse.parts["train"]().origin(0)
    for part in ("leftImg8bit", "gtCoarse"):
        (tmp_path / part / "train").rename(tmp_path / part / "train_extra")
    assert "train_extra" in read_labels.find(Place(tmp_path / "gtCoarse")).parts["train"]().origin(0)
