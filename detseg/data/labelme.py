"""labelme's files (github.com/wkentaro/labelme): for each image a JSON file with its shapes.

A rectangle, polygon or circle is an object; so are shapes of one label with the same group_id together. Points and
lines are not, and are counted in a note.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex, FindOutline
from detseg.data.faults import Fault
from detseg.data.files import FileFinder, list_images, read_text
from detseg.data.images import image_size
from detseg.data.label_index import LabelIndex
from detseg.data.records import ImageRecord, ObjectRecord, box_index, box_of, outlines_of, polygon_labels
from detseg.structures import Classes, Size

_NO_OBJECTS = frozenset({"point", "points", "line", "linestrip"})


class LabelmeSplit(NamedTuple):
    """What one split is read from."""

    root: Path
    """The data set's folder."""
    files: tuple[Path, ...]
    """Its JSON files."""
    all_files: tuple[Path, ...]
    """Those of all splits: the classes are the labels in all of them."""
    images: Path | None = None
    """Where the images lie, where somebody says it; else as each file says, or beside it."""


class _Shape(NamedTuple):
    name: str
    kind: str
    points: NDArray[np.float64]
    group: object


class _File(NamedTuple):
    image: str
    size: Size | None
    shapes: tuple[_Shape, ...]


def read_labelme(split: LabelmeSplit) -> BoxIndex:
    """The images of a split in the order of their files, numbered from 1, and their boxes. The classes are the labels
    of all splits, sorted, numbered from 1.

    What is wrong with a file is a fault, and its image is left out. ValueError where there is no object at all.
    """
    records, classes, notes, faults = _records(split)
    index = box_index(records, classes, split.images or split.root, notes=notes, faults=faults)
    return replace(index, outlines=partial(_outlines, split))


def _outlines(split: LabelmeSplit) -> FindOutline:
    return outlines_of(_records(split, outlines=True)[0])


def read_labelme_labels(split: LabelmeSplit) -> LabelIndex:
    """The same with label maps drawn from polygons and circles, and from rectangles where there are such, as labelme
    draws them. ValueError where all shapes are rectangles, which are boxes."""
    records, classes, notes, faults = _records(split, outlines=True)
    return polygon_labels(records, classes, split.images or split.root, origin=f"labelme's files of {split.root}",
                          notes=notes, faults=faults)


def _records(
    split: LabelmeSplit, *, outlines: bool = False
) -> tuple[list[ImageRecord], Classes, tuple[str, ...], tuple[Fault, ...]]:
    read: dict[Path, _File] = {}
    faults: list[Fault] = []
    names: set[str] = set()
    for path in split.all_files:
        try:
            read[path] = _read(path)
        except ValueError as problem:
            if path in split.files:
                faults += (Fault(str(path), reason) for reason in problem.args)
            continue
        names |= {shape.name for shape in read[path].shapes if shape.kind not in _NO_OBJECTS}
    if not names:
        raise ValueError(f"none of the {len(split.all_files)} files of labelme in {split.root} has an object; nothing "
                         "to learn")
    classes = Classes(tuple(sorted(names)), tuple(range(1, len(names) + 1)))
    rectangles_too = any(shape.kind not in (*_NO_OBJECTS, "rectangle")
                         for file in read.values() for shape in file.shapes)
    finder = FileFinder(split.images or split.root, images_only=True)
    label_of = {name: k for k, name in enumerate(classes.names)}
    records: list[ImageRecord] = []
    left_out: Counter[str] = Counter()
    for path in split.files:
        if path not in read:
            continue
        file = read[path]
        left_out.update(shape.kind for shape in file.shapes if shape.kind in _NO_OBJECTS)
        if (image := _image(path, file, split, finder)) is None:
            faults.append(Fault(str(path), f"{finder.why_not(file.image or path.stem)}; labelme's own copy in the file "
                                "is not read. Add the image, or remove the file"))
            continue
        try:
            size = file.size or image_size((split.images or split.root) / image)
        except (OSError, ValueError) as problem:
            faults.append(Fault(str(path), str(problem)))
            continue
        records.append(ImageRecord(image, size, tuple(
            _objects(file.shapes, label_of, outlines=not outlines or rectangles_too))))
    number = len(list_images(split.images or split.root, recursive=True))
    unlabelled = number - len(split.all_files)
    notes = [f"{unlabelled} of {number} images have no JSON file, and are left out: one without objects needs a file "
             "without shapes"] if unlabelled > 0 else []
    notes += [f"{number} shapes of the kind {kind} are no objects" for kind, number in sorted(left_out.items())]
    return records, classes, (*finder.notes, *notes), tuple(faults)


def _image(path: Path, file: _File, split: LabelmeSplit, finder: FileFinder) -> str | None:
    """The image's name relative to its folder: as the file says, relative to itself; beside it; else anywhere."""
    root = split.images or split.root
    if split.images is None and file.image:
        said = path.parent / file.image.replace("\\", "/")
        if said.is_file() and said.resolve().is_relative_to(root.resolve()):
            return said.resolve().relative_to(root.resolve()).as_posix()
    inside = path.relative_to(split.root).parent if path.is_relative_to(split.root) else Path()
    base = PurePosixPath((file.image or path.stem).replace("\\", "/")).name
    return finder.find((inside / base).as_posix())


def _read(path: Path) -> _File:
    """ValueError with a reason for everything that is wrong."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as problem:
        raise ValueError(f"broken JSON at line {problem.lineno}, column {problem.colno}: {problem.msg}") from None
    shapes, wrong = [], []
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise ValueError("it has no list of 'shapes'; is it a file of labelme?")  # noqa: TRY004
    for number, shape in enumerate(content["shapes"], 1):
        try:
            shapes.append(_shape(shape))
        except (KeyError, TypeError, ValueError) as problem:
            wrong.append(f"shape {number}: {problem}")
    if wrong:
        raise ValueError(*wrong)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if isinstance(height, int | float) and isinstance(width, int | float) else None
    image = content.get("imagePath")
    return _File(image if isinstance(image, str) else "", size if size and min(size) > 0 else None, tuple(shapes))


def _shape(shape: Any) -> _Shape:
    if not isinstance(shape, dict):
        raise ValueError(f"need an object {{...}}, got {shape!r}")  # noqa: TRY004
    name = str(shape.get("label") or "").strip()
    kind = shape.get("shape_type") or "polygon"  # files of 2018 and older have polygons only
    if not name:
        raise ValueError("it has no label")
    try:
        points = np.array(shape.get("points"), np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError(f"its points must be [[x, y], ...], got {str(shape.get('points'))[:60]}") from None
    least = {"rectangle": 2, "circle": 2, "polygon": 3, "mask": 2}.get(kind, 1)
    if kind not in (*_NO_OBJECTS, "rectangle", "circle", "polygon", "mask"):
        raise ValueError(f"its kind is {kind!r}; known are rectangle, polygon, circle, mask, and points and lines")
    if len(points) < least or not np.isfinite(points).all():
        raise ValueError(f"a {kind} has at least {least} points that are numbers, got {points.tolist()}")
    return _Shape(name, kind, points, shape.get("group_id"))


def _objects(shapes: Sequence[_Shape], label_of: dict[str, int], *, outlines: bool) -> list[ObjectRecord]:
    """outlines: rectangles and masks are outlined by their frame."""
    groups: dict[object, list[_Shape]] = {}
    for number, shape in enumerate(shapes):
        if shape.kind not in _NO_OBJECTS:
            key = ("single", number) if shape.group is None else (shape.name, str(shape.group))
            groups.setdefault(key, []).append(shape)
    objects = []
    for members in groups.values():
        parts = tuple(_outline(shape) for shape in members)
        bare = any(shape.kind == "mask" or (shape.kind == "rectangle" and not outlines) for shape in members)
        objects.append(ObjectRecord(label_of[members[0].name], box_of(parts), outline=() if bare else parts))
    return objects


def _outline(shape: _Shape) -> NDArray[np.float64]:
    """The corners of a shape; a circle has as many as labelme's own converter gives it."""
    if shape.kind in ("rectangle", "mask"):
        (left, top), (right, bottom) = shape.points.min(axis=0), shape.points.max(axis=0)
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if shape.kind == "circle":
        centre, radius = shape.points[0], float(np.linalg.norm(shape.points[1] - shape.points[0]))
        number = max(12, int(math.pi / math.acos(1 - 1 / radius))) if radius > 1 else 12
        angles = np.arange(number) * 2 * math.pi / number
        circle: NDArray[np.float64] = centre + radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        return circle
    return shape.points
