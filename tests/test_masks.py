"""Folders of images and masks: what the class file says, what a config may say, and what is refused."""

from __future__ import annotations

import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image

from detseg.data.masks import CAMVID, CAMVID_VOID, class_file, read_classes, read_masks, write_classes
from detseg.structures import VOID, Classes

TWO = Classes(("ground", "cat"), (0, 9))


def pair(folder: Path, values: ArrayLike, *, split: str = "train", name: str = "a", images: str | None = None) -> None:
    stored = np.asarray(values, dtype=np.uint8)
    image = folder / (images or f"images/{split}") / f"{name}.jpg"
    mask = folder / "masks" / split / f"{name}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*stored.shape[:2], 3), np.uint8)).save(image)
    Image.fromarray(stored).save(mask)


def test_the_class_file_says_what_values_mean(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 9, 4], [200, 255, 9]])
    class_file(tmp_path).write_text("# Animals\n\n9 big cat #0a0BfF\n0 ground\n4 void\n#\n200 void\n")
    index = read_masks(tmp_path, "train", TWO)
    assert index.classes.names == ("big cat", "ground")
    assert index.classes.source_ids == (9, 0)
    assert index.classes.colours[0] == (10, 11, 255)
    np.testing.assert_array_equal(index.labels(0, (2, 3)), [[1, 0, VOID], [VOID, VOID, 0]])


def test_without_a_class_file_the_config_says_it(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 9, 4, 255]], split="val")
    read = partial(read_masks, classes=TWO, void=(4,))
    np.testing.assert_array_equal(read(tmp_path, "val").labels(0, (1, 4)), [[0, 1, VOID, VOID]])
    with pytest.raises(ValueError, match=r"nothing says what the masks in .*val mean\. Write .*classes\.txt with a "
                                         r"line `ID NAME`.*read=partial\(read_masks, classes=Classes\(\.\.\.\), void="):
        read_masks(tmp_path, "val")


def test_255_may_be_a_class(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 255]])
    index = read_masks(tmp_path, "train", Classes(("no", "yes"), (0, 255)))
    np.testing.assert_array_equal(index.labels(0, (1, 2)), [[0, 1]])


def test_black_and_white_masks_are_read(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 1]])
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "masks" / "train" / "a.png")
    index = read_masks(tmp_path, "train", Classes(("no", "yes"), (0, 1)))
    np.testing.assert_array_equal(index.labels(0, (1, 2)), [[0, 1]])


def test_an_unknown_value_is_refused_with_the_histogram(tmp_path: Path) -> None:
    pair(tmp_path, [[0, 9, 9, 7]])
    with pytest.raises(ValueError, match=r"a\.png has values that are no class\. Values and their numbers of pixels: "
                                         r"0 x 1, 7 x 1 \(unknown\), 9 x 2\. Known are: 0 ground, 9 cat, 255 void\."):
        read_masks(tmp_path, "train", TWO).labels(0, (1, 4))


@pytest.mark.parametrize(("text", "message"), [
    ("0 sky\n1\n", r"classes\.txt, line 2: need `ID NAME \[#RRGGBB\]` with an id of 0\.\.255, got '1'"),
    ("sky\n", "line 1: need `ID NAME"),
    ("256 sky\n", "got '256 sky'"),
    ("0 sky\n0 road\n", r"classes\.txt: 2 classes need as many different ids"),
    ("0 sky\n1 sky\n", r"classes\.txt: class names must differ"),
    ("0 sky\n0 void\n", r"classes\.txt: a value is a class or void, not both: \[0\]"),
    ("0 void\n", r"classes\.txt: a data set needs at least one class"),
])  # fmt: skip
def test_a_wrong_class_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    class_file(tmp_path).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_classes(class_file(tmp_path))


def test_a_class_file_comes_back(tmp_path: Path) -> None:
    write_classes(tmp_path / "classes.txt", CAMVID, CAMVID_VOID)
    assert read_classes(tmp_path / "classes.txt") == (CAMVID, CAMVID_VOID)


def test_values_that_no_image_of_8_bits_holds_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, [[0]])
    with pytest.raises(ValueError, match=r"their values lie in 0\.\.255, got \[-1, 300\]"):
        read_masks(tmp_path, "train", Classes(("sky",), (300,)), void=(-1,))
    with pytest.raises(ValueError, match="has room for 255 classes, got 256"):
        read_masks(tmp_path, "train", Classes(tuple(f"c{k}" for k in range(256)), tuple(range(256))))


def test_pairs_go_by_name_and_may_lie_beside_cocos_boxes(tmp_path: Path) -> None:
    pair(tmp_path, [[9]], name="b", images="train2017")
    pair(tmp_path, [[0]], name="a", images="train2017")
    (tmp_path / "train2017" / ".hidden").touch()
    index = read_masks(tmp_path, "train", TWO)
    assert [index.path(i) for i in range(2)] == [tmp_path / "train2017" / name for name in ("a.jpg", "b.jpg")]
    assert [index.labels(i, (1, 1)).item() for i in range(2)] == [0, 1]
    pair(tmp_path, [[0]], name="a")
    pair(tmp_path, [[0]], name="b")
    assert read_masks(tmp_path, "train", TWO).path(0) == tmp_path / "images" / "train" / "a.jpg"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*images.train with the images of train"):
        read_masks(tmp_path, "train", TWO)
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no folder .*masks.train with the masks of train"):
        read_masks(tmp_path, "train", TWO)
    (tmp_path / "masks" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no images in .*images.train"):
        read_masks(tmp_path, "train", TWO)
    pair(tmp_path, [[0]])
    pair(tmp_path, [[0]], name="b")
    pair(tmp_path, [[0]], name="c")
    (tmp_path / "masks" / "train" / "b.png").unlink()
    (tmp_path / "images" / "train" / "c.jpg").unlink()
    (tmp_path / "images" / "train" / "d.png").touch()
    (tmp_path / "images" / "train" / "d.jpg").touch()
    index = read_masks(tmp_path, "train", TWO)
    assert [index.path(i).name for i in range(len(index))] == ["a.jpg"]
    images, masks = tmp_path / "images" / "train", tmp_path / "masks" / "train"
    where = f"({images} and {masks} go by name without extension)"
    assert [str(fault) for fault in index.faults] == [
        f"{images}/d: there are several images of this name, d.jpg and d.png; keep one",
        f"images/train/b.jpg: an image without label map {where}; add it, or remove the image",
        f"masks/train/c.png: a label map without image {where}; add it, or remove the label map"]


def test_what_lies_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    pair(tmp_path, [[9]], name="a")
    pair(tmp_path, [[0]], name="city/b")
    for name in ("a.json", "Thumbs.db", "desktop.ini", "._a.jpg"):
        (tmp_path / "images" / "train" / name).write_text("x")
    index = read_masks(tmp_path, "train", TWO)
    assert [index.path(i).name for i in range(len(index))] == ["a.jpg", "b.jpg"]
    assert (index.faults, index.notes) == ((), ())


def test_names_in_another_unicode_form_or_case_are_pairs(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Übung") for form in ("NFC", "NFD"))
    pair(tmp_path, [[9]], name=nfc)
    pair(tmp_path, [[0]], name="IMG_1")
    (tmp_path / "masks" / "train" / f"{nfc}.png").rename(tmp_path / "masks" / "train" / f"{nfd}.png")
    (tmp_path / "masks" / "train" / "IMG_1.png").rename(tmp_path / "masks" / "train" / "img_1.png")
    index = read_masks(tmp_path, "train", TWO)
    assert [index.labels(i, (1, 1)).item() for i in range(2)] == [0, 1]
    assert index.faults == ()
    assert index.notes == ("2 images named in another case or Unicode form than the label map, as "
                           "images/train/IMG_1.jpg",)


def test_a_class_file_of_windows_is_read(tmp_path: Path) -> None:
    class_file(tmp_path).write_text("0 Straße\n", "utf-16")
    assert read_classes(class_file(tmp_path))[0].names == ("Straße",)
    class_file(tmp_path).write_text("0 Straße\n", "latin-1")
    with pytest.raises(ValueError, match=r"classes\.txt: byte 6 is no UTF-8 text; save the file as UTF-8"):
        read_classes(class_file(tmp_path))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "the file is empty"),
    (b"no image", "it is no image of a known kind"),
    (None, r"it is truncated or damaged \("),
])  # fmt: skip
def test_broken_masks_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    pair(tmp_path, np.random.default_rng(0).choice([0, 9], (40, 40)))
    path = tmp_path / "masks" / "train" / "a.png"
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    with pytest.raises(ValueError, match=rf"cannot read the label map .*a\.png: {message}"):
        read_masks(tmp_path, "train", TWO).labels(0, (40, 40))


def test_a_mask_that_goes_away_is_an_error(tmp_path: Path) -> None:
    pair(tmp_path, [[0]])
    index = read_masks(tmp_path, "train", TWO)
    (tmp_path / "masks" / "train" / "a.png").unlink()
    for look in (lambda: index.size(0), lambda: index.labels(0, (1, 1))):
        with pytest.raises(FileNotFoundError, match=r"no label map .*a\.png"):
            look()


def test_an_image_is_turned_as_its_mask_is(tmp_path: Path) -> None:
    pair(tmp_path, np.zeros((20, 30)))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / "train" / "a.jpg", exif=turned)
    index = read_masks(tmp_path, "train", TWO)
    assert index.image(0).shape == (20, 30, 3)
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "masks" / "train" / "a.png")
    assert index.image(0).shape == (30, 20, 3)
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tmp_path / "masks" / "train" / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg is 30 x 20 \(height x width\), its label map .*a\.png is 10 x 20: "
                                         "was it resized"):
        index.image(0)


@pytest.mark.real
def test_camvid(shared: Path) -> None:
    for split, number in (("train", 367), ("val", 101)):
        index = read_masks(shared / "data" / "camvid", "train" if split == "train" else "val", CAMVID, CAMVID_VOID)
        assert len(index) == number
        stored = np.asarray(Image.open(index.origin(7)))
        labels = index.labels(7, (360, 480))
        np.testing.assert_array_equal(labels, np.where(stored == 11, VOID, stored))
