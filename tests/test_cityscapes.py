"""Cityscapes' files: label ids become classes, whatever the files really hold, and nothing is taken on trust."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image

from detseg.data.cityscapes import CITYSCAPES, read_cityscapes
from detseg.structures import VOID, Classes

STREET = [[7, 7, 8, 0], [26, 33, 23, 3]]
"""Label ids of a tiny frame: road, sidewalk, unlabelled; car, bicycle, sky, out of the region of interest."""
LABELS = [[0, 0, 1, VOID], [13, 18, 10, VOID]]
"""What they mean; also its train ids."""


def frame(
    folder: Path, values: ArrayLike, *, split: str = "train", name: str = "ulm/ulm_000000_19", kind: str = "labelIds"
) -> Path:
    """Writes an image and its label map, and gives the label map's file."""
    stored = np.asarray(values, dtype=np.uint8)
    image = folder / "leftImg8bit" / split / f"{name}_leftImg8bit.png"
    label_map = folder / "gtFine" / split / f"{name}_gtFine_{kind}.png"
    for path in (image, label_map):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*stored.shape[:2], 3), np.uint8)).save(image)
    Image.fromarray(stored).save(label_map)
    return label_map


def test_label_ids_become_the_nineteen_classes_and_all_else_void(tmp_path: Path) -> None:
    frame(tmp_path, [list(range(34))])
    index = read_cityscapes(tmp_path, "train")
    labels = index.labels(0, (1, 34))
    assert index.classes == CITYSCAPES
    assert index.notes == ()
    assert labels.dtype == np.uint8
    expected = np.full(34, VOID)
    expected[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = range(19)
    np.testing.assert_array_equal(labels, [expected])


def test_the_classes_are_the_benchmarks() -> None:
    assert len(CITYSCAPES) == 19
    assert CITYSCAPES.names[18] == "bicycle"
    assert CITYSCAPES.source_ids[13] == 26
    assert CITYSCAPES.colours[0] == (128, 64, 128)
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed").labels
    trained = sorted((label for label in labels if 0 <= label.trainId < VOID), key=lambda label: label.trainId)
    assert Classes(*zip(*((label.name, label.id, label.color) for label in trained), strict=True)) == CITYSCAPES


def test_images_are_in_the_order_of_their_names_and_other_files_do_not_count(tmp_path: Path) -> None:
    frame(tmp_path, STREET, name="zurich/zurich_000001_000019")
    label_map = frame(tmp_path, STREET, name="aachen/aachen_000001_000019")
    for kind in ("color.png", "instanceIds.png", "polygons.json"):
        label_map.with_name(label_map.name.replace("labelIds.png", kind)).touch()
    index = read_cityscapes(tmp_path, "train")
    assert [index.path(i).name for i in range(2)] == [
        "aachen_000001_000019_leftImg8bit.png", "zurich_000001_000019_leftImg8bit.png"]
    assert index.image_ids.tolist() == [1, 2]
    assert index.size(0) == (2, 4)
    assert index.origin(0) == str(label_map)
    np.testing.assert_array_equal(index.labels(0, (2, 4)), LABELS)
    with pytest.raises(IndexError, match="image 2 of a data set of 2; positions run from 0 to 1"):
        index.path(2)


def test_train_ids_where_label_ids_should_be_are_mapped_with_a_note(tmp_path: Path) -> None:
    frame(tmp_path, LABELS)
    index = read_cityscapes(tmp_path, "train")
    np.testing.assert_array_equal(index.labels(0, (2, 4)), LABELS)
    (note,) = index.notes
    assert note.startswith("the files named labelIds hold train ids (seen in gtFine/train/ulm/ulm_000000_19_")


def test_train_ids_without_any_void_pixel_are_known_by_what_they_show(tmp_path: Path) -> None:
    frame(tmp_path, [[0, 0, 0, 2], [2, 13, 8, 10]])
    index = read_cityscapes(tmp_path, "train")
    assert len(index.notes) == 1
    np.testing.assert_array_equal(index.labels(0, (2, 4)), [[0, 0, 0, 2], [2, 13, 8, 10]])


def test_label_ids_of_road_and_houses_alone_stay_label_ids(tmp_path: Path) -> None:
    frame(tmp_path, [[7, 7, 8, 11], [3, 0, 17, 11]])
    index = read_cityscapes(tmp_path, "train")
    assert index.notes == ()
    np.testing.assert_array_equal(index.labels(0, (2, 4)), [[0, 0, 1, 2], [VOID, VOID, 5, 2]])


def test_train_id_files_are_read_where_there_are_no_label_ids(tmp_path: Path) -> None:
    frame(tmp_path, LABELS, kind="labelTrainIds")
    index = read_cityscapes(tmp_path, "train")
    assert index.notes == ()
    np.testing.assert_array_equal(index.labels(0, (2, 4)), LABELS)
    frame(tmp_path, STREET)
    assert read_cityscapes(tmp_path, "train").origin(0).endswith("_labelIds.png")


def test_label_ids_in_files_named_for_train_ids_are_mapped_with_a_note(tmp_path: Path) -> None:
    frame(tmp_path, STREET, kind="labelTrainIds")
    index = read_cityscapes(tmp_path, "train")
    assert index.notes[0].startswith("the files named labelTrainIds hold label ids")
    np.testing.assert_array_equal(index.labels(0, (2, 4)), LABELS)


def test_files_of_both_kinds_are_refused_with_the_histogram(tmp_path: Path) -> None:
    frame(tmp_path, STREET, name="ulm/a")
    frame(tmp_path, LABELS, name="ulm/b")
    with pytest.raises(ValueError, match=r"b_gtFine_labelIds\.png has values that are no class\. Values and their "
                                         r"numbers of pixels: 0 x 2, .*, 255 x 2 \(unknown\)\. Known are: 0 void, .*"
                                         r"33 bicycle\. Label ids run from 0 to 33, train ids from 0 to 18"):
        read_cityscapes(tmp_path, "train").labels(1, (2, 4))


def test_a_value_of_neither_kind_is_refused(tmp_path: Path) -> None:
    frame(tmp_path, [[7, 34, 34, 26]])
    with pytest.raises(ValueError, match=r"7 x 1, 26 x 1, 34 x 2 \(unknown\)"):
        read_cityscapes(tmp_path, "train").labels(0, (1, 4))


def test_colour_pictures_are_refused(tmp_path: Path) -> None:
    frame(tmp_path, np.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match=r"labelIds\.png holds colours \(RGB\): a picture to look at"):
        read_cityscapes(tmp_path, "train")


def test_instance_ids_are_refused(tmp_path: Path) -> None:
    path = frame(tmp_path, STREET)
    Image.fromarray(np.full((2, 4), 26001, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits a pixel: does it hold instance ids"):
        read_cityscapes(tmp_path, "train")


def test_a_palette_with_the_ids_as_indices_is_read_and_one_in_another_order_refused(tmp_path: Path) -> None:
    path = frame(tmp_path, STREET)
    palette = np.zeros((256, 3), np.uint8)
    palette[list(CITYSCAPES.source_ids)] = CITYSCAPES.colours
    image = Image.fromarray(np.array(STREET, np.uint8))
    image.putpalette(palette.tobytes())
    image.save(path)
    np.testing.assert_array_equal(read_cityscapes(tmp_path, "train").labels(0, (2, 4)), LABELS)
    palette[[7, 26]] = palette[[26, 7]]
    image.putpalette(palette.tobytes())
    image.save(path)
    with pytest.raises(ValueError, match=r"palette index 7 for road, but shows it in the colour of car \(0, 0, 142\)"):
        read_cityscapes(tmp_path, "train").labels(0, (2, 4))


@pytest.mark.parametrize(("part", "message"), [
    ("gtFine", "leftImg8bit/train/ulm/b_leftImg8bit.png: an image without label map ("),
    ("leftImg8bit", "gtFine/train/ulm/b_gtFine_labelIds.png: a label map without image ("),
])  # fmt: skip
def test_missing_partners_are_faults(tmp_path: Path, part: str, message: str) -> None:
    frame(tmp_path, STREET, name="ulm/a")
    frame(tmp_path, STREET, name="ulm/b")
    next((tmp_path / part).rglob("b_*.png")).unlink()
    index = read_cityscapes(tmp_path, "train")
    (fault,) = index.faults
    assert str(fault).startswith(message)
    assert len(index) == 1


def test_a_broken_label_map_does_not_hide_the_others(tmp_path: Path) -> None:
    frame(tmp_path, STREET, name="ulm/a").write_bytes(b"no image")
    frame(tmp_path, STREET, name="ulm/b")
    index = read_cityscapes(tmp_path, "train")
    np.testing.assert_array_equal(index.labels(1, (2, 4)), LABELS)
    with pytest.raises(ValueError, match="it is no image of a known kind"):
        index.labels(0, (2, 4))


def test_a_split_without_files_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no images CITY/\*_leftImg8bit\.png in .*train"):
        read_cityscapes(tmp_path, "train")
    frame(tmp_path, STREET).unlink()
    with pytest.raises(FileNotFoundError, match=r"no label maps CITY/\*_gtFine_labelIds\.png in .*gtFine_trainvaltest"):
        read_cityscapes(tmp_path, "train")


def test_the_test_splits_dummies_are_never_read(tmp_path: Path) -> None:
    frame(tmp_path, STREET, split="test")
    with pytest.raises(ValueError, match="public for train and val, got 'test'"):
        read_cityscapes(tmp_path, "test")  # type: ignore[arg-type]


def test_frames_that_are_all_void_are_allowed_and_noted(tmp_path: Path) -> None:
    frame(tmp_path, [[0, 3, 1]])
    index = read_cityscapes(tmp_path, "train")
    assert "hold no class at all" in index.notes[0]
    np.testing.assert_array_equal(index.labels(0, (1, 3)), [[VOID] * 3])


def test_a_label_map_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    frame(tmp_path, STREET)
    index = read_cityscapes(tmp_path, "train")
    with pytest.raises(ValueError, match=r"_labelIds\.png is 2 x 4 \(height x width\), its image .*8bit\.png is 4 x 8"):
        index.labels(0, (4, 8))


def test_relabel_moves_labels_by_source_id_and_void_stays(tmp_path: Path) -> None:
    frame(tmp_path, STREET)
    index = read_cityscapes(tmp_path, "train")
    turned = Classes(CITYSCAPES.names[::-1], CITYSCAPES.source_ids[::-1], CITYSCAPES.colours[::-1])
    moved = index.relabel(turned)
    assert moved.classes == turned
    expected = np.where(np.array(LABELS) == VOID, VOID, 18 - np.array(LABELS))
    np.testing.assert_array_equal(moved.labels(0, (2, 4)), expected)
    np.testing.assert_array_equal(moved.relabel(CITYSCAPES).labels(0, (2, 4)), LABELS)
    np.testing.assert_array_equal(index.labels(0, (2, 4)), LABELS)
    with pytest.raises(ValueError, match="classes that are not asked for: 7 road, 8 sidewalk"):
        index.relabel(Classes(("car",), (26,)))


@pytest.mark.real
@pytest.mark.parametrize(("split", "number"), [("train", 46), ("val", 21)])
def test_real_frames(shared: Path, split: str, number: int) -> None:
    assert split in ("train", "val")
    index = read_cityscapes(shared / "data" / "cityscapes_mini", "train" if split == "train" else "val")
    assert (len(index), index.notes) == (number, ())
    for i in range(0, number, 7):
        stored = np.asarray(Image.open(index.origin(i)))
        labels = index.labels(i, index.size(i))
        assert index.image(i).shape == (360, 480, 3)
        for k, label_id in enumerate(CITYSCAPES.source_ids):
            np.testing.assert_array_equal(labels == k, stored == label_id)
