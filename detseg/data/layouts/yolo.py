"""YOLO's text files, as Ultralytics, Roboflow, CVAT and Label Studio write them; data.yaml says names and folders.

    data.yaml
    images/
      train/
        street.jpg
      val/
    labels/
      train/
        street.txt
      val/

Or train/images/ and train/labels/, or lists of images. A data.yaml itself may be named.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from detseg.data.box_index import BoxIndex
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place
from detseg.data.yolo import (
    YoloSplit,
    classes_of_yaml,
    places_of_yaml,
    read_data_yaml,
    read_yolo,
    read_yolo_labels,
)

_SUFFIXES = (".yaml", ".yml")
_KEYS: tuple[PartName, ...] = ("train", "val", "test")
_OTHER_NAMES = {"val": ("valid", "validation")}


def find(place: Place) -> Found | None:
    """By a YAML file with the keys names and train or val. ValueError where there are several."""
    path = place.path
    if path.is_file():
        return _found(path, path.parent) if path.suffix in _SUFFIXES else None
    if not path.is_dir():
        return None
    files = [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES and _splits(file)]
    named = [file for file in files if file.stem in ("data", "dataset")] or files
    if len(named) > 1:
        raise ValueError(f"{path} has several files that describe YOLO data, {', '.join(file.name for file in named)}; "
                         "name one with --data FILE")
    return _found(named[0], path) if named else None


def _found(file: Path, root: Path) -> Found | None:
    splits = _splits(file)
    if not splits:
        return None
    parts = {name: Part(file, boxes=partial(_boxes, file, root, key), labels=partial(_labels, file, root, key))
             for name, key in splits.items()}
    return Found(f"{file.name} has names and {', '.join(splits.values())}", parts)


def _splits(file: Path) -> dict[PartName, str]:
    """The splits that a YAML file names, with the keys it has for them; none where it is about something else."""
    try:
        content = read_data_yaml(file)
    except (OSError, ValueError):
        return {}
    if "names" not in content and "nc" not in content:
        return {}
    found = {name: key for name in _KEYS for key in (*_OTHER_NAMES.get(name, ()), name) if content.get(key)}
    # A part of an export may lack the folders that its data.yaml speaks of.
    there = {name: key for name, key in found.items() if _is_there(file, content, key)}
    return there or found


def _is_there(file: Path, content: dict[str, Any], key: str) -> bool:
    try:
        return places_of_yaml(file, content, key) is not None
    except FileNotFoundError:
        return False


def _split(file: Path, root: Path, key: str) -> YoloSplit:
    content = read_data_yaml(file)
    shape = content.get("kpt_shape")
    keypoints = int(shape[0]) * int(shape[1]) if isinstance(shape, list) and len(shape) == 2 else 0
    images = places_of_yaml(file, content, key)
    assert images is not None, "the key was there when the layout was recognised"
    return YoloSplit(root, classes_of_yaml(file, content), images, keypoints)


def _boxes(file: Path, root: Path, key: str) -> BoxIndex:
    return read_yolo(_split(file, root, key))


def _labels(file: Path, root: Path, key: str) -> LabelIndex:
    return read_yolo_labels(_split(file, root, key))


LAYOUT = Layout("YOLO", __doc__, "data.yaml with names, train and val", find, boxes=True, label_maps="outlines")
