"""YOLO's text files without a data.yaml: the names are in classes.txt (Label Studio, LabelImg) or obj.names (CVAT).

    classes.txt
    images/
      street.jpg
    labels/
      street.txt

Or with a folder for each split, in images/ and labels/ or around them; or the text files beside their images.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from detseg.data.box_index import BoxIndex
from detseg.data.files import list_files
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, split_folders, split_of
from detseg.data.yolo import YoloSplit, classes_of_list, has_label_lines, read_yolo, read_yolo_labels

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "data.names", "labels/classes.txt",
               "train/_darknet.labels", "train/classes.txt", "images/classes.txt", "obj_train_data/classes.txt")
_NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "requirements.txt"})
_PROBED = 20


def find(place: Place) -> Found | None:
    """By the content of the text files in labels/, or beside the images."""
    root = place.path
    if not root.is_dir():
        return None
    folders = _folders(root)
    names = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    there = {split: images for split, (images, labels) in folders.items() if _has_labels(labels)}
    if not there:
        return None
    parts = {split: Part(images, boxes=partial(_boxes, root, names, images),
                         labels=partial(_labels, root, names, images)) for split, images in there.items()}
    example = next(_text_files(folders[next(iter(there))][1]))
    said = f"{names.relative_to(root).as_posix()} has the names" if names else "no file has the names"
    return Found(f"{example.relative_to(root).as_posix()} has lines of a class and shares, and {said}", parts)


def _folders(root: Path) -> dict[PartName, tuple[Path, Path]]:
    """The folders of images and of labels of each split."""
    if (root / "images").is_dir() and (root / "labels").is_dir():
        inside = {split: (images, root / "labels" / images.name)
                  for split, images in split_folders(root / "images").items()}
        return inside or {"whole": (root / "images", root / "labels")}
    around = split_folders(root)
    if around:
        return {split: (folder / "images", folder / "labels") if (folder / "images").is_dir() else (folder, folder)
                for split, folder in around.items()}
    darknet = {path.name: path for path in sorted(root.glob("obj_*_data")) if path.is_dir()}
    told: dict[PartName, tuple[Path, Path]] = {
        split: (path, path) for name, path in darknet.items() if (split := split_of(name)) is not None}
    if len(told) > 1:
        return told
    return {"whole": next(iter(told.values()))} if told else {"whole": (root, root)}


def _text_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (folder / name for name in list_files(folder, recursive=True)
                    if name.endswith(".txt") and name.rpartition("/")[2] not in _NOT_LABELS)


def _has_labels(folder: Path) -> bool:
    """Whether the first text files with any content are label files."""
    said = (has_label_lines(path) for path in islice(_text_files(folder), _PROBED))
    return next((answer for answer in said if answer is not None), False)


def _split(root: Path, names: Path | None, images: Path) -> YoloSplit:
    if names is None:
        raise ValueError(f"nothing says what the numbers in YOLO's label files of {root} mean. Write "
                         f"{root / 'classes.txt'} with a name in each line, from class 0 on, or a data.yaml with names")
    return YoloSplit(root, classes_of_list(names), (images,))


def _boxes(root: Path, names: Path | None, images: Path) -> BoxIndex:
    return read_yolo(_split(root, names, images))


def _labels(root: Path, names: Path | None, images: Path) -> LabelIndex:
    return read_yolo_labels(_split(root, names, images))


LAYOUT = Layout("YOLO, no data.yaml", __doc__, "text files in labels/ or beside the images, and classes.txt or "
                "obj.names", find, boxes=True, label_maps="outlines")
