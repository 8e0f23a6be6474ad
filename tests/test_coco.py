"""COCO's annotation files to arrays and back, and every way in which such a file can be wrong."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.box_index import BoxIndex
from detseg.data.coco import COCO_80, COCO_90, coco_annotations, coco_images, read_coco

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
    return {**CONTENT, "images": [CONTENT["images"][1]], "annotations": rows}


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
    assert vars(index).keys() - kinds.keys() == {"classes", "folder", "notes"}


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
    index = read(with_boxes([1, 1, 0, 5], [1, 1, 5, -2], [40, 0, 9, 9], [-9, 3, 4, 4], [1, 2, 3, 4]), tmp_path)
    assert index.notes == (
        "2 boxes of no area, not trained on (annotation ids: 11 in größe/a.jpg, 12 in größe/a.jpg)",
        "2 boxes outside the image, not trained on (annotation ids: 13 in größe/a.jpg, 14 in größe/a.jpg)",
    )
    assert index.targets(0).boxes.tolist() == [[1, 2, 4, 6]]
    assert [row["bbox"] for row in index.coco_ground_truth()["annotations"]][:2] == [[1, 1, 0, 5], [1, 1, 5, -2]]


def test_boxes_are_clipped_and_only_far_ones_noted(tmp_path: Path) -> None:
    index = read(with_boxes([-0.5, 1, 41, 49.6], [30, -5, 20, 10]), tmp_path)
    assert index.targets(0).boxes.tolist() == [[0, 1, 40, 50], [30, 0, 40, 5]]
    assert index.notes == (
        "1 box more than 1 pixel beyond the image's edge, clipped for training (annotation ids: 12 in größe/a.jpg)",
    )


def test_a_long_note_is_cut(tmp_path: Path) -> None:
    (note,) = read(with_boxes(*[[1.0, 1.0, 0.0, 0.0]] * 7), tmp_path).notes
    assert note.endswith("15 in größe/a.jpg and 2 more)")


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
    index = read(with_boxes([1, 1, 0, 5]), tmp_path)
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
        ([], r"has no list of 'images'; detection needs COCO's instances_\*\.json"),
        ({"images": [], "categories": []}, r"has no list of 'annotations'"),
        ({"images": {}, "annotations": [], "categories": []}, r"has no list of 'images'"),
        ({"images": [], "annotations": [], "categories": []}, r"'images' is empty"),
        ({**CONTENT, "images": [1]}, r"'images' must hold objects"),
        ({**CONTENT, "categories": []}, r"'categories' is empty; a data set needs at least one class"),
        (changed("images", 1, width=None), r"image number 2 \(id 5\) has no 'width'"),
        (changed("images", 1, id=None), r"image number 2 \(id absent\) has no 'id'"),
        (changed("images", 1, file_name=None), r"image number 2 \(id 5\) has no 'file_name'"),
        (changed("images", 1, file_name=3), r"image 5 has the file_name 3, which is no text"),
        (changed("images", 1, id="5"), r"image 5 has id '5', which is no whole number"),
        (changed("images", 1, id=2**63), r"image 9223372036854775808 has id .*no whole number"),
        (changed("images", 1, height=0), r"image 5 is 0 x 40 pixels large"),
        (changed("images", 1, id=70), r"image ids must differ, these stand more than once: 70"),
        (changed("categories", 1, id=9), r"category ids must differ, these stand more than once: 9"),
        (changed("categories", 1, name="dog"), r"category names must differ, these stand more than once: 'dog'"),
        (changed("categories", 1, name=["dog"]), r"category 3 has the name \['dog'\], which is no text"),
        (changed("categories", 0, name="unused"), r"begins with 'unused' marks a class without objects; rename"),
        (changed("annotations", 1, image_id=71), r"annotation 2 is of the unknown image 71; add it"),
        (changed("annotations", 1, image_id=None), r"annotation number 2 \(id 2\) has no 'image_id'"),
        (changed("annotations", 1, category_id=4), r"annotation 2 is of the unknown category 4; add it"),
        (changed("annotations", 1, id=1), r"annotation ids must differ, these stand more than once: 1"),
        (changed("annotations", 1, bbox=None), r"annotation number 2 \(id 2\) has no 'bbox'"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"annotation 2 has the bbox \[1, 2, 3\]; it must be \[x, y, w"),
        (changed("annotations", 1, bbox=7), r"annotation 2 has the bbox 7; it must be"),
        (changed("annotations", 1, bbox=[1, 2, 3, float("nan")]), r"annotation 2 .* must be finite numbers"),
        (changed("annotations", 1, bbox=[1, 2, float("inf"), 4]), r"annotation 2 .* must be finite numbers"),
        (changed("annotations", 1, bbox=[1, 2, "3", 4]), r"annotation 2 .*'3', 4\]; its four entries must be finite"),
        (changed("annotations", 1, area=float("nan")), r"annotation 2 has area nan; it must be a finite number"),
        (changed("annotations", 1, iscrowd=2), r"annotation 2 has iscrowd 2; it must be 0 or 1"),
    ],
)
def test_what_is_wrong_is_said(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"instances\.json: .*{message}"):
        read(content, tmp_path)


def test_the_first_and_the_number_of_wrong_records_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annotation 11 has the bbox .* \(and 2 more like it\)"):
        read(with_boxes([1], [2], [3], [1, 2, 3, 4]), tmp_path)


def test_many_repeated_ids_are_cut(tmp_path: Path) -> None:
    content = with_boxes(*[[1.0, 2.0, 3.0, 4.0]] * 7)
    content["annotations"] *= 2
    with pytest.raises(ValueError, match=r"more than once: 11, 12, 13, 14, 15 and 2 more"):
        read(content, tmp_path)


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=r"instances\.json: byte \d+ is no UTF-8 text; save the file as UTF-8"):
        read_coco(path, tmp_path)
    path.write_bytes(json.dumps(CONTENT, ensure_ascii=False).encode("utf-8-sig"))
    assert len(read_coco(path, tmp_path)) == 3


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read_coco(tmp_path / "gone.json", tmp_path)


numbers = st.floats(-1e4, 1e4).map(lambda x: round(x, 2))
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
    st.tuples(numbers, numbers, numbers, numbers),
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
