"""COCO's annotation files (cocodataset.org, "Data format", object detection), and any data set written like them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.structures import Classes

Record: TypeAlias = dict[str, Any]
"""One image, annotation or category as the file has it."""

_NAMES_BY_ID = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip

COCO_80 = Classes(names=tuple(_NAMES_BY_ID.values()), source_ids=tuple(_NAMES_BY_ID))
"""The categories of COCO 2017, in the order of their ids, which run from 1 to 90 with gaps."""

COCO_90 = Classes(
    names=tuple(_NAMES_BY_ID.get(i, f"unused {i}") for i in range(1, 91)),
    source_ids=tuple(range(1, 91)),
)
"""One slot for each id from 1 to 90, as TensorFlow's and torchvision's published networks have them."""


def coco_annotations(folder: Path, split: Literal["train", "val"]) -> Path:
    """The annotation file of a split in COCO's layout."""
    return folder / "annotations" / f"instances_{split}2017.json"


def coco_images(folder: Path, split: Literal["train", "val"]) -> Path:
    """The folder with the images of a split in COCO's layout."""
    return folder / f"{split}2017"


def read_coco(annotations: Path, images: Path, *, visit: Callable[[Record], None] | None = None) -> BoxIndex:
    """The images of an annotation file in its order, also those without objects; `images` is the folder they lie in.

    `visit` is called with every record of the file, unchecked, before its outline ("segmentation") is dropped.

    The classes are the file's own categories, by id. An annotation without "iscrowd" is no crowd, one without "area"
    has its box's; both are noted. Boxes of no area or outside their image are kept, as pycocotools does, and noted.

    Raises FileNotFoundError, or ValueError naming the file, the ids, and what to do.
    """
    try:
        return _index(_loaded(annotations, visit), images)
    except ValueError as problem:
        raise ValueError(f"{annotations}: {problem}") from None


def _loaded(annotations: Path, visit: Callable[[Record], None] | None) -> Record:
    def without_outline(record: Record) -> Record:
        if visit is not None:
            visit(record)
        # Nothing here reads the outlines, and they are most of the file: dropped while parsing, a file of the size of
        # COCO's training set (500 MB) loads in half the time and less than half the memory.
        record.pop("segmentation", None)
        return record

    try:
        content = json.loads(annotations.read_text(encoding="utf-8-sig"), object_hook=without_outline)
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"broken JSON at line {problem.lineno}, column {problem.colno}: {problem.msg}. "
            "Was the download or the export cut short?"
        ) from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"byte {problem.start} is no UTF-8 text; save the file as UTF-8") from None
    lists = content if isinstance(content, dict) else {}
    for key in ("images", "annotations", "categories"):
        if type(lists.get(key)) is not list:
            raise ValueError(
                f"has no list of {key!r}; detection needs COCO's instances_*.json or a file like it, "
                "with 'images', 'annotations' and 'categories'"
            )
        if any(type(record) is not dict for record in lists[key]):
            raise ValueError(f"{key!r} must hold objects {{...}} only")
    return lists


def _index(content: Record, folder: Path) -> BoxIndex:
    images, annotations = content["images"], content["annotations"]
    if not images:
        raise ValueError("'images' is empty; a data set needs at least one image")
    classes = _classes(content["categories"])

    image_ids = _whole_numbers(images, "id", "image")
    _refuse_twice(image_ids.tolist(), "image id")
    sizes = np.stack([_whole_numbers(images, key, "image") for key in ("height", "width")], axis=1)
    _refuse(images, np.any(sizes < 1, axis=1), "image", lambda r: f"is {r['height']} x {r['width']} pixels large")
    names = _column(images, "file_name", "image")
    _refuse(images, _no_texts(names), "image", lambda r: f"has the file_name {r['file_name']!r}, which is no text")

    annotation_ids = _whole_numbers(annotations, "id", "annotation")
    _refuse_twice(annotation_ids.tolist(), "annotation id")
    image_of_box = _positions(_whole_numbers(annotations, "image_id", "annotation"), image_ids)
    _refuse(
        annotations,
        image_of_box < 0,
        "annotation",
        lambda r: f"is of the unknown image {r['image_id']}; add it to 'images' or remove the annotation",
    )
    labels = _positions(
        _whole_numbers(annotations, "category_id", "annotation"), np.array(classes.source_ids, np.int64)
    )
    _refuse(
        annotations,
        labels < 0,
        "annotation",
        lambda r: f"is of the unknown category {r['category_id']}; add it to 'categories' or remove the annotation",
    )
    boxes = _boxes(annotations)
    crowd, crowd_notes = _optional(annotations, "iscrowd", np.zeros(len(annotations)), taken_as="0")
    _refuse(
        annotations,
        (crowd != 0) & (crowd != 1),
        "annotation",
        lambda r: f"has iscrowd {r['iscrowd']!r}; it must be 0 or 1",
    )
    box_areas = np.maximum(boxes[:, 2], 0) * np.maximum(boxes[:, 3], 0)
    areas, area_notes = _optional(annotations, "area", box_areas, taken_as="the area of its box")
    return BoxIndex.of(
        classes,
        folder,
        image_ids=image_ids,
        sizes=sizes.astype(np.int32),
        names=names,
        image_of_box=image_of_box,
        boxes=boxes,
        labels=labels.astype(np.int32),
        crowd=crowd.astype(np.bool_),
        areas=areas,
        annotation_ids=annotation_ids,
        notes=crowd_notes + area_notes,
    )


def _classes(categories: list[Record]) -> Classes:
    if not categories:
        raise ValueError("'categories' is empty; a data set needs at least one class")
    ids = _whole_numbers(categories, "id", "category").tolist()
    names = _column(categories, "name", "category")
    _refuse(categories, _no_texts(names), "category", lambda r: f"has the name {r['name']!r}, which is no text")
    _refuse_twice(ids, "category id")
    _refuse_twice(names, "category name")
    pairs = sorted(zip(ids, names, strict=True))
    return Classes(names=tuple(name for _, name in pairs), source_ids=tuple(source_id for source_id, _ in pairs))


def _boxes(annotations: list[Record]) -> NDArray[np.float64]:
    """[m, 4] x, y, width, height."""
    rows = _column(annotations, "bbox", "annotation")
    _refuse(
        annotations,
        np.array([not (isinstance(row, list) and len(row) == 4) for row in rows], np.bool_),
        "annotation",
        lambda r: f"has the bbox {r['bbox']!r}; it must be [x, y, width, height]",
    )
    numbers = _numbers(list(chain.from_iterable(rows))).reshape(-1, 4)
    _refuse(
        annotations,
        ~np.all(np.isfinite(numbers), axis=1),
        "annotation",
        lambda r: f"has the bbox {r['bbox']!r}; its four entries must be finite numbers",
    )
    return numbers


def _optional(
    annotations: list[Record], key: str, defaults: NDArray[np.float64], *, taken_as: str
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """A column that some exporters leave out, and the note about where they did."""
    absent = np.array([key not in record for record in annotations], np.bool_)
    values = _numbers([record.get(key, 0) for record in annotations])
    _refuse(
        annotations,
        ~np.isfinite(values),
        "annotation",
        lambda r: f"has {key} {r[key]!r}; it must be a finite number",
    )
    notes = (f"{absent.sum()} of {len(annotations)} annotations have no {key!r}, taken as {taken_as}",)
    return np.where(absent, defaults, values), notes if absent.any() else ()


def _column(records: list[Record], key: str, kind: str) -> list[Any]:
    try:
        return [record[key] for record in records]
    except KeyError:
        lacking = next(position for position, record in enumerate(records) if key not in record)
        raise ValueError(
            f"{kind} number {lacking + 1} (id {records[lacking].get('id', 'absent')}) has no {key!r}"
        ) from None


def _whole_numbers(records: list[Record], key: str, kind: str) -> NDArray[np.int64]:
    values = _column(records, key, kind)
    limit = 2**63
    wrong = np.array([type(value) is not int or not -limit <= value < limit for value in values], np.bool_)
    _refuse(records, wrong, kind, lambda r: f"has {key} {r[key]!r}, which is no whole number")
    return np.array(values, np.int64)


def _no_texts(values: list[Any]) -> NDArray[np.bool_]:
    return np.array([not (isinstance(value, str) and value) for value in values], np.bool_)


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """The values as floats; NaN for whatever is no number (None, a text), which NumPy would try to convert."""
    kinds = {int, float, bool}
    if not set(map(type, values)) <= kinds:
        values = [value if type(value) in kinds else np.nan for value in values]
    return np.array(values, np.float64)


def _positions(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each wanted id stands in `ids`; -1 where it does not."""
    order = np.argsort(ids)
    places = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    candidates = order[places]
    return np.where(ids[candidates] == wanted, candidates, -1)


def _refuse(
    records: list[Record], wrong: NDArray[np.bool_], kind: str, describe: Callable[[Record], str]
) -> None:
    """Raises ValueError about the first of the wrong records, and says how many more there are."""
    places = np.flatnonzero(wrong)
    if len(places):
        record = records[places[0]]
        more = f" (and {len(places) - 1} more like it)" if len(places) > 1 else ""
        raise ValueError(f"{kind} {record.get('id', 'without id')} {describe(record)}{more}")


def _refuse_twice(values: list[Any], what: str) -> None:
    if len(set(values)) != len(values):
        twice = [repr(value) for value, count in Counter(values).items() if count > 1]
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(f"{what}s must differ, these stand more than once: {', '.join(twice[:5])}{more}")
