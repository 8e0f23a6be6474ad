"""What is seen before the first step: broken files, unknown labels, and annotations of which nothing can be learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image

from detseg.data.images import glance
from detseg.data.label_index import LabelFiles
from detseg.data.masks import read_masks
from detseg.data.screening import screened
from detseg.data.voc import read_voc
from detseg.structures import Classes
from tests.test_voc import SIZE, add, split, thing

PLATE = Classes(("background", "plate"), (0, 1))


def photo(path: Path, size: tuple[int, int] = (40, 60), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Five images of 40 x 60 with a dog each, of which all are sound."""
    for name in "abcde":
        add(tmp_path, name, body=SIZE + thing("dog", 1, 1, 20, 20))
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
    split(tmp_path, "train", *"abcde")
    return tmp_path


def masks(folder: Path, *values: ArrayLike) -> LabelFiles:
    """A pair of an image and a mask for each."""
    for name, value in zip("abcdefgh", values, strict=False):
        stored = np.array(value, np.uint8)
        photo(folder / "images" / "train" / f"{name}.png", (stored.shape[0], stored.shape[1]))
        (folder / "masks" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(stored).save(folder / "masks" / "train" / f"{name}.png")
    return read_masks(folder, "train", PLATE)


@pytest.mark.parametrize(("name", "options"), [
    ("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.jpg", {"exif": turned(6)}), ("a.png", {}),
    ("a.jpg", {"icc_profile": bytes(90000)}),
])
def test_a_glance_tells_the_size_of_a_whole_file(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    photo(tmp_path / name, **options)
    assert glance(tmp_path / name) == (40, 60)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    assert glance(tmp_path / name) is None


def test_a_glance_leaves_other_kinds_to_a_decoder(tmp_path: Path) -> None:
    photo(tmp_path / "a.webp")
    assert glance(tmp_path / "a.webp") is None
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xd9")
    assert glance(tmp_path / "b.jpg") is None
    (tmp_path / "c.jpg").touch()
    with pytest.raises(ValueError, match=r"cannot read the image .*c\.jpg: the file is empty"):
        glance(tmp_path / "c.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image d\.jpg in .*: the folder has no such file"):
        glance(tmp_path / "d.jpg")


def test_sound_data_are_left_as_they_are(boxes: Path) -> None:
    index = read_voc(boxes, "train")
    assert screened(index, whole=False) == (index, "")
    assert screened(index, whole=True) == (index, "")
    assert screened("an index of your own kind", whole=False) == ("an index of your own kind", "")


def test_every_broken_image_is_a_fault_and_the_others_stay(boxes: Path) -> None:
    images = boxes / "JPEGImages"
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:-20])
    photo(images / "c.jpg", (40, 80))
    (images / "e.jpg").write_bytes(b"")
    index, nothing = screened(read_voc(boxes, "train"), whole=False)
    assert nothing == ""
    assert [index.path(i).name for i in range(len(index))] == ["b.jpg", "d.jpg"]
    assert index.image_ids.tolist() == [2, 4]
    assert [(Path(fault.where).name, fault.reason.partition("(")[0]) for fault in index.faults] == [
        ("a.jpg", f"cannot read the image {images / 'a.jpg'}: it is truncated or damaged "),
        ("c.jpg", f"the image {images / 'c.jpg'} is 40 x 80 "),
        ("e.jpg", f"cannot read the image {images / 'e.jpg'}: the file is empty")]


def test_turned_images_of_either_size_are_sound(boxes: Path) -> None:
    photo(boxes / "JPEGImages" / "a.jpg", (60, 40), exif=turned(6))
    photo(boxes / "JPEGImages" / "b.jpg", (40, 60), exif=turned(6))
    assert screened(read_voc(boxes, "train"), whole=False).index.faults == ()
    photo(boxes / "JPEGImages" / "c.jpg", (60, 40))
    assert len(screened(read_voc(boxes, "train"), whole=True).index) == 4, "which of the two it is, a decoder tells"


def test_damage_inside_a_file_is_found_by_decoding(boxes: Path) -> None:
    path = boxes / "JPEGImages" / "b.png"
    (boxes / "JPEGImages" / "b.jpg").unlink()
    photo(path)
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(bytes(content))
    assert screened(read_voc(boxes, "train"), whole=False).index.faults == ()
    (fault,) = screened(read_voc(boxes, "train"), whole=True).index.faults
    assert fault.where == str(path)


def test_boxes_that_are_all_ignored_teach_nothing(boxes: Path) -> None:
    for name in "abcde":
        add(boxes, name, body=SIZE + thing("dog", 1, 1, 20, 20, difficult="<difficult>1</difficult>"))
    assert screened(read_voc(boxes, "train"), whole=False).nothing_to_learn


def test_no_image_left_is_nothing_to_learn(boxes: Path) -> None:
    for name in "abcde":
        (boxes / "JPEGImages" / f"{name}.jpg").write_bytes(b"text")
    index, nothing = screened(read_voc(boxes, "train"), whole=False)
    assert (len(index), len(index.faults), nothing) == (0, 5, "no image is left")


def test_every_label_map_with_unknown_values_is_named(tmp_path: Path) -> None:
    index = masks(tmp_path, [[0, 1]], [[0, 7]], [[1, 1]], [[9, 1]])
    sound, nothing = screened(index, whole=False)
    assert nothing == ""
    assert [sound.path(i).name for i in range(len(sound))] == ["a.png", "c.png"]
    assert [fault.reason.partition(" has values")[0] for fault in sound.faults] == [
        f"the label map {tmp_path / 'masks' / 'train' / name}" for name in ("b.png", "d.png")]


def test_broken_label_maps_and_those_of_another_size_are_named(tmp_path: Path) -> None:
    index = masks(tmp_path, [[0, 1]], [[0, 1]], [[0, 1]])
    (tmp_path / "masks" / "train" / "a.png").write_bytes(b"text")
    photo(tmp_path / "images" / "train" / "c.png", (5, 5))
    sound, _ = screened(index, whole=False)
    assert [fault.reason.partition(": ")[2].partition(",")[0] for fault in sound.faults[:1]] == [
        "it is no image of a known kind"]
    assert "its label map" in sound.faults[1].reason
    assert len(sound) == 1


def test_masks_of_0_and_255_are_told_the_line_to_write(tmp_path: Path) -> None:
    index, nothing = screened(masks(tmp_path, [[0, 255]], [[255, 255]]), whole=False)
    assert nothing == ("every labelled pixel is background, none is plate, and 75.0% are void. If 255 is plate in "
                       "these files, write `255 plate` in classes.txt in place of `1 plate`")
    assert len(index) == 2


def test_label_maps_of_void_alone_teach_nothing(tmp_path: Path) -> None:
    nothing = screened(masks(tmp_path, [[255, 255]]), whole=False).nothing_to_learn
    assert nothing.startswith("every pixel of the label maps is void")
    assert screened(masks(tmp_path, [[255, 255]], [[0, 1]]), whole=False).nothing_to_learn == ""


def test_label_maps_of_one_class_teach_nothing(tmp_path: Path) -> None:
    assert screened(masks(tmp_path, [[0, 0]]), whole=False).nothing_to_learn == (
        "every labelled pixel is background, none is plate")


def test_a_class_without_a_pixel_is_noted(tmp_path: Path) -> None:
    masks(tmp_path, [[0, 1]])
    (tmp_path / "classes.txt").write_text("0 ground\n1 cat\n2 dog\n")
    index, nothing = screened(read_masks(tmp_path, "train"), whole=False)
    assert (nothing, index.notes) == ("", ("no pixel of the label maps looked at is dog",))
    masks(tmp_path, [[0, 1], [255, 0]])
    notes = screened(read_masks(tmp_path, "train"), whole=False).index.notes
    assert notes == ("no pixel of the label maps looked at is dog, and 25.0% are void. If 255 is dog in these files, "
                     "write `255 dog` in classes.txt in place of `2 dog`",)
