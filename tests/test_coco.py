"""COCO's annotation files to arrays and back, and every way in which such a file can be wrong."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.box_index import BoxIndex
from detseg.data.coco import COCO_80, COCO_90, coco_annotations, coco_images, read_coco
from detseg.metrics.coco_ap import CocoAP
from detseg.structures import ImageDetections

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 70, "file_name": "b.jpg", "height": 100, "width": 200},
        {"id": 5, "file_name": "größe/a.jpg", "height": 50, "width": 40},
        {"id": 6, "file_name": "c.jpg", "height": 60, "width": 30},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 6, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 11.5, "iscrowd": 0},
        {"id": 2, "image_id": 70, "category_id": 3, "bbox": [10.5, 20, 30, 40], "area": 900, "iscrowd": 0},
        {"id": 3, "image_id": 6, "category_id": 3, "bbox": [5, 5, 20, 50], "area": 1000, "iscrowd": 1},
    ],
}


def read(content: Any, folder: Path) -> BoxIndex:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_coco(path, folder / "images")


def with_boxes(*boxes: list[float]) -> dict[str, Any]:
    """One image of 50 x 40 (height x width) with these boxes, ids from 11."""
    rows = [
        {"id": 11 + i, "image_id": 5, "category_id": 3, "bbox": box, "area": 1, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    return {"images": [CONTENT["images"][1]], "categories": [CONTENT["categories"][1]], "annotations": rows}


def test_coco_has_80_categories_with_gaps() -> None:
    assert (len(COCO_80), COCO_80.source_ids[0], COCO_80.source_ids[-1]) == (80, 1, 90)
    assert [COCO_80.names[k] for k in (0, 11, 79)] == ["person", "stop sign", "toothbrush"]
    assert COCO_80.source_ids[11] == 13


def test_coco_90_has_a_slot_for_every_id() -> None:
    assert COCO_90.source_ids == tuple(range(1, 91))
    unused = [i for i in COCO_90.source_ids if COCO_90.names[i - 1] == f"unused {i}"]
    assert unused == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert COCO_90.used == COCO_80.used


def test_the_layout_is_cocos() -> None:
    assert coco_annotations(Path("d"), "val") == Path("d/annotations/instances_val2017.json")
    assert coco_images(Path("d"), "train") == Path("d/train2017")


def test_annotations_are_grouped_by_image_in_the_files_order(tmp_path: Path) -> None:
    index = read(CONTENT, tmp_path)
    assert len(index) == 3
    assert index.classes.names == ("cat", "dog")
    assert index.classes.source_ids == (3, 9)
    assert index.image_ids.tolist() == [70, 5, 6]
    assert index.sizes.tolist() == [[100, 200], [50, 40], [60, 30]]
    assert [index.size(i) for i in range(3)] == [(100, 200), (50, 40), (60, 30)]
    assert index.path(1) == tmp_path / "images" / "größe" / "a.jpg"
    assert index.offsets.tolist() == [0, 1, 1, 3]
    assert index.annotation_ids.tolist() == [2, 1, 3]
    assert index.boxes.tolist() == [[10.5, 20, 30, 40], [1, 2, 3, 4], [5, 5, 20, 50]]
    assert index.labels.tolist() == [0, 1, 0]
    assert index.crowd.tolist() == [False, False, True]
    assert index.areas.tolist() == [900, 11.5, 1000]
    assert index.notes == ()


def test_only_arrays_grow_with_the_data(tmp_path: Path) -> None:
    index = read(CONTENT, tmp_path)
    kinds = {name: value.dtype.name for name, value in vars(index).items() if isinstance(value, np.ndarray)}
    assert kinds == {
        "image_ids": "int64", "sizes": "int32", "name_bytes": "uint8", "name_offsets": "int64", "offsets": "int64",
        "boxes": "float64", "labels": "int32", "crowd": "bool", "areas": "float64", "annotation_ids": "int64",
    }  # fmt: skip
    assert vars(index).keys() - kinds.keys() == {"classes", "folder", "notes", "faults", "outlines"}


def test_targets_are_corners(tmp_path: Path) -> None:
    found = read(CONTENT, tmp_path).targets(2)
    assert found.boxes.dtype == np.float32
    assert found.boxes.tolist() == [[1, 2, 4, 6], [5, 5, 25, 55]]
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [1, 0]
    assert found.crowd.dtype == np.bool_
    assert found.crowd.tolist() == [False, True]


def test_an_image_without_objects_has_empty_targets(tmp_path: Path) -> None:
    found = read(CONTENT, tmp_path).targets(1)
    assert [found.boxes.shape, found.labels.shape, found.crowd.shape] == [(0, 4), (0,), (0,)]
    nothing = read({**CONTENT, "annotations": []}, tmp_path)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.targets(0).boxes.shape == (0, 4)
    assert nothing.coco_ground_truth()["annotations"] == []


def test_boxes_that_cannot_be_learned_are_noted_and_kept_for_the_metric(tmp_path: Path) -> None:
    index = read(with_boxes([1, 1, 0, 5], [1, 1, 5, 0], [40, 0, 9, 9], [-9, 3, 4, 4], [1, 2, 3, 4]), tmp_path)
    assert index.notes == (
        "2 boxes of no area, not trained on (annotation ids: 11 in größe/a.jpg, 12 in größe/a.jpg)",
        "2 boxes outside the image, not trained on (annotation ids: 13 in größe/a.jpg, 14 in größe/a.jpg)",
    )
    assert index.targets(0).boxes.tolist() == [[1, 2, 4, 6]]
    assert [row["bbox"] for row in index.coco_ground_truth()["annotations"]][:2] == [[1, 1, 0, 5], [1, 1, 5, 0]]


def test_boxes_are_clipped_and_only_far_ones_noted(tmp_path: Path) -> None:
    index = read(with_boxes([-0.5, 1, 41, 49.6], [30, -5, 20, 10]), tmp_path)
    assert index.targets(0).boxes.tolist() == [[0, 1, 40, 50], [30, 0, 40, 5]]
    assert index.notes == (
        "1 box more than 1 pixel beyond the image's edge, clipped for training (annotation ids: 12 in größe/a.jpg)",
    )


def test_a_long_note_is_cut(tmp_path: Path) -> None:
    (note,) = read(with_boxes([1, 2, 3, 4], *[[1.0, 1.0, 0.0, 0.0]] * 7), tmp_path).notes
    assert note.endswith("16 in größe/a.jpg and 2 more)")


def test_crowd_and_area_may_be_absent_and_this_is_noted(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    del content["annotations"][2]["iscrowd"]
    del content["annotations"][0]["area"]
    del content["annotations"][1]["area"]
    index = read(content, tmp_path)
    assert index.crowd.tolist() == [False, False, False]
    assert index.areas.tolist() == [1200, 12, 1000]
    assert index.notes == (
        "1 of 3 annotations have no 'iscrowd', taken as 0",
        "2 of 3 annotations have no 'area', taken as the area of its box",
    )


def test_select_keeps_the_order_asked_for(tmp_path: Path) -> None:
    some = read(CONTENT, tmp_path).select([2, 1])
    assert some.image_ids.tolist() == [6, 5]
    assert some.path(0).name == "c.jpg"
    assert some.annotation_ids.tolist() == [1, 3]
    assert some.offsets.tolist() == [0, 2, 2]
    assert some.sizes.tolist() == [[60, 30], [50, 40]]
    assert len(some.select([])) == 0


def test_select_notes_only_what_it_selected(tmp_path: Path) -> None:
    index = read(with_boxes([1, 1, 0, 5], [1, 2, 3, 4]), tmp_path)
    assert index.select([0]).notes == index.notes
    assert index.select([]).notes == ()


@pytest.mark.parametrize("i", [-1, 3])
def test_positions_outside_are_errors(tmp_path: Path, i: int) -> None:
    index = read(CONTENT, tmp_path)
    for ask in (index.path, index.size, index.targets, lambda i: index.select([i])):
        with pytest.raises(IndexError, match=f"image {i} of a data set of 3; positions run from 0 to 2"):
            ask(i)


def test_it_survives_pickling(tmp_path: Path) -> None:
    index = read(CONTENT, tmp_path)
    again = pickle.loads(pickle.dumps(index))
    assert again.coco_ground_truth() == index.coco_ground_truth()


def changed(where: str, place: int, **values: Any) -> dict[str, Any]:
    """The content with some values of one record replaced; None removes a key."""
    content = copy.deepcopy(CONTENT)
    for key, value in values.items():
        if value is None:
            del content[where][place][key]
        else:
            content[where][place][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n{"id": 1,}', r"broken JSON at line 2, column 10: .*Was the download or the export cut short"),
        ("", r"broken JSON at line 1, column 1"),
        ("[" * 100_000, r"its lists lie too deep in each other"),
        ([], r"has no list of 'images'; detection needs COCO's instances_\*\.json"),
        ({"images": [], "categories": []}, r"has no list of 'annotations'"),
        ({"images": {}, "annotations": [], "categories": []}, r"has no list of 'images'"),
        ({"images": [], "annotations": [], "categories": []}, r"'images' is empty"),
        ({**CONTENT, "images": [1]}, r"no image can be used:\n.*image number 1: it has no 'id'"),
        ({**CONTENT, "categories": []}, r"'categories' is empty; a data set needs at least one class"),
        ({**CONTENT, "categories": [{"id": 3}]}, r"no category can be used:\n  category 3: it has no 'name'"),
        (changed("categories", 0, name="unused"), r"begins with 'unused' marks a class without objects; rename"),
    ],
)
def test_of_what_cannot_be_read_at_all_the_reason_is_said(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"(?s)instances\.json: .*{message}"):
        read(content, tmp_path)


HUGE = 10**400
"""A number that not even a float holds."""


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        (changed("images", 1, id=None), "image number 2", "it has no 'id'"),
        (changed("images", 1, id=[5]), "image number 2", r"its id \[5\] is no whole number and no text"),
        (changed("images", 1, id=1.5), "image 1.5", r"its id 1\.5 is no whole number and no text"),
        (changed("images", 1, id=True), "image True", "its id True is no whole number and no text"),
        (changed("images", 1, id=2**63), "image 9223372036854775808", "its id 9223372036854775808 is no whole number"),
        (changed("images", 1, id=HUGE), f"image {HUGE}", "its id 10+ is no whole number"),
        (changed("images", 1, file_name=None), "image 5", "it has no 'file_name'; name its file"),
        (changed("images", 1, file_name=3), "image 5", "it has the file_name 3, which is no text"),
        (changed("images", 1, height=-4), "image 5", r"it is -4 x 40 pixels large \(height x width\); write its"),
        (changed("images", 1, width="wide"), "image 5", "it is 50 x 'wide' pixels large"),
        (changed("images", 1, width=40.5), "image 5", r"it is 50 x 40\.5 pixels large"),
        (changed("images", 1, width=2**40), "image 5", "it is 50 x 1099511627776 pixels large"),
        (changed("images", 1, width=None), "image 5",
         "it has no 'width' and 'height', and its file does not tell them: no image a.jpg in .*: the folder does not"),
        (changed("images", 1, file_name="c.jpg"), "image 6", "its file c.jpg is that of image 5 too; list each file o"),
        (changed("annotations", 1, image_id=71), "annotation 2", "it is of the unknown image 71; add it to 'images'"),
        (changed("annotations", 1, image_id=None), "annotation 2", "it has no 'image_id'"),
        (changed("annotations", 1, image_id="x"), "annotation 2", "it is of the unknown image 'x'"),
        (changed("annotations", 1, category_id=4), "annotation 2", "it is of the unknown category 4; add it to 'categ"),
        (changed("annotations", 1, category_id=None), "annotation 2", "it has no 'category_id'"),
        (changed("annotations", 1, bbox=None), "annotation 2", "it has no 'bbox', and no outline that would tell it"),
        (changed("annotations", 1, bbox=[]), "annotation 2", "it has no 'bbox', and no outline that would tell it"),
        (changed("annotations", 1, bbox=[1, 2, 3]), "annotation 2", r"its bbox is \[1, 2, 3\]; it must be \[x, y, w"),
        (changed("annotations", 1, bbox=7), "annotation 2", "its bbox is 7; it must be"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), "annotation 2", "its bbox is .*must be finite n"),
        (changed("annotations", 1, bbox=[1, 2, float("-inf"), 4]), "annotation 2", "its bbox is .*must be finite n"),
        (changed("annotations", 1, bbox=[1, 2, HUGE, 4]), "annotation 2", "its bbox is .*must be finite numbers"),
        (changed("annotations", 1, bbox=[1, 2, "wide", 4]), "annotation 2", r"'wide', 4\]; its four entries must be"),
        (changed("annotations", 1, bbox=[1, 2, -3, 4]), "annotation 2",
         r"its bbox is \[1\.0, 2\.0, -3\.0, 4\.0\], of negative width or height"),
        (changed("annotations", 1, area=float("nan")), "annotation 2", "its area is 'NaN'; it must be a finite number"),
        (changed("annotations", 1, area=-5), "annotation 2", "its area is -5; an area is not negative"),
        (changed("annotations", 1, iscrowd=2), "annotation 2", "its iscrowd is 2; it must be 0 or 1"),
        (changed("annotations", 1, iscrowd="no"), "annotation 2", "its iscrowd is 'no'; it must be a finite number"),
    ],
)
def test_a_broken_record_is_left_out_and_named(content: Any, where: str, reason: str, tmp_path: Path) -> None:
    index = read(content, tmp_path)
    (fault,) = index.faults
    assert fault.where == f"{tmp_path / 'instances.json'}: {where}"
    assert re.search(reason, fault.reason)
    records = {key: [row["id"] for row in index.coco_ground_truth()[key]] for key in ("images", "annotations")}
    kind = "images" if where.startswith("image") else "annotations"
    broken = 6 if reason.startswith("its file") else 5 if kind == "images" else 2
    of_image = {1, 3} if broken == 6 else set()
    assert records["images"] == [i for i in (70, 5, 6) if kind == "annotations" or i != broken]
    assert set(records["annotations"]) == {1, 2, 3} - (of_image if kind == "images" else {2})


def test_what_goes_with_a_broken_image_is_counted(tmp_path: Path) -> None:
    index = read(changed("images", 2, file_name=None), tmp_path)
    (fault,) = index.faults
    assert fault.reason == "it has no 'file_name'; name its file (its 2 annotations left out with it)"
    assert index.annotation_ids.tolist() == [2]


def test_a_file_that_is_listed_twice_loses_the_second_with_its_boxes(tmp_path: Path) -> None:
    (fault,) = read(changed("images", 2, file_name="b.jpg"), tmp_path).faults
    assert fault.reason == ("its file b.jpg is that of image 70 too; list each file once (its 2 annotations left out "
                            "with it)")


def test_every_broken_record_is_named(tmp_path: Path) -> None:
    content = with_boxes([1], [2], [3, 4, 5, 6], [7, 8])
    content["annotations"][2]["image_id"] = 77
    content["images"].append({"id": 8})
    index = read(content, tmp_path)
    name = tmp_path / "instances.json"
    broken = ("image 8", "annotation 11", "annotation 12", "annotation 13", "annotation 14")
    assert [fault.where for fault in index.faults] == [f"{name}: {record}" for record in broken]
    assert (len(index), len(index.boxes)) == (1, 0)


def test_images_of_one_id_are_broken_unless_they_repeat(tmp_path: Path) -> None:
    index = read(changed("images", 1, id=70), tmp_path)
    assert [fault.where.split(": ")[1] for fault in index.faults] == ["image 70", "image 70"]
    assert index.faults[0].reason == ("its id stands 2 times in 'images', b.jpg, größe/a.jpg; give each an id of its "
                                      "own (its 1 annotation left out with it)")
    assert (index.image_ids.tolist(), index.annotation_ids.tolist()) == ([6], [1, 3])
    again = read({**CONTENT, "images": CONTENT["images"] * 2}, tmp_path)
    assert (again.image_ids.tolist(), again.faults) == ([70, 5, 6], ())
    assert again.notes == ("3 records of images repeated, with the same id, file and size; each taken once",)


def test_ids_may_be_written_in_any_form(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["images"][0] |= {"id": "70", "height": 100.0, "width": "200"}
    content["categories"][0]["id"] = 9.0
    for row in content["annotations"]:
        row |= {"id": f" {row['id']}", "image_id": float(row["image_id"]), "category_id": str(row["category_id"])}
    content["annotations"][1] |= {"bbox": ["10.5", 20, "3e1", 40], "area": "900", "iscrowd": "0"}
    content["annotations"][2]["iscrowd"] = True
    index = read(content, tmp_path)
    assert index.faults == ()
    assert index.coco_ground_truth() == read(CONTENT, tmp_path).coco_ground_truth()
    assert index.notes == (
        "numbers in quotes, or whole ones with a decimal point, taken as numbers: 'height' of 1 image, 'width' of 1 "
        "image, 'id' of 1 image, 'bbox' of 1 annotation, 'area' of 1 annotation, 'iscrowd' of 1 annotation, 'id' of 1 "
        "category, 'category_id' of 3 annotations, 'image_id' of 3 annotations, 'id' of 3 annotations",
    )


def test_ids_of_images_may_be_texts(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    text = {70: "3f2a-bb", 5: "größe/a", 6: 7}
    for image in content["images"]:
        image["id"] = text[image["id"]]
    for row in content["annotations"]:
        row["image_id"] = text[row["image_id"]]
    content["annotations"][0]["image_id"] = "7"
    index = read(content, tmp_path)
    assert (index.image_ids.tolist(), index.annotation_ids.tolist(), index.faults) == ([1, 2, 3], [2, 1, 3], ())
    assert index.notes == ("image ids are texts, such as '3f2a-bb'; numbered from 1 in the file's order",)


def test_ids_of_18_digits_are_kept_and_scored(tmp_path: Path) -> None:
    base = 202511251430000000
    content = copy.deepcopy(CONTENT)
    for image in content["images"]:
        image["id"] += base
    for row in content["annotations"]:
        row |= {"image_id": row["image_id"] + base, "id": row["id"] + base}
    index = read(content, tmp_path)
    assert (index.image_ids.tolist(), index.faults, index.notes) == ([base + i for i in (70, 5, 6)], (), ())
    metric = CocoAP(index)
    for i, image_id in enumerate(index.image_ids.tolist()):
        boxes, labels, _ = index.targets(i)
        metric.update([ImageDetections(image_id, torch.from_numpy(boxes), torch.ones(len(boxes)),
                                       torch.from_numpy(labels))])
    assert metric.compute()["AP"] == pytest.approx(1)


@pytest.mark.parametrize(("ids", "why"), [
    ([None, None, None], "3 annotations without an 'id' that is a number"),
    (["a", 2, 3], "1 annotation without an 'id' that is a number"),
    ([4, 4, 9], "1 id given more than once"),
])  # fmt: skip
def test_annotations_are_numbered_where_their_ids_do_not_do(tmp_path: Path, ids: list[Any], why: str) -> None:
    content = copy.deepcopy(CONTENT)
    for row, annotation_id in zip(content["annotations"], ids, strict=True):
        row["id"] = annotation_id
        if annotation_id is None:
            del row["id"]
    index = read(content, tmp_path)
    assert (index.annotation_ids.tolist(), index.faults) == ([2, 1, 3], ())
    assert index.notes == (f"annotations are numbered anew, from 1 in the file's order: {why}",)


def test_annotations_that_repeat_are_taken_once(tmp_path: Path) -> None:
    index = read({**CONTENT, "annotations": CONTENT["annotations"] * 2}, tmp_path)
    assert index.annotation_ids.tolist() == [2, 1, 3]
    assert index.notes == ("3 annotations repeated, with the same id, image, category and box; taken once",)


SQUARE = [[5, 6, 15, 6, 15, 26, 5, 26]]


@pytest.mark.parametrize("outline", [
    SQUARE, [[5, 6, 15, 6, 15, 20], [5, 20, 15, 26, 5, 26]],
    {"size": [100, 200], "counts": [5 * 100 + 6, *[20, 80] * 9, 20, 74 + 100 * 185]},
])  # fmt: skip
@pytest.mark.parametrize("bbox", ["absent", None, []])
def test_a_box_may_come_from_the_outline(tmp_path: Path, outline: Any, bbox: Any) -> None:
    content = changed("annotations", 1, segmentation=outline)
    content["annotations"][1]["bbox"] = bbox
    if bbox == "absent":
        del content["annotations"][1]["bbox"]
    index = read(content, tmp_path)
    assert index.boxes[0].tolist() == [5, 6, 10, 20]
    assert index.notes == ("1 of 3 annotations have no 'bbox', taken as the box of its outline",)


@pytest.mark.parametrize("outline", [
    [], [[]], [[1, 2, "x", 4]], "x", {"size": [9, 9]}, {"size": [2, 2], "counts": [4]},
])  # fmt: skip
def test_a_broken_outline_tells_no_box(tmp_path: Path, outline: Any) -> None:
    (fault,) = read(changed("annotations", 1, bbox=None, segmentation=outline), tmp_path).faults
    assert fault.reason == "it has no 'bbox', and no outline that would tell it"


def test_nulls_are_as_if_absent(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for row in content["annotations"]:
        row |= {"iscrowd": None, "area": None, "segmentation": None}
    index = read(content, tmp_path)
    assert (index.areas.tolist(), index.crowd.tolist()) == ([1200, 12, 1000], [False] * 3)
    assert index.faults == ()
    assert index.notes == (
        "3 of 3 annotations have no 'iscrowd', taken as 0",
        "3 of 3 annotations have no 'area', taken as the area of its box",
    )


def categories(*rows: tuple[int, str, str | None], used: tuple[int, ...]) -> dict[str, Any]:
    """Categories (id, name, supercategory) with a box for each of the ids that are used."""
    content = with_boxes(*[[1.0, 2.0, 3.0, 4.0]] * len(used))
    for row, category_id in zip(content["annotations"], used, strict=True):
        row["category_id"] = category_id
    listed = [{"id": i, "name": name, "supercategory": above} for i, name, above in rows]
    return {**content, "categories": listed}


@pytest.mark.parametrize("above", ["none", "", None])
@pytest.mark.parametrize("root", ["plates-abc1", "plate"])
def test_the_root_of_an_export_is_left_out(tmp_path: Path, root: str, above: str | None) -> None:
    index = read(categories((0, root, above), (1, "plate", root), (2, "cup", root), used=(1, 2)), tmp_path)
    assert index.classes.used == {1: "plate", 2: "cup"}
    assert index.labels.tolist() == [0, 1]
    assert index.notes == (f"category 0 {root!r} is left out: no annotation has it, and it is the supercategory of all "
                           "others, as exports list the data set itself",)


def test_a_root_with_boxes_and_one_of_few_stay(tmp_path: Path) -> None:
    assert len(read(categories((0, "dog", "none"), (1, "pug", "dog"), used=(0, 1)), tmp_path).classes) == 2
    index = read(categories((0, "dog", "none"), (1, "pug", "dog"), (2, "cat", "none"), used=(1, 2)), tmp_path)
    assert len(index.classes) == 3
    assert index.notes == ("1 of 3 categories have no box: dog",)


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    index = read(categories((7, "cat", "pet"), (3, " cat ", None), (4, "dog", "pet"), used=(7, 3, 4)), tmp_path)
    assert index.classes.used == {4: "dog", 7: "cat"}
    assert index.labels.tolist() == [1, 1, 0]
    assert index.notes == ("categories 7 and 3 have the same name 'cat' and are taken as one class",)


def test_one_name_for_two_things_is_refused(tmp_path: Path) -> None:
    index = read(categories((1, "bat", "animal"), (2, "bat", "sports"), used=(1, 2, 2)), tmp_path)
    (fault,) = index.faults
    assert fault.where.endswith(": category 2")
    assert fault.reason == (
        "its name 'bat' is also that of category 1, below 'animal' there and below 'sports' here: rename one of them "
        "if they are different things, or give both the same 'supercategory' to make one class of them (its 2 "
        "annotations left out with it)")
    assert index.labels.tolist() == [0]
    assert read(categories((1, "bat", "animal"), (2, "bat", "sports"), used=(1,)), tmp_path).faults == ()


def test_one_id_for_two_categories_is_refused(tmp_path: Path) -> None:
    index = read(categories((1, "bat", None), (1, "cat", None), (2, "dog", None), used=(1, 2)), tmp_path)
    assert [str(fault).rpartition("instances.json: ")[2] for fault in index.faults] == [
        "category 1: its id is that of 'bat' and of 'cat'; give each category an id of its own (its 1 annotation left "
        "out with it)",
        "category 1: its id is that of 'bat' and of 'cat'; give each category an id of its own",
    ]
    assert index.classes.names == ("dog",)
    assert read(categories((1, "bat", None), (1, "bat", None), used=(1,)), tmp_path).classes.names == ("bat",)


@pytest.mark.parametrize("name", [None, "", ["dog"]])
def test_a_category_without_a_name_is_broken(tmp_path: Path, name: Any) -> None:
    content = categories((1, name, None), (2, "dog", None), used=(1, 2))
    (fault,) = read(content, tmp_path).faults
    assert re.search(r"it has no 'name'|which is no text", fault.reason)
    assert fault.reason.endswith("(its 1 annotation left out with it)")


def test_category_0_and_numbers_as_names(tmp_path: Path) -> None:
    content = categories((0, "cat", None), (1, "x", None), used=(0, 1))
    content["categories"][1]["name"] = 7
    index = read(content, tmp_path)
    assert (index.classes.names, index.labels.tolist(), index.faults) == (("cat", "7"), [0, 1], ())


def save(path: Path, height: int, width: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, **options)


def test_sizes_are_read_from_the_images(tmp_path: Path) -> None:
    said: list[dict[str, int | None]] = [
        {}, {"height": None, "width": None}, {"height": 0, "width": 0}, {"height": 9}, {"height": 8, "width": 12}]
    images = [{"id": i, "file_name": f"{i}.jpg", **sizes} for i, sizes in enumerate(said)]
    turned = Image.Exif()
    turned[0x0112] = 6
    for i in range(5):
        save(tmp_path / "images" / f"{i}.jpg", 8, 12, **({"exif": turned} if i == 1 else {}))
    index = read({**CONTENT, "images": images, "annotations": []}, tmp_path)
    assert index.sizes.tolist() == [[8, 12], [12, 8], [8, 12], [8, 12], [8, 12]]
    assert "4 of 5 images have no 'width' and 'height'; read from their files" in index.notes
    (tmp_path / "images" / "2.jpg").write_bytes(b"no image")
    (fault,) = read({**CONTENT, "images": images, "annotations": []}, tmp_path).faults
    assert fault.where.endswith(": image 2")
    assert re.search(r"its file does not tell them: cannot read the image .*2\.jpg: it is no image", fault.reason)


def test_images_are_found_under_other_names_and_those_that_are_not_are_named(tmp_path: Path) -> None:
    listed = ["train\\a.JPG", "https://x.org/files/b.jpg?size=full", "gone.jpg"]
    for name in ("train/a.jpg", "b.jpg"):
        save(tmp_path / "images" / name, 8, 12)
    images = [{"id": i, "file_name": name, "height": 8, "width": 12} for i, name in enumerate(listed)]
    images.append({"id": 3, "coco_url": "https://x.org/%C3%BC%20d.jpg", "height": 8, "width": 12})
    save(tmp_path / "images" / "ü d.jpg", 8, 12)
    index = read({**CONTENT, "images": images, "annotations": []}, tmp_path)
    found = [index.path(i).relative_to(tmp_path / "images").as_posix() for i in range(3)]
    assert found == ["train/a.jpg", "b.jpg", "ü d.jpg"]
    (fault,) = index.faults
    assert fault.where.endswith(": image 2")
    assert "there is no file 'gone.jpg'" in fault.reason
    with pytest.raises(ValueError, match=r"none of its 1 images can be used; of the first, there is no file 'gone"):
        read({**CONTENT, "images": images[2:3], "annotations": []}, tmp_path)


def test_boxes_in_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shares of the image: no number of any bbox is above 0\.75; COCO's are pix"):
        read(with_boxes([0.1, 0.25, 0.5, 0.75], [0.1, 0.1, 0.2, 0.2]), tmp_path)
    assert len(read(with_boxes([0.1, 0.25, 0.5, 0.75], [0.1, 0.1, 2, 0.2]), tmp_path).boxes) == 2
    assert len(read(with_boxes([0, 0, 1, 1]), tmp_path).boxes) == 1, "one pixel, as a program writes it"


def test_boxes_that_look_like_corners_are_a_loud_note(tmp_path: Path) -> None:
    notes = read(with_boxes([20, 30, 35, 45], [10, 10, 38, 48], [0, 0, 9, 9]), tmp_path).notes
    assert notes[0] == ("DO THE BOXES HOLD CORNERS? 2 of 3 reach beyond their image as [x, y, width, height], which "
                        "COCO's are, and none would as [x1, y1, x2, y2]")
    assert "CORNERS" not in read(with_boxes([20, 30, 35, 45], [10, 10, 8, 8], [0, 0, 9, 9]), tmp_path).notes[0]
    assert "CORNERS" not in read(with_boxes([20, 30, 35, 45], [10, 10, 38, 8]), tmp_path).notes[0]


def test_nothing_to_learn_from_is_said_loudly(tmp_path: Path) -> None:
    assert read(CONTENT, tmp_path).nothing_to_learn() is None
    assert read(CONTENT, tmp_path).learnable().tolist() == [1, 1]
    crowds = with_boxes([1, 2, 3, 4], [5, 6, 7, 8])
    for row in crowds["annotations"]:
        row["iscrowd"] = 1
    index = read(crowds, tmp_path)
    assert index.learnable().tolist() == [0]
    assert index.notes[0] == ("NOTHING TO LEARN FROM: every one of the 2 boxes is a region to ignore (COCO's iscrowd, "
                              "VOC's difficult); if they are objects, set that to 0")
    assert read({**CONTENT, "annotations": []}, tmp_path).nothing_to_learn() == "none of the 3 images has a box"
    crowds["annotations"][0] |= {"iscrowd": 0, "bbox": [1, 2, 0, 4]}
    assert read(crowds, tmp_path).nothing_to_learn() == (
        "none of the 2 boxes (1 of them regions to ignore) has an area inside its image")


def test_a_file_may_be_in_any_unicode(tmp_path: Path) -> None:
    path, images = tmp_path / "instances.json", tmp_path / "images"
    path.write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"instances\.json: byte \d+ .*is no UTF-8 text; save the file as UTF-8"):
        read_coco(path, images)
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        path.write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode(encoding))
        assert read_coco(path, images).path(1) == images / "größe" / "a.jpg"


def test_not_a_number_is_found_whatever_the_texts_say(tmp_path: Path) -> None:
    content = changed("annotations", 1, bbox=[1, 2, float("nan"), 4])
    content["categories"][0]["name"] = "dog, NaN, or cat"
    index = read(content, tmp_path)
    assert [fault.where.rpartition(": ")[2] for fault in index.faults] == ["annotation 2"]
    assert index.classes.names == ("cat", "dog, NaN, or cat")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read_coco(tmp_path / "gone.json", tmp_path)


numbers = st.floats(-1e4, 1e4).map(lambda x: round(x, 2))
lengths = st.floats(0, 1e4).map(lambda x: round(x, 2))
annotated = st.builds(
    lambda image_id, category_id, bbox, area, iscrowd: {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(bbox),
        "area": area,
        "iscrowd": int(iscrowd),
    },
    st.sampled_from([70, 5, 6]),
    st.sampled_from([3, 9]),
    st.tuples(numbers, numbers, lengths, lengths),
    st.floats(0, 1e6),
    st.booleans(),
)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(annotated, max_size=12))
def test_what_was_read_is_written_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    annotations = [{"id": 100 - i, **row} for i, row in enumerate(rows)]
    truth = read({**CONTENT, "annotations": annotations}, tmp_path_factory.getbasetemp()).coco_ground_truth()
    assert truth["images"] == CONTENT["images"]
    assert truth["categories"] == sorted(CONTENT["categories"], key=lambda c: int(c["id"]))
    # In the file's order within each image, which is what pycocotools' matching sees.
    for image_id in (70, 5, 6):
        assert [row for row in truth["annotations"] if row["image_id"] == image_id] == [
            row for row in annotations if row["image_id"] == image_id
        ]


def scores(truth: COCO, detections: list[dict[str, Any]]) -> NDArray[np.float64]:
    evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats: NDArray[np.float64] = evaluation.stats
    return stats


def as_coco(index: BoxIndex) -> COCO:
    truth = COCO()
    truth.dataset = index.coco_ground_truth()
    truth.createIndex()
    return truth


def test_an_annotation_with_id_0_can_be_found(tmp_path: Path) -> None:
    content = with_boxes([1, 2, 30, 40])
    content["annotations"][0]["id"] = 0
    index = read(content, tmp_path)
    assert index.annotation_ids.tolist() == [0]
    found = [{"image_id": 5, "category_id": 3, "bbox": [1, 2, 30, 40], "score": 0.5}]
    assert scores(as_coco(index), found)[0] == pytest.approx(1.0)


@pytest.mark.real
def test_coco_mini_is_read_whole(shared: Path) -> None:
    folder = shared / "data/coco_mini"
    train = read_coco(coco_annotations(folder, "train"), coco_images(folder, "train"))
    assert (len(train), len(train.boxes), int(train.crowd.sum())) == (192, 1732, 18)
    assert int((np.diff(train.offsets) == 0).sum()) == 2
    assert train.classes == COCO_80
    assert (train.image_ids[0], train.size(0), train.path(0).name) == (790, (422, 640), "000000000790.jpg")
    assert all(train.path(i).is_file() for i in range(len(train)))
    assert train.notes == ()


@pytest.mark.real
def test_the_metric_sees_what_the_file_says(shared: Path) -> None:
    folder = shared / "data/coco_mini"
    original = COCO(str(coco_annotations(folder, "val")))
    index = read_coco(coco_annotations(folder, "val"), coco_images(folder, "val"))
    rng = np.random.default_rng(0)
    detections = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": (np.array(row["bbox"]) * rng.uniform(0.85, 1.15, 4)).tolist(),
            "score": rng.random(),
        }
        for row in original.dataset["annotations"]
    ]
    expected = scores(original, detections)
    assert 0.1 < expected[0] < 0.9
    np.testing.assert_array_equal(scores(as_coco(index), detections), expected)
