"""Instances as label maps: by hand, and VOC's classes against what torchvision's reference does."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detseg.data.coco import COCO_80
from detseg.data.coco_labels import (
    VOC_OF_COCO,
    CocoLabels,
    OutlineLabels,
    read_coco_labels,
    read_instances_labels,
    read_outline_labels,
)
from detseg.data.voc import VOC_21
from detseg.structures import VOID, Classes

PERSON, CAR, FORK = 1, 3, 48


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    """A rectangle's outline along the borders of pixels."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def write(folder: Path, *things: dict[str, Any], images: int = 1, categories: Classes = COCO_80) -> Path:
    """An annotation file of images of 6 x 8, the things in the first unless they say otherwise."""
    annotations = [{"id": i, "image_id": 1, "bbox": [0, 0, 1, 1], "area": 2000, "iscrowd": 0} | thing
                   for i, thing in enumerate(things, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in categories.used.items()],
    }))
    return path


def test_outlines_become_classes_and_what_two_claim_is_void(tmp_path: Path) -> None:
    index = read_coco_labels(write(
        tmp_path,
        {"category_id": PERSON, "segmentation": box(0, 0, 4, 4)},
        {"category_id": CAR, "segmentation": box(3, 2, 8, 4)},
        {"category_id": FORK, "segmentation": box(0, 0, 8, 6)},
    ), tmp_path / "images")
    assert index.classes == VOC_21
    p, c = VOC_21.names.index("person"), VOC_21.names.index("car")
    np.testing.assert_array_equal(index.labels(0, (6, 8)), [
        [p, p, p, p, 0, 0, 0, 0],
        [p, p, p, p, 0, 0, 0, 0],
        [p, p, p, VOID, c, c, c, c],
        [p, p, p, VOID, c, c, c, c],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ])  # fmt: skip


def test_crowds_are_void_in_either_form(tmp_path: Path) -> None:
    seen = np.zeros((6, 8), np.uint8)
    seen[1:3, 5:] = 1
    compressed = coco_mask.encode(np.asfortranarray(seen))["counts"].decode("ascii")
    index = read_coco_labels(write(
        tmp_path,
        {"category_id": PERSON, "segmentation": {"size": [6, 8], "counts": [0, 6, 42]}, "iscrowd": 1},
        {"category_id": CAR, "segmentation": {"size": [6, 8], "counts": compressed}, "iscrowd": 1},
        {"category_id": FORK, "segmentation": {"size": [6, 8], "counts": [48]}, "iscrowd": 1},
    ), tmp_path / "images")
    expected = np.zeros((6, 8))
    expected[:, 0] = expected[1:3, 5:] = VOID
    np.testing.assert_array_equal(index.labels(0, (6, 8)), expected)


def test_an_outline_of_several_parts_is_one_object(tmp_path: Path) -> None:
    parts = [*box(0, 0, 3, 2), *box(2, 0, 5, 2), [1.0, 1.0, 2.0, 2.0]]  # the last has two corners only
    index = read_coco_labels(write(tmp_path, {"category_id": PERSON, "segmentation": parts}), tmp_path / "images")
    assert index.notes[-1] == ("1 polygon of fewer than three corners beside others of the same object, which cover "
                               "nothing")
    expected = np.zeros((6, 8))
    expected[:2, :5] = 15
    np.testing.assert_array_equal(index.labels(0, (6, 8)), expected)


def test_an_image_without_objects_is_background(tmp_path: Path) -> None:
    path = write(tmp_path, {"category_id": CAR, "segmentation": box(0, 0, 8, 6)}, images=2)
    index = read_coco_labels(path, tmp_path / "images")
    assert len(index) == 2
    assert not index.labels(1, (6, 8)).any()
    assert index.path(1) == tmp_path / "images" / "1.jpg"
    assert index.origin(1) == f"from {tmp_path / 'instances.json'}"


def test_images_with_too_little_to_learn_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"category_id": CAR, "segmentation": box(0, 0, 1, 1), "area": 600},
        {"category_id": PERSON, "segmentation": box(0, 0, 1, 1), "area": 401},
        {"category_id": CAR, "segmentation": box(0, 0, 1, 1), "area": 1000, "image_id": 2},
        {"category_id": FORK, "segmentation": box(0, 0, 1, 1), "area": 5000, "image_id": 3},
        {"category_id": CAR, "segmentation": box(2, 0, 4, 2), "area": 1001, "image_id": 4},
        images=5,
    )
    index = read_coco_labels(path, tmp_path / "images", more_than=1000)
    assert index.image_ids.tolist() == [1, 4]
    assert index.notes[-1:] == ("3 of 5 images have at most 1000 pixels of VOC's classes and are left out",)
    assert index.labels(1, (6, 8)).nonzero()[1].tolist() == [2, 3, 2, 3]
    assert len(read_coco_labels(path, tmp_path / "images")) == 5
    with pytest.raises(ValueError, match=r"instances\.json: no image has more than 9999 pixels of VOC's classes"):
        read_coco_labels(path, tmp_path / "images", more_than=9999)


def test_relabel_goes_by_vocs_ids(tmp_path: Path) -> None:
    index = read_coco_labels(write(tmp_path, {"category_id": CAR, "segmentation": box(0, 0, 2, 6)},
                                   {"category_id": PERSON, "segmentation": box(1, 0, 2, 6)}), tmp_path / "images")
    turned = Classes(VOC_21.names[::-1], VOC_21.source_ids[::-1])
    assert index.relabel(turned).labels(0, (6, 8))[0].tolist() == [13, VOID, *[20] * 6]
    with pytest.raises(ValueError, match="classes that are not asked for: 0 background, 1 aeroplane"):
        index.relabel(Classes(("car",), (7,)))


def test_another_size_than_the_files_is_refused(tmp_path: Path) -> None:
    index = read_coco_labels(write(tmp_path), tmp_path / "images")
    with pytest.raises(ValueError, match=r"0\.jpg is 8 x 6 \(height x width\), .*instances\.json says 6 x 8"):
        index.labels(0, (8, 6))
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "images" / "0.jpg")
    with pytest.raises(ValueError, match=r"0\.jpg is 9 x 8 .*its label map from .*instances\.json is 6 x 8"):
        index.image(0)


def test_other_categories_than_cocos_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, categories=Classes(("person", "van"), (1, 3)))
    with pytest.raises(ValueError, match=r"its categories are not COCO's.*`read_instances_labels` takes the"):
        read_coco_labels(path, tmp_path / "images")


HALVES = np.zeros((6, 8), np.uint8)
HALVES[:, 4:] = 1
COMPRESSED = coco_mask.encode(np.asfortranarray(HALVES))["counts"].decode("ascii")


@pytest.mark.parametrize(("outline", "reason"), [
    ("runs", "is neither polygons"),
    ([0.0] * 6, "is neither polygons"),
    ([["x"] * 6], "polygon 1 of its 'segmentation' is no list of numbers"),
    ([[0, 0, 1, 1, 2, None]], "polygon 1 of its 'segmentation' is no list of numbers"),
    ([[0, 0, 1, 1, float("nan"), 2]], "polygon 1 of its 'segmentation' is no list of numbers"),
    ([[0, 0, 1, 1, 1e999, 2]], "polygon 1 of its 'segmentation' is no list of numbers"),
    ([*box(0, 0, 2, 2), [0, 0, 1, 1, 2, 2, 3]], "polygon 2 of its 'segmentation' has 7 numbers, an odd count"),
    ([[0, 0, 1, 1]], "has 4 numbers; a polygon has at least three corners, 6 numbers"),
    ({"size": [6, 8]}, "is neither polygons"),
    ({"counts": [48]}, "is neither polygons"),
    ({"size": [6, -8], "counts": [48]}, "is neither polygons"),
    ({"size": [6, 8], "counts": [47.5, 0.5]}, "is neither polygons"),
    ({"size": [6, 8], "counts": "\x01"}, "is neither polygons"),
    ({"size": [6, 8], "counts": "o" * 30}, "is neither polygons"),
    ({"size": [6, 8], "counts": [1, 2]}, "are for 3 pixels, its 'size' is 6 x 8, 48 pixels: are they damaged"),
    ({"size": [6, 8], "counts": [50, -2]}, "are they damaged"),
    ({"size": [6, 8], "counts": COMPRESSED[:-1]}, "are they damaged|is neither polygons"),
    ({"size": [8, 6], "counts": [48]}, r"are for an image of 8 x 6, its own is 6 x 8 \(height x width\)"),
    (None, "it has no 'segmentation'; label maps are drawn from outlines"),
    ([], "it has no 'segmentation'; label maps are drawn from outlines"),
])  # fmt: skip
@pytest.mark.parametrize("read", [read_coco_labels, read_instances_labels])
def test_images_with_a_broken_outline_are_left_out_and_named(
    tmp_path: Path, read: Callable[[Path, Path], OutlineLabels], outline: object, reason: str
) -> None:
    path = write(tmp_path, {"category_id": CAR, "segmentation": box(0, 0, 8, 6)},
                 {"category_id": CAR, "segmentation": outline, "image_id": 2},
                 {"category_id": CAR, "segmentation": box(0, 0, 2, 6), "image_id": 3}, images=3)
    index = read(path, tmp_path / "images")
    (fault,) = index.faults
    assert fault.where == f"{path}: annotation 2"
    assert re.search(reason, fault.reason)
    assert fault.reason.endswith(". Its image is left out")
    assert index.image_ids.tolist() == [1, 3]
    assert [int(index.labels(i, (6, 8)).astype(bool).sum()) for i in range(2)] == [48, 12]


def test_images_with_a_broken_annotation_are_left_out_too(tmp_path: Path) -> None:
    path = write(tmp_path, {"category_id": CAR, "segmentation": box(0, 0, 8, 6)},
                 {"category_id": 12, "segmentation": box(0, 0, 8, 6), "image_id": 2}, images=2)
    index = read_instances_labels(path, tmp_path / "images")
    assert [fault.where for fault in index.faults] == [f"{path}: annotation 2"]
    assert index.image_ids.tolist() == [1]
    assert index.notes[-1] == ("1 image is left out: an annotation of it is broken, and would be learned as background")
    path = write(tmp_path, {"category_id": 12})
    with pytest.raises(ValueError, match=r"(?s)no image can be used:\n.*annotation 1: it is of the unknown category"):
        read_instances_labels(path, tmp_path / "images")


def test_boxes_alone_are_not_enough(tmp_path: Path) -> None:
    path = write(tmp_path, {"category_id": CAR}, {"category_id": CAR, "segmentation": []}, {"category_id": FORK})
    with pytest.raises(ValueError, match=r"none of its 2 annotations has a 'segmentation'; .*boxes are not enough"):
        read_coco_labels(path, tmp_path / "images")


PLATES = Classes(("plate", "cup"), (3, 200))


def test_instances_have_their_own_classes_and_the_smaller_lies_on_top(tmp_path: Path) -> None:
    index = read_instances_labels(write(
        tmp_path,
        {"category_id": 3, "segmentation": box(2, 0, 4, 2)},
        {"category_id": 200, "segmentation": {"size": [6, 8], "counts": [0, 30, 18]}},
        {"category_id": 3, "segmentation": {"size": [6, 8], "counts": COMPRESSED}, "iscrowd": 1},
        {"category_id": 200, "segmentation": box(7, 4, 8, 6)},
        {"category_id": 3, "segmentation": box(7, 4, 8, 6)},
        categories=PLATES,
    ), tmp_path / "images")
    assert (index.classes.names, index.classes.source_ids) == (("background", "plate", "cup"), (0, 3, 200))
    v = VOID
    np.testing.assert_array_equal(index.labels(0, (6, 8)), [
        [2, 2, 1, 1, 2, v, v, v],
        [2, 2, 1, 1, 2, v, v, v],
        [2, 2, 2, 2, 2, v, v, v],
        [2, 2, 2, 2, 2, v, v, v],
        [2, 2, 2, 2, 2, v, v, 1],
        [2, 2, 2, 2, 2, v, v, 1],
    ])  # fmt: skip
    turned = Classes(("cup", "background", "plate"), (200, 0, 3))
    assert index.relabel(turned).labels(0, (6, 8))[0].tolist() == [0, 0, 2, 2, 0, v, v, v]


def test_the_classes_are_vocs_where_the_categories_are_cocos(tmp_path: Path) -> None:
    things = [{"category_id": 3, "segmentation": box(0, 0, 8, 6), "area": area, "image_id": i}
              for i, area in ((1, 1000), (2, 1001))]
    index = read_outline_labels(write(tmp_path, *things, images=2), tmp_path / "images", more_than=1000)
    assert (index.classes, index.image_ids.tolist()) == (VOC_21, [2])
    path = write(tmp_path, *things, images=2, categories=PLATES)
    own = read_outline_labels(path, tmp_path / "images", more_than=1000)
    assert (own.classes.names, own.image_ids.tolist()) == (("background", "plate", "cup"), [1, 2])


def test_an_image_without_instances_is_background(tmp_path: Path) -> None:
    path = write(tmp_path, {"category_id": 3, "segmentation": box(0, 0, 8, 6)}, images=2, categories=PLATES)
    assert not read_instances_labels(path, tmp_path / "images").labels(1, (6, 8)).any()


@pytest.mark.parametrize(("categories", "names", "ids"), [
    (Classes(("cup", "plate"), (0, 1)), ("background", "cup", "plate"), (0, 1, 2)),
    (Classes(("cup", "plate"), (7, 255)), ("background", "cup", "plate"), (0, 1, 2)),
    (Classes(("Background", "plate"), (0, 4)), ("background", "plate"), (0, 4)),
])  # fmt: skip
def test_classes_of_instances_fit_a_label_map(
    tmp_path: Path, categories: Classes, names: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    first, last = categories.source_ids
    path = write(tmp_path, {"category_id": last, "segmentation": box(0, 0, 2, 6)},
                 {"category_id": first, "segmentation": box(4, 0, 8, 6)}, categories=categories)
    index = read_instances_labels(path, tmp_path / "images")
    assert (index.classes.names, index.classes.source_ids) == (names, ids)
    shown = len(names) - 2
    assert index.labels(0, (6, 8))[0].tolist() == [shown + 1] * 2 + [0] * 2 + [shown] * 4


def test_more_categories_than_a_label_map_holds_are_refused(tmp_path: Path) -> None:
    many = Classes(tuple(map(str, range(255))), tuple(range(1, 256)))
    with pytest.raises(ValueError, match="has 255 categories; a label map has room for 254 and background"):
        read_instances_labels(write(tmp_path, categories=many), tmp_path / "images")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_compressed_runs_are_read_as_pycocotools_does(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    rng = np.random.default_rng(seed)
    shown = (rng.random((6, 8)) < rng.random()).astype(np.uint8)
    shown[0, 0] |= not shown.any()
    counts = coco_mask.encode(np.asfortranarray(shown))["counts"].decode("ascii")
    path = write(folder, {"category_id": 3, "segmentation": {"size": [6, 8], "counts": counts}}, categories=PLATES)
    np.testing.assert_array_equal(read_instances_labels(path, folder / "images").labels(0, (6, 8)), shown)


def as_torchvision(coco: COCO, image: dict[str, Any]) -> Any:
    """references/segmentation/coco_utils.py: FilterAndRemapCocoCategories and ConvertCocoPolysToMask."""
    annotations = [a for a in coco.imgToAnns[image["id"]] if a["category_id"] in VOC_OF_COCO]
    target = np.zeros((image["height"], image["width"]), np.int64)
    if annotations:
        masks = np.stack([coco.annToMask(annotation) for annotation in annotations])
        labels = np.array([VOC_OF_COCO[annotation["category_id"]] for annotation in annotations])
        target = (masks * labels[:, None, None]).max(axis=0)
        target[masks.sum(axis=0) > 1] = VOID
        for annotation, seen in zip(annotations, masks, strict=True):  # the one difference
            target[(seen > 0) & bool(annotation["iscrowd"])] = VOID
    return target


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images_are_torchvisions_label_maps(shared: Path, split: str) -> None:
    folder = shared / "data" / "coco_mini"
    path = folder / "annotations" / f"instances_{split}2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    index = read_coco_labels(path, folder / f"{split}2017")
    assert isinstance(index, CocoLabels)
    for i, image_id in enumerate(index.image_ids.tolist()):
        np.testing.assert_array_equal(index.labels(i, index.size(i)), as_torchvision(coco, coco.imgs[image_id]))


@pytest.mark.real
def test_what_the_real_images_show(shared: Path) -> None:
    folder = shared / "data" / "coco_mini"
    index = read_coco_labels(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    shown = np.sum([np.bincount(index.labels(i, index.size(i)).ravel(), minlength=256)[:21] > 0
                    for i in range(len(index))], axis=0)
    assert len(index) == 84
    assert [name for name, number in zip(VOC_21.names, shown, strict=True) if not number] == ["cow"]
    assert shown[VOC_21.names.index("person")] == 43
    for i in (0, 40, 83):
        assert index.image(i).shape[:2] == index.size(i)
