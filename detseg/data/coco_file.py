"""What a COCO annotation file says, as arrays: ids in any form, broken records left out and named, odd ones counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.coco_json import AnnotationFile, AnnotationRecord, ImageRecord, Record, Records
from detseg.data.faults import Fault
from detseg.structures import Classes

_INT64 = 2**63

_Column: TypeAlias = list["NDArray[np.int64] | list[Any]"]
"""The ids of some records, block by block: whole numbers, or whatever the file has."""


@dataclass(frozen=True, eq=False)
class CocoFile:
    """The images of an annotation file in its order, and their annotations. `n` images, `m` annotations.

    What is broken is not among them; `faults` names it.
    """

    classes: Classes
    image_ids: NDArray[np.int64]
    """[n], all different."""
    sizes: NDArray[np.int32]
    """[n, 2] height, width; 0, 0 where the file does not say."""
    names: tuple[str, ...]
    """[n]: the files, as the annotation file calls them."""
    complete: NDArray[np.bool_]
    """[n]: no annotation of the image was left out."""
    image_of_box: NDArray[np.int64]
    """[m] positions, 0..n-1."""
    boxes: NDArray[np.float64]
    """[m, 4] x, y, width, height."""
    labels: NDArray[np.int32]
    """[m], 0..K-1."""
    crowd: NDArray[np.bool_]
    """[m]."""
    areas: NDArray[np.float64]
    """[m]."""
    annotation_ids: NDArray[np.int64]
    """[m], all different."""
    records: NDArray[np.int64]
    """[m]: which of the file's annotations each is, from 0."""
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, for a cache."""
        told = {"classes": [self.classes.names, self.classes.source_ids], "names": self.names, "notes": self.notes,
                "faults": self.faults}
        arrays: dict[str, NDArray[Any]] = {
            name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return arrays | {"told": np.frombuffer(json.dumps(told).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> CocoFile:
        """The reverse of `to_arrays`."""
        told = json.loads(arrays["told"].tobytes())
        names, source_ids = map(tuple, told["classes"])
        faults = tuple(Fault(*fault) for fault in told["faults"])
        return cls(**{name: value for name, value in arrays.items() if name != "told"},
                   classes=Classes(names, source_ids), names=tuple(told["names"]), notes=tuple(told["notes"]),
                   faults=faults)


def parse_coco(path: Path) -> CocoFile:
    """Reads an annotation file; of every broken record the place and the reason stand in `faults`.

    Raises FileNotFoundError, or ValueError where nothing can be read; neither message names the file.
    """
    file = AnnotationFile(path)
    if not len(file.images):
        raise ValueError("'images' is empty; a data set needs at least one image")
    odd = _Odd()
    images = _images(file.images, odd)
    columns = _columns(file.annotations, odd)
    categories = _categories(file.categories, columns.category_ids, odd)
    return _joined(path, images, categories, columns, odd)


class _Odd:
    """What is odd about some records and harmless, counted."""

    def __init__(self) -> None:
        self.written: Counter[tuple[str, str]] = Counter()
        """Numbers as texts or with a point where there is none, by (key, kind of record)."""
        self.notes: list[str] = []

    def all_notes(self) -> tuple[str, ...]:
        """One line for each kind."""
        if not self.written:
            return tuple(self.notes)
        counts = ", ".join(f"{key!r} of {_counted(count, kind)}" for (key, kind), count in self.written.items())
        return (f"numbers in quotes, or whole ones with a decimal point, taken as numbers: {counts}", *self.notes)


def _counted(number: int, one: str) -> str:
    return f"{number} {one if number == 1 else one.removesuffix('y') + 'ies' if one.endswith('y') else one + 's'}"


# ---------------------------------------------------------------------------------------------- numbers in any form


def _whole(value: Any) -> int | None:
    """A whole number that fits int64, also as 1.0, "1" or "1.0"; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        digits, _, zeros = text.partition(".")
        if not digits.removeprefix("-").isdecimal() or zeros.strip("0"):
            return None
        value = int(digits)
    elif isinstance(value, float):
        if not value.is_integer():  # neither is inf or NaN
            return None
        value = int(value)
    return value if type(value) is int and -_INT64 <= value < _INT64 else None


def _number(value: Any) -> float | None:
    """A finite number, also as a text; None for anything else."""
    if type(value) not in (int, float, str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _block_of_ids(values: list[Any]) -> NDArray[np.int64] | list[Any]:
    if set(map(type, values)) == {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass
    return values


def _values(column: _Column) -> list[Any]:
    return [value for block in column for value in (block if isinstance(block, list) else block.tolist())]


def _whole_numbers(column: _Column) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """The whole numbers of a column, 0 where there is none; which are, and how many are written in another form."""
    if all(isinstance(block, np.ndarray) for block in column):
        ids = np.concatenate([np.zeros(0, np.int64), *column])
        return ids, np.ones(len(ids), np.bool_), 0
    values = _values(column)
    whole = [_whole(value) for value in values]
    valid = np.array([number is not None for number in whole], np.bool_)
    odd = sum(number is not None and type(value) is not int for number, value in zip(whole, values, strict=True))
    return np.array([number or 0 for number in whole], np.int64), valid, odd


def _positions(wanted: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each wanted id stands first in `ids`; -1 where it does not."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    candidates = order[places]
    return np.where(ids[candidates] == wanted, candidates, -1)


class _Keys:
    """The ids that one list has and another refers to: numbers, or texts that are numbered here."""

    def __init__(self, column: _Column, kind: str, odd: _Odd) -> None:
        self.kind = kind
        self.ids, self.valid, written = _whole_numbers(column)
        self.position_of_text: dict[str, int] | None = None
        values = [] if self.valid.all() else _values(column)
        texts = [value for value in values if isinstance(value, str) and value.strip() and _whole(value) is None]
        if texts:
            keys = [_key(value) for value in values]
            self.position_of_text = {}
            for position, key in enumerate(keys):
                if key is not None:
                    self.position_of_text.setdefault(key, position)
            first = np.array([-1 if key is None else self.position_of_text[key] for key in keys], np.int64)
            self.ids, self.valid = first + 1, first >= 0
            odd.notes.append(f"{kind} ids are texts, such as {texts[0]!r}; numbered from 1 in the file's order")
        elif written:
            odd.written["id", kind] += written

    def positions(self, column: _Column) -> tuple[NDArray[np.int64], int]:
        """For each reference the first record that it means, -1 where there is none; and how many are written oddly."""
        if self.position_of_text is None:
            wanted, valid, written = _whole_numbers(column)
            # A broken id is 0 here; nothing may mean it.
            found = _positions(wanted, np.where(self.valid, self.ids, -_INT64))
            return np.where(valid & self.valid[found], found, -1), written
        places = [-1 if (key := _key(value)) is None else self.position_of_text.get(key, -1)
                  for value in _values(column)]
        return np.array(places, np.int64), 0


def _key(value: Any) -> str | None:
    number = _whole(value)
    if number is not None:
        return str(number)
    return value.strip() or None if isinstance(value, str) else None


# ---------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class _Images:
    records: Records[ImageRecord]
    keys: _Keys
    sizes: NDArray[np.int32]
    names: list[str]
    reasons: dict[int, str]
    """What is wrong with some of them."""
    repeated: NDArray[np.int64]
    """Positions of exact repetitions, which are left out."""


def _images(records: Records[ImageRecord], odd: _Odd) -> _Images:
    column: _Column = []
    sizes: list[tuple[int, int]] = []
    names: list[str] = []
    reasons: dict[int, str] = {}
    for block in records.blocks():
        column.append(_block_of_ids([record.id for record in block]))
        for record in block:
            i = len(names)
            name = _file_name(record)
            if name is None:
                said = ("no 'file_name'" if record.file_name in (UNSET, None) else
                        f"the file_name {record.file_name!r}, which is no text")
                reasons[i] = f"it has {said}; name its file"
            names.append(name or "")
            size = _size(record, odd)
            if size is None:
                reasons.setdefault(i, f"it is {_told(record.height)} x {_told(record.width)} pixels large (height x "
                                      "width); write its image's size, or nothing to have it read from the image")
            sizes.append(size or (0, 0))
    keys = _Keys(column, "image", odd)
    for i in np.flatnonzero(~keys.valid).tolist():
        value = records[i].get("id")
        reasons[i] = "it has no 'id'" if value is None else f"its id {value!r} is no whole number and no text"
    repeated = _check_repeated_images(keys, names, sizes, reasons)
    if repeated:
        odd.notes.append(f"{_counted(len(repeated), 'record')} of images repeated, with the same id, file and size; "
                         "each taken once")
    return _Images(records, keys, np.array(sizes, np.int32), names, reasons, np.array(repeated, np.int64))


def _check_repeated_images(
    keys: _Keys, names: Sequence[str], sizes: Sequence[tuple[int, int]], reasons: dict[int, str]
) -> list[int]:
    """The exact repetitions among records of one id. Others of one id are all broken: whose are the annotations?"""
    _, first, inverse = np.unique(keys.ids, return_index=True, return_inverse=True)
    repeated, groups = [], dict[int, list[int]]()
    for i in np.flatnonzero((first[inverse] != np.arange(len(names))) & keys.valid).tolist():
        groups.setdefault(int(first[inverse[i]]), []).append(i)
    for one, others in groups.items():
        if all((names[i], sizes[i]) == (names[one], sizes[one]) for i in others):
            repeated += others
            continue
        files = ", ".join(dict.fromkeys(names[i] for i in (one, *others)))
        for i in (one, *others):
            reasons[i] = f"its id stands {len(others) + 1} times in 'images', {files}; give each an id of its own"
    return sorted(repeated)


def _file_name(record: ImageRecord) -> str | None:
    """What the file is called; without "file_name" the last part of the address that COCO gives."""
    if isinstance(record.file_name, str) and record.file_name.strip():
        return record.file_name
    if record.file_name in (UNSET, None) and isinstance(record.coco_url, str):
        return unquote(urlsplit(record.coco_url).path.rpartition("/")[2]) or None
    return None


def _size(record: ImageRecord, odd: _Odd) -> tuple[int, int] | None:
    """(height, width); 0, 0 where the record does not say both, None where it says what no image has."""
    height, width = record.height, record.width
    if type(height) is int and type(width) is int and 0 < height < 2**31 and 0 < width < 2**31:
        return height, width
    sides = []
    for key, value in (("height", height), ("width", width)):
        side = 0 if value in (UNSET, None, "") else _whole(value)
        if side is None or not 0 <= side < 2**31:
            return None
        if side > 0 and type(value) is not int:
            odd.written[key, "image"] += 1
        sides.append(side)
    return (sides[0], sides[1]) if all(sides) else (0, 0)


def _told(value: Any) -> str:
    return "?" if value is UNSET else repr(value)


def _shown(kind: str, value: Any, i: int) -> str:
    return f"{kind} number {i + 1}" if value in (UNSET, None) or isinstance(value, (list, dict)) else f"{kind} {value}"


# ---------------------------------------------------------------------------------------------- annotations


@dataclass(frozen=True, eq=False)
class _Columns:
    """The annotations as the file has them. `m` of them."""

    records: Records[AnnotationRecord]
    ids: _Column
    image_ids: _Column
    category_ids: _Column
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    reasons: dict[int, str]


def _columns(records: Records[AnnotationRecord], odd: _Odd) -> _Columns:
    ids: _Column = []
    image_ids: _Column = []
    category_ids: _Column = []
    boxes: list[NDArray[np.float64]] = [np.zeros((0, 4))]
    areas: list[NDArray[np.float64]] = [np.zeros(0)]
    crowds: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
    reasons: dict[int, str] = {}
    absent: Counter[str] = Counter()
    start = 0
    for block in records.blocks():
        ids.append(_block_of_ids([record.id for record in block]))
        image_ids.append(_block_of_ids([record.image_id for record in block]))
        category_ids.append(_block_of_ids([record.category_id for record in block]))
        boxes.append(_boxes(block, records, start, odd, absent, reasons))
        area = _numbers([record.area for record in block], "area", start, odd, absent, reasons)
        crowd = _numbers([int(record.iscrowd) if isinstance(record.iscrowd, bool) else record.iscrowd
                          for record in block], "iscrowd", start, odd, absent, reasons)
        for i in np.flatnonzero(area < 0).tolist():
            reasons.setdefault(start + i, f"its area is {area[i]:g}; an area is not negative")
        for i in np.flatnonzero(~np.isin(crowd, (0, 1)) & ~np.isnan(crowd)).tolist():
            reasons.setdefault(start + i, f"its iscrowd is {block[i].iscrowd!r}; it must be 0 or 1")
        box_area = np.prod(np.maximum(boxes[-1][:, 2:], 0), axis=1)
        areas.append(np.where(np.isnan(area), box_area, area))
        crowds.append(crowd == 1)
        start += len(block)
    for key, taken_as in (("iscrowd", "0"), ("area", "the area of its box"), ("bbox", "the box of its outline")):
        if absent[key]:
            odd.notes.append(f"{absent[key]} of {start} annotations have no {key!r}, taken as {taken_as}")
    return _Columns(records, ids, image_ids, category_ids, np.concatenate(boxes), np.concatenate(areas),
                    np.concatenate(crowds), reasons)


def _numbers(
    values: list[Any], key: str, start: int, odd: _Odd, absent: Counter[str], reasons: dict[int, str]
) -> NDArray[np.float64]:
    """[number of values]; NaN where there is none."""
    if set(map(type, values)) <= {int, float}:
        numbers = np.array(values, np.float64)
        if np.isfinite(numbers).all():
            return numbers
    numbers = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if value is UNSET or value is None:
            absent[key] += 1
            continue
        number = _number(value)
        if number is None:
            reasons.setdefault(start + i, f"its {key} is {value!r}; it must be a finite number")
        else:
            numbers[i] = number
            if isinstance(value, str):
                odd.written[key, "annotation"] += 1
    return numbers


def _boxes(
    block: list[AnnotationRecord], records: Records[AnnotationRecord], start: int, odd: _Odd, absent: Counter[str],
    reasons: dict[int, str],
) -> NDArray[np.float64]:
    """[number of records, 4] x, y, width, height; zeros where there is none."""
    rows: list[Any] = [record.bbox for record in block]
    if set(map(type, rows)) != {tuple}:
        for i, row in enumerate(rows):
            if type(row) is not tuple:
                found = _odd_box(row, records, start + i, odd, absent)
                if isinstance(found, str):
                    reasons.setdefault(start + i, found)
                rows[i] = (0.0, 0.0, 0.0, 0.0) if isinstance(found, str) else found
    boxes = np.array(rows, np.float64).reshape(-1, 4)
    for i in np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist():
        reasons.setdefault(start + i, f"its bbox is {list(boxes[i].tolist())}; its four entries must be finite numbers")
    boxes[~np.isfinite(boxes).all(axis=1)] = 0
    for i in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)).tolist():
        reasons.setdefault(start + i, f"its bbox is {boxes[i].tolist()}, of negative width or height; it must be "
                                      "[x, y, width, height]")
    return boxes


def _odd_box(
    row: Any, records: Records[AnnotationRecord], i: int, odd: _Odd, absent: Counter[str]
) -> tuple[float, ...] | str:
    """The box of a record whose "bbox" is no list of four numbers; or what is wrong with it."""
    if row in (UNSET, None, []):
        box = outline_box(records[i].get("segmentation"))
        if box is None:
            return "it has no 'bbox', and no outline that would tell it"
        absent["bbox"] += 1
        return box
    if not isinstance(row, list) or len(row) != 4:
        return f"its bbox is {row!r}; it must be [x, y, width, height]"
    numbers = [_number(value) for value in row]
    if any(number is None for number in numbers):
        return f"its bbox is {row!r}; its four entries must be finite numbers"
    if any(isinstance(value, str) for value in row):
        odd.written["bbox", "annotation"] += 1
    return tuple(number for number in numbers if number is not None)


def outline_box(outline: Any) -> tuple[float, ...] | None:
    """x, y, width, height of polygons [[x, y, x, y, ...], ...] or run lengths; None where it tells no box."""
    try:
        if isinstance(outline, dict):
            counts, (height, width) = outline["counts"], outline["size"]
            encoded = mask.frPyObjects(outline, height, width) if isinstance(counts, list) else {
                "size": [height, width], "counts": counts.encode("ascii")}
            box = mask.toBbox(encoded).tolist()
            return tuple(box) if box[2] > 0 and box[3] > 0 else None
        corners = np.concatenate([np.array(part, np.float64).reshape(-1, 2) for part in outline])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    if not len(corners) or not np.isfinite(corners).all():
        return None
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (*low.tolist(), *(high - low).tolist())


# ---------------------------------------------------------------------------------------------- categories


@dataclass(frozen=True, eq=False)
class _Categories:
    classes: Classes
    labels: NDArray[np.int64]
    """[m]: of each annotation, -1 where its category is unknown, -2 where it is broken."""
    faults: tuple[Fault, ...]
    """Without the file."""


def _categories(records: list[Record], column: _Column, odd: _Odd) -> _Categories:
    if not records:
        raise ValueError("'categories' is empty; a data set needs at least one class")
    keys = _Keys([[record.get("id", UNSET) for record in records]], "category", odd)
    place_of_box, written = keys.positions(column)
    if written:
        odd.written["category_id", "annotation"] += written
    faults: dict[int, str] = {}
    names = [_category_name(record) for record in records]
    for i, name in enumerate(names):
        if not keys.valid[i]:
            value = records[i].get("id")
            faults[i] = "it has no 'id'" if value is None else f"its id {value!r} is no whole number and no text"
        elif name is None:
            value = records[i].get("name")
            faults[i] = "it has no 'name'" if value is None else f"its name is {value!r}, which is no text"
    counts = np.bincount(place_of_box[place_of_box >= 0], minlength=len(records))
    moved = np.arange(len(records))
    first_of_id: dict[int, int] = {}
    for i in range(len(records)):
        first = first_of_id.setdefault(int(keys.ids[i]), i)
        if i in faults or first == i:
            continue
        if names[first] != names[i]:
            reason = f"its id is that of {names[first]!r} and of {names[i]!r}; give each category an id of its own"
            faults |= {first: reason, i: reason}
        moved[i] = -1  # nothing means it: annotations mean the first of an id
    _leave_out_root(records, names, counts, moved, odd)
    _merge_names(records, names, counts, moved, faults, odd)
    kept = [i for i in np.argsort(keys.ids, kind="stable").tolist() if moved[i] == i and i not in faults]
    if not kept:
        raise ValueError("\n".join([
            "no category can be used:", *(f"  {_shown('category', records[i].get('id'), i)}: {reason}"
                                          for i, reason in faults.items())]))
    classes = Classes(tuple(str(names[i]) for i in kept), tuple(int(keys.ids[i]) for i in kept))
    label = np.full(len(records) + 1, -1, np.int64)
    label[kept] = np.arange(len(kept))
    label[:-1] = np.where(moved >= 0, label[moved], -1)
    label[list(faults)] = -2
    return _Categories(classes, label[place_of_box], tuple(
        Fault(_shown("category", records[i].get("id"), i),
              reason + (f" (its {_counted(int(counts[i]), 'annotation')} left out with it)" if counts[i] else ""))
        for i, reason in sorted(faults.items())))


def _category_name(record: Record) -> str | None:
    name = record.get("name")
    if type(name) in (int, float):
        return str(name)
    return name.strip() or None if isinstance(name, str) else None


def _above(record: Record) -> str | None:
    """The name of the category above one; None where there is none."""
    name = record.get("supercategory")
    text = str(name).strip()
    return None if name is None or text.lower() in ("", "none", "null") else text


def _leave_out_root(
    records: list[Record], names: Sequence[str | None], counts: NDArray[np.int64], moved: NDArray[np.int64], odd: _Odd
) -> None:
    """Some exporters (Roboflow) list the data set itself as a category: no box has it, and all others lie below it."""
    for i, record in enumerate(records):
        others = [other for place, other in enumerate(records) if place != i]
        if (not counts[i] and names[i] is not None and moved[i] == i and _above(record) is None and others
                and all(_above(other) == names[i] for other in others)):
            moved[i] = -1
            odd.notes.append(f"category {record.get('id')} {names[i]!r} is left out: no annotation has it, and it is "
                             "the supercategory of all others, as exports list the data set itself")


def _merge_names(
    records: list[Record], names: Sequence[str | None], counts: NDArray[np.int64], moved: NDArray[np.int64],
    faults: dict[int, str], odd: _Odd,
) -> None:
    """Categories of one name are one class, that of the first, unless they lie below different ones."""
    first_of_name: dict[str, int] = {}
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        if name is None or moved[i] != i or i in faults:
            continue
        first = first_of_name.setdefault(name, i)
        if first == i:
            continue
        ids = f"{records[first].get('id')} and {record.get('id')}"
        above = [_above(records[first]), _above(record)]
        if counts[first] and counts[i] and None not in above and above[0] != above[1]:
            faults[i] = (f"its name {name!r} is also that of category {records[first].get('id')}, below {above[0]!r} "
                         f"there and below {above[1]!r} here: rename one of them if they are different things, or give "
                         "both the same 'supercategory' to make one class of them")
            continue
        moved[i] = first
        odd.notes.append(f"categories {ids} have the same name {name!r} and are taken as one class")


# ---------------------------------------------------------------------------------------------- together


def _joined(path: Path, images: _Images, categories: _Categories, columns: _Columns, odd: _Odd) -> CocoFile:
    image_of_box, written = images.keys.positions(columns.image_ids)
    if written:
        odd.written["image_id", "annotation"] += written
    reasons = columns.reasons
    for i in np.flatnonzero(image_of_box < 0).tolist():
        reasons[i] = _unknown(columns.records[i], "image")
    for i in np.flatnonzero((categories.labels == -1) & (image_of_box >= 0)).tolist():
        reasons[i] = _unknown(columns.records[i], "category")
    ids, repeated = _annotation_ids(columns, image_of_box, categories.labels, odd)

    good = np.ones(len(images.names), np.bool_)
    good[[*images.reasons, *images.repeated.tolist()]] = False
    wrong = np.zeros(len(ids), np.bool_)
    wrong[[*reasons]] = True
    broken = wrong | (categories.labels < 0)
    complete = np.ones(len(good), np.bool_)
    complete[image_of_box[broken & (image_of_box >= 0)]] = False
    kept = np.flatnonzero(~broken & ~repeated & (image_of_box >= 0) & good[image_of_box])

    boxes_of = np.bincount(image_of_box[image_of_box >= 0], minlength=len(good))
    faults = [*categories.faults]
    for i, reason in sorted(images.reasons.items()):
        lost = f" (its {_counted(int(boxes_of[i]), 'annotation')} left out with it)" if boxes_of[i] else ""
        faults.append(Fault(_shown("image", images.records[i].get("id"), i), reason + lost))
    faults += [Fault(_shown("annotation", columns.records[i].get("id"), i), reason)
               for i, reason in sorted(reasons.items()) if image_of_box[i] < 0 or good[image_of_box[i]]]
    if not good.any():
        raise ValueError("\n".join(["no image can be used:", *(f"  {fault}" for fault in faults[:5])]))
    return CocoFile(
        classes=categories.classes,
        image_ids=images.keys.ids[good],
        sizes=images.sizes[good],
        names=tuple(name for name, one in zip(images.names, good.tolist(), strict=True) if one),
        complete=complete[good],
        image_of_box=(np.cumsum(good) - 1)[image_of_box[kept]],
        boxes=columns.boxes[kept],
        labels=categories.labels[kept].astype(np.int32),
        crowd=columns.crowd[kept],
        areas=columns.areas[kept],
        annotation_ids=ids[kept],
        records=kept.astype(np.int64),
        notes=odd.all_notes(),
        faults=tuple(Fault(f"{path}: {fault.where}", fault.reason) for fault in faults),
    )


def _unknown(record: Record, kind: str) -> str:
    value = record.get(f"{kind}_id")
    if value is None:
        return f"it has no '{kind}_id'"
    lists = {"image": "images", "category": "categories"}[kind]
    return f"it is of the unknown {kind} {value!r}; add it to {lists!r} or remove the annotation"


def _annotation_ids(
    columns: _Columns, image_of_box: NDArray[np.int64], labels: NDArray[np.int64], odd: _Odd
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The ids, all different, and which annotations are exact repetitions of another of the same id.

    Nothing but the metric asks for them: where some are absent, no numbers, or given twice, all are numbered anew.
    """
    ids, valid, written = _whole_numbers(columns.ids)
    repeated = np.zeros(len(ids), np.bool_)
    values, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    if valid.all() and len(values) == len(ids):
        if written:
            odd.written["id", "annotation"] += written
        return ids, repeated
    seen: set[tuple[Any, ...]] = set()
    for i in np.flatnonzero((counts[inverse] > 1) & valid).tolist():
        key = (int(ids[i]), int(image_of_box[i]), int(labels[i]), *columns.boxes[i].tolist())
        repeated[i] = key in seen
        seen.add(key)
    if repeated.any():
        odd.notes.append(f"{_counted(int(repeated.sum()), 'annotation')} repeated, with the same id, image, category "
                         "and box; taken once")
    rest = ids[~repeated]
    absent = int((~valid).sum())
    if absent or len(np.unique(rest)) != len(rest):
        why = [f"{_counted(absent, 'annotation')} without an 'id' that is a number"] if absent else []
        twice = len(rest) - len(np.unique(rest)) if not absent else 0
        why += [f"{_counted(twice, 'id')} given more than once"] if twice else []
        odd.notes.append(f"annotations are numbered anew, from 1 in the file's order: {', '.join(why)}")
        ids = np.arange(1, len(ids) + 1)
    return ids, repeated
