"""What all layouts with COCO's annotation files have in common: knowing such a file, and finding its images."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from detseg.data.box_index import BoxIndex, FindOutline
from detseg.data.coco import CocoIndex, read_coco
from detseg.data.coco_labels import read_outline_labels
from detseg.data.coco_outlines import read_outlines
from detseg.data.files import FileFinder
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Part, PartName

MIN_OBJECT_PIXELS = 1000
"""What torchvision asks of the VOC objects of a training image of COCO (references/segmentation/coco_utils.py)."""

_PROBED_BYTES = 1 << 16
_PROBED_NAMES = 3
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_CAPTIONS = re.compile(rb'"caption"\s*:')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def is_coco(path: Path) -> bool:
    """Whether a JSON file is an annotation file of COCO's kind: has two of its three lists. Only the beginning and the
    end are read."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        probed = file.read(_PROBED_BYTES)
        file.seek(max(_PROBED_BYTES, path.stat().st_size - _PROBED_BYTES))
        probed += file.read()
    return len(set(_LISTS.findall(probed))) >= 2 and _CAPTIONS.search(probed) is None


def coco_part(name: PartName, annotations: Path, images: Path) -> Part:
    """The split of an annotation file whose images lie in a folder."""
    return Part(annotations, boxes=partial(_boxes, annotations, images),
                labels=partial(_labels, annotations, images, train=name == "train"))


def images_folder(annotations: Path, root: Path, *, subset: str = "", given: Path | None = None) -> Path:
    """Where the images of an annotation file lie: the first folder that has the first of them, of those that are usual.

    Args:
        annotations: the file.
        root: the data set's folder.
        subset: what the file's name says, such as "train2017" or "default".
        given: where somebody says it.
    """
    if given is not None:
        return given
    names = list(_file_names(annotations))
    usual = [root / folder for folder in (subset, f"images/{subset}", "images", "JPEGImages", "imgs", "data") if folder]
    for folder in (*usual, annotations.parent, root):
        if names and all((folder / name).is_file() for name in names):
            return folder
    finder = FileFinder(root, images_only=True)
    found = {_without_tail(place, name) for name in names if (place := finder.find(name)) is not None}
    if len(found) == 1:
        return root / found.pop()
    return next((folder for folder in usual if folder.is_dir()), root) if not found else root


def _boxes(annotations: Path, images: Path) -> BoxIndex:
    _check_images(annotations, images)
    return replace(read_coco(annotations, images), outlines=partial(_outlines, annotations, images))


def _outlines(annotations: Path, images: Path) -> FindOutline:
    index, outlines = CocoIndex.read(annotations, images), read_outlines(annotations)
    record = dict(zip(index.boxes.annotation_ids.tolist(), index.records.tolist(), strict=True))
    return lambda annotation_id: outlines.as_coco(record[annotation_id])


def _labels(annotations: Path, images: Path, *, train: bool) -> LabelIndex:
    """The file's categories and background; VOC's classes where the categories are COCO's own, and of the training
    images then only those that show more than `MIN_OBJECT_PIXELS` of these."""
    _check_images(annotations, images)
    return read_outline_labels(annotations, images, more_than=MIN_OBJECT_PIXELS if train else None)


def _check_images(annotations: Path, images: Path) -> None:
    if not images.is_dir():
        raise FileNotFoundError(f"{annotations} is there, but the folder {images} with its images is not; unpack it "
                                "there, or name another with --images DIR")


def _file_names(annotations: Path) -> Iterator[str]:
    """Of the first images."""
    with annotations.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, found in enumerate(_FILE_NAME.finditer(content), 1):
            try:
                yield json.loads(found[1].decode("utf-8", "replace"))
            except json.JSONDecodeError:
                return
            if number == _PROBED_NAMES:
                return


def _without_tail(place: str, name: str) -> str:
    """The folder from which `name` leads to `place`."""
    tail = PurePosixPath(name.replace("\\", "/")).parts
    parts: Sequence[str] = PurePosixPath(place).parts
    common = 1
    while common < min(len(parts), len(tail)) and parts[-common - 1] == tail[-common - 1]:
        common += 1
    return "/".join(parts[:-common])
