"""YOLO's label files: for each image a text file with a line for each object, in shares of the image's size.

    CLASS X Y WIDTH HEIGHT             the box's centre and size
    CLASS X1 Y1 X2 Y2 X3 Y3 ...        or the object's outline

An image without a file, or with an empty one, has no objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import yaml

from detseg.data.box_index import BoxIndex, FindOutline
from detseg.data.faults import Fault
from detseg.data.files import list_files, list_images, read_text
from detseg.data.images import image_size
from detseg.data.label_index import LabelIndex
from detseg.data.records import ImageRecord, ObjectRecord, box_index, box_of, outlines_of, polygon_labels
from detseg.structures import Classes, Size

_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
_SLACK = 0.01
"""A share may lie this much outside 0..1: what Ultralytics lets pass."""


class YoloSplit(NamedTuple):
    """What one split is read from."""

    root: Path
    """The data set's folder."""
    classes: Classes
    images: tuple[Path, ...]
    """Folders, which are searched with their sub-folders, and lists of images, .txt."""
    keypoints: int = 0
    """Numbers behind each box that are a pose."""


def read_yolo(split: YoloSplit) -> BoxIndex:
    """The images of a split in the order of their names, numbered from 1, and their boxes; an outline's box is the one
    around it.

    What is wrong with a label file is a fault, and its image is left out. Raises FileNotFoundError, or ValueError where
    there is no image, or no label file for any.
    """
    records, notes, faults = _records(split)
    index = box_index(records, split.classes, split.root, notes=notes, faults=faults)
    return replace(index, outlines=partial(_outlines, split))


def _outlines(split: YoloSplit) -> FindOutline:
    return outlines_of(_records(split)[0])


def read_yolo_labels(split: YoloSplit) -> LabelIndex:
    """The same with label maps that are drawn from the outlines; an image with an object that has none is a fault."""
    records, notes, faults = _records(split)
    return polygon_labels(records, split.classes, split.root, origin=f"the label files of {split.root}", notes=notes,
                          faults=faults)


def label_file(image: Path) -> Path:
    """Where the objects of an image stand: in labels/ for one in images/ (the last of them in its path), else beside
    it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            there = Path(*parts[:i], "labels", *parts[i + 1 :])
            beside = image.with_suffix(".txt")
            return beside if beside.is_file() and not there.is_file() else there
    return image.with_suffix(".txt")


def has_label_lines(path: Path) -> bool | None:
    """Whether the first line of a text file is of this kind: a whole number, and at least four numbers behind it. None
    where the file has no line with anything on it."""
    try:
        first = next((line for line in read_text(path).splitlines() if line.strip()), None)
        numbers = None if first is None else [float(word) for word in first.split()]
    except (OSError, ValueError):
        return False
    return None if numbers is None else len(numbers) >= 5 and numbers[0] >= 0 and numbers[0].is_integer()


# ---------------------------------------------------------------------------------------------- names and folders


def read_data_yaml(path: Path) -> dict[str, Any]:
    """The content of a data.yaml. ValueError where it is no YAML, or no mapping."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as problem:
        raise ValueError(f"{path}: broken YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: need a mapping with names, train and val, got {content!r:.60}")  # noqa: TRY004
    return content


def classes_of_yaml(path: Path, content: dict[str, Any]) -> Classes:
    """The classes by the numbers that label files have for them: "names" as a list, or as numbers with names; with "nc"
    alone they are called class_0, class_1 ... ValueError where none of it says them."""
    names, number = content.get("names"), content.get("nc")
    if names is None and isinstance(number, int) and number > 0:
        names = [f"class_{k}" for k in range(number)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(key).isdecimal() for key in names):
        raise ValueError(f"{path}: need the classes as `names: [cat, dog]` or as `names: {{0: cat, 1: dog}}`, got "
                         f"{content.get('names')!r}")
    if isinstance(number, int) and number != len(names):
        raise ValueError(f"{path}: nc is {number}, but there are {len(names)} names; correct one of them")
    try:
        pairs = sorted((int(key), str(name).strip()) for key, name in names.items())
        return Classes(tuple(name for _, name in pairs), tuple(key for key, _ in pairs))
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def classes_of_list(path: Path) -> Classes:
    """The classes of a file with a name in each line. ValueError where there are none, or two of one name."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        raise ValueError(f"{path}: need a class name in each line, in the order of their numbers"
                         + (f"; line {lines.index('') + 1} is empty" if lines else "; the file is empty"))
    try:
        return Classes(tuple(lines), tuple(range(len(lines))))
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def places_of_yaml(path: Path, content: dict[str, Any], key: str) -> tuple[Path, ...] | None:
    """The folders and lists that a key of a data.yaml names: a path or several, relative to "path", and that to the
    file. None where the key is absent.

    Paths that begin with ../ may leave that out, as in Roboflow's files; of a path that was absolute on another
    machine, the longest end that is there counts. FileNotFoundError where a path leads nowhere.
    """
    values = content.get(key)
    if not values:
        return None
    here = path.absolute().parent
    bases = [here]
    if isinstance(root := content.get("path"), str) and root:
        bases = [base for base in (here / root, Path(root).absolute()) if base.is_dir()] + bases
    return tuple(_place(str(value), bases, of=f"{path}: {key}") for value in
                 (values if isinstance(values, list) else [values]))


def _place(value: str, bases: Sequence[Path], *, of: str) -> Path:
    parts = PurePath(value.replace("\\", "/")).parts
    inside = parts[next((i for i, part in enumerate(parts) if part not in (".", "..")), len(parts)) :]
    for base in bases:
        for tail in (parts, inside):
            if (base / Path(*tail)).exists():
                return (base / Path(*tail)).resolve()
    for start in range(1, len(parts)):
        for base in bases:
            there = base / Path(*parts[start:])
            # A last part alone, "images", could be anybody's.
            if there.exists() and (start < len(parts) - 1 or there.is_file() or there.name.lower() in _SPLITS):
                return there.resolve()
    raise FileNotFoundError(f"{of} is {value}, which is neither in {' nor in '.join(map(str, bases))}; correct it")


# ---------------------------------------------------------------------------------------------- images and objects


def _records(split: YoloSplit) -> tuple[list[ImageRecord], tuple[str, ...], tuple[Fault, ...]]:
    files: list[Path] = []
    faults: list[Fault] = []
    for place in split.images:
        files += _listed(place, split.root, faults) if place.is_file() else [
            place / name for name in list_images(place, recursive=True)]
    files = sorted(dict.fromkeys(files))
    where = " and ".join(map(str, split.images))
    if not files:
        raise FileNotFoundError(f"no images in {where}")
    records, with_file, repeated = [], 0, 0
    root = split.root.resolve()
    for image in files:
        labels = label_file(image)
        known = labels.is_file()
        with_file += known
        try:
            size = image_size(image)
            lines = read_text(labels).splitlines() if known else []
        except (OSError, ValueError) as problem:
            faults.append(Fault(str(image), str(problem)))
            continue
        objects, wrong, twice = _objects(lines, size, split)
        repeated += twice
        faults += (Fault(f"{labels}, line {number}", reason) for number, reason in wrong)
        if not wrong:
            records.append(ImageRecord(_name(image, root), size, tuple(objects)))
    if not with_file:
        raise ValueError(f"none of the {len(files)} images in {where} has a label file; looked for "
                         f"{label_file(files[0])} and the like. Only images without objects need none")
    faults += _orphans(split, {label_file(image) for image in files})
    notes = []
    if missing := len(files) - with_file:
        notes.append(f"{missing} of {len(files)} images have no label file, taken as without objects")
    if repeated:
        notes.append(f"{repeated} line{'s' * (repeated > 1)} stood twice in a label file, counted once")
    return records, tuple(notes), tuple(faults)


def _orphans(split: YoloSplit, used: set[Path]) -> Iterator[Fault]:
    """Label files with objects whose image is missing."""
    for place in split.images:
        folder = label_file(place / "image.jpg").parent
        if place.is_file() or not folder.is_dir():
            continue
        for name in list_files(folder, recursive=True):
            path = folder / name
            if path.suffix == ".txt" and path not in used and has_label_lines(path):
                yield Fault(str(path), f"there is no image for it in {place}; add the image, or remove the file")


def _listed(path: Path, root: Path, faults: list[Fault]) -> list[Path]:
    """The images that a list names, relative to it, to the data's folder, or as they were called elsewhere."""
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_place(line.strip(), (path.absolute().parent, root.absolute()), of=str(path)))
        except FileNotFoundError:
            faults.append(Fault(f"{path}, line {number}", f"there is no image {line.strip()}; remove the line, or add "
                                "the image"))
    return found


def _name(image: Path, root: Path) -> str:
    whole = image.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else whole.as_posix()


def _objects(
    lines: Sequence[str], size: Size, split: YoloSplit
) -> tuple[list[ObjectRecord], list[tuple[int, str]], int]:
    """The objects of a file, what is wrong by line, and how many lines stand twice."""
    objects, wrong, seen = [], [], set()
    twice = 0
    for number, line in enumerate(lines, 1):
        words = tuple(line.split())
        if not words:
            continue
        if words in seen:
            twice += 1
            continue
        seen.add(words)
        try:
            objects.append(_object(words, size, split))
        except ValueError as problem:
            wrong.append((number, str(problem)))
    return objects, wrong, twice


def _object(words: Sequence[str], size: Size, split: YoloSplit) -> ObjectRecord:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"need numbers, got {' '.join(words)[:60]!r}") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"need finite numbers, got {' '.join(words)[:60]!r}")
    label, shares = numbers[0], np.array(numbers[1:])
    if split.keypoints and len(shares) == 4 + split.keypoints:
        shares = shares[:4]
    is_box, is_outline = len(shares) == 4, len(shares) >= 6 and len(shares) % 2 == 0
    if not is_box and not is_outline:
        raise ValueError(f"need a class and four numbers, or a class and the x and y of at least three corners, got "
                         f"{len(words)} numbers")
    if not label.is_integer() or int(label) not in split.classes.source_ids:
        known = f"{min(split.classes.source_ids)}..{max(split.classes.source_ids)}"
        raise ValueError(f"there is no class {words[0]}; the names have the numbers {known}")
    if shares.min() < -_SLACK or shares.max() > 1 + _SLACK:
        worst = shares[np.abs(shares - 0.5).argmax()]
        raise ValueError(f"coordinates are shares of the image's width and height, 0..1, got {worst:g}; are these "
                         "pixels?")
    k, (height, width) = split.classes.source_ids.index(int(label)), size
    if is_box:
        x, y, w, h = (shares * (width, height, width, height)).tolist()
        return ObjectRecord(k, (x - w / 2, y - h / 2, w, h))
    outline = (shares.reshape(-1, 2) * (width, height),)
    return ObjectRecord(k, box_of(outline), outline=outline)
