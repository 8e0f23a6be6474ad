"""COCO's instances as label maps of VOC's 21 classes: torchvision's training set "COCO with VOC labels".

Follows coco_utils.py of torchvision's references/segmentation, where pixels of two objects are void, with one
difference: crowds are void here, as they are ignored by every loss. What is no object of VOC's classes is background.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.box_index import BoxIndex
from detseg.data.coco import COCO_80, Record, read_coco
from detseg.data.label_index import LabelIndex, moved_labels
from detseg.data.voc import VOC_21
from detseg.structures import VOID, Classes, LabelPixels, Size

VOC_OF_COCO = {
    5: 1, 2: 2, 16: 3, 9: 4, 44: 5, 6: 6, 3: 7, 17: 8, 62: 9, 21: 10, 67: 11, 18: 12, 19: 13, 4: 14, 1: 15, 64: 16,
    20: 17, 63: 18, 7: 19, 72: 20,
}  # fmt: skip
"""COCO's category id to VOC's class."""


@dataclass(frozen=True, eq=False)
class _Outlines:
    """The outlines of `m` objects with `p` parts in all, as flat arrays, for the reason that `box_index` gives."""

    first_part: NDArray[np.int64]
    """[m + 1]: where the parts of each object begin."""
    first_byte: NDArray[np.int64]
    """[p + 1]: where the content of each part begins."""
    content: NDArray[np.uint8]
    """A polygon's x, y, x, y, ... as float64, or run lengths as COCO's compressed text."""
    runs: NDArray[np.bool_]
    """[m]: the one part is run lengths."""

    def drawn(self, i: int, size: Size) -> NDArray[np.bool_]:
        """[H, W]: where object i is."""
        parts = [self.content[start:end].tobytes() for start, end in
                 zip(*(self.first_byte[self.first_part[i] + k : self.first_part[i + 1] + k] for k in (0, 1)),
                     strict=True)]
        if not parts:
            return np.zeros(size, np.bool_)
        if self.runs[i]:
            encoded = {"size": list(size), "counts": parts[0]}
        else:
            encoded = mask.merge(mask.frPyObjects([np.frombuffer(part) for part in parts], *size))
        with warnings.catch_warnings():
            # pycocotools 2.0.11 and numpy 2
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            found: NDArray[np.bool_] = mask.decode(encoded).astype(np.bool_)
        return found


@dataclass(frozen=True, eq=False)
class CocoLabels(LabelIndex):
    """Label maps drawn from outlines when they are asked for."""

    classes: Classes
    boxes: BoxIndex
    """The images, and all objects in them."""
    source: Path
    """The annotation file."""
    outlines: _Outlines
    outline_of_box: NDArray[np.int64]
    """For each object of `boxes` the position of its outline; -1 for one that is none of VOC's classes."""
    values: NDArray[np.uint8]
    """[256]: the label that each of VOC's classes has."""
    notes: tuple[str, ...] = ()

    @property
    def image_ids(self) -> NDArray[np.int64]:  # type: ignore[override]
        """As in the file."""
        return self.boxes.image_ids

    def path(self, i: int) -> Path:
        """The image file."""
        return self.boxes.path(i)

    def origin(self, i: int) -> str:
        """The annotation file."""
        return f"from {self.source}"

    def size(self, i: int) -> Size:
        """(height, width), as the annotation file says."""
        return self.boxes.size(i)

    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size; a ValueError where the annotation file says another."""
        if size != self.size(i):
            raise ValueError(f"the image {self.path(i)} is {size[0]} x {size[1]} (height x width), {self.source} says "
                             f"{self.size(i)[0]} x {self.size(i)[1]}; a label map has its image's size")
        labels = np.zeros(size, np.uint8)
        times = np.zeros(size, np.uint16)
        for row in range(self.boxes.offsets[i], self.boxes.offsets[i + 1]):
            if self.outline_of_box[row] < 0:
                continue
            found = self.outlines.drawn(int(self.outline_of_box[row]), size)
            labels[found] = VOC_OF_COCO[self.boxes.classes.source_ids[self.boxes.labels[row]]]
            times += found * np.uint16(2 if self.boxes.crowd[row] else 1)
        mapped: LabelPixels = np.where(times > 1, np.uint8(VOID), self.values[labels])
        return mapped

    def relabel(self, classes: Classes, /) -> CocoLabels:
        """See `LabelIndex`."""
        return replace(self, classes=classes, values=moved_labels(self.classes, classes)[self.values])


def read_coco_labels(annotations: Path, images: Path, *, more_than: int | None = None) -> CocoLabels:
    """The images of an annotation file with COCO's own categories, in its order; `images` is the folder they lie in.

    With `more_than` only those whose objects of VOC's classes have more pixels than this together, by their "area", as
    torchvision trains; a note says how many are left out.

    Raises FileNotFoundError, or ValueError naming the file, the ids, and what to do.
    """
    collected = _Collected()
    boxes = read_coco(annotations, images, visit=collected.visit)
    wanted = {source_id: name for source_id, name in COCO_80.used.items() if source_id in VOC_OF_COCO}
    if not wanted.items() <= boxes.classes.used.items():
        raise ValueError(f"{annotations}: its categories are not COCO's, so they do not become VOC's classes. Write "
                         "label maps as images: masks/SPLIT/NAME.png and a classes.txt (see detseg/data/masks.py)")
    notes: tuple[str, ...] = ()
    if more_than is not None:
        seen = _seen_pixels(boxes) > more_than
        if not seen.any():
            raise ValueError(f"{annotations}: no image has more than {more_than} pixels of VOC's classes; "
                             "there is nothing to learn from")
        if not seen.all():
            notes = (f"{(~seen).sum()} of {len(seen)} images have at most {more_than} pixels of VOC's classes and are "
                     "left out",)
        boxes = boxes.select(np.flatnonzero(seen).tolist())
    return CocoLabels(
        VOC_21, boxes, annotations, collected.outlines(), _outline_of_box(boxes, collected.ids, annotations),
        np.arange(256, dtype=np.uint8), notes,
    )


def _of_voc(boxes: BoxIndex) -> NDArray[np.bool_]:
    """[m]: whether an object is of one of VOC's classes."""
    return np.isin(np.array(boxes.classes.source_ids)[boxes.labels], list(VOC_OF_COCO))


def _seen_pixels(boxes: BoxIndex) -> NDArray[np.float64]:
    """[n]: the areas of VOC's classes in each image, crowds included."""
    image_of_box = np.repeat(np.arange(len(boxes)), np.diff(boxes.offsets))
    seen = np.zeros(len(boxes))
    np.add.at(seen, image_of_box, boxes.areas * _of_voc(boxes))
    return seen


def _outline_of_box(boxes: BoxIndex, ids: Sequence[int], annotations: Path) -> NDArray[np.int64]:
    position = {annotation_id: place for place, annotation_id in enumerate(ids)}
    of_voc = _of_voc(boxes)
    places = np.array([position.get(annotation_id, -1) for annotation_id in boxes.annotation_ids.tolist()], np.int64)
    lacking = boxes.annotation_ids[of_voc & (places < 0)]
    if len(lacking):
        raise ValueError(f"{annotations}: annotation {lacking[0]} has no 'segmentation' ({len(lacking)} have none); "
                         "label maps are drawn from outlines, boxes are not enough")
    return np.where(of_voc, places, -1)


@dataclass(eq=False)
class _Collected:
    """Outlines as the parser comes by them."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    first_part: array[int] = field(default_factory=lambda: array("q", [0]))
    first_byte: array[int] = field(default_factory=lambda: array("q", [0]))
    content: bytearray = field(default_factory=bytearray)
    runs: bytearray = field(default_factory=bytearray)

    def visit(self, record: Record) -> None:
        """Keeps the outline of an annotation of VOC's classes. ValueError for one of no known form."""
        if "segmentation" not in record or record.get("category_id") not in VOC_OF_COCO:
            return
        annotation_id, outline = record.get("id"), record["segmentation"]
        if type(annotation_id) is not int:
            return  # the reader refuses it with a better message
        try:
            parts = [_runs(outline)] if isinstance(outline, dict) else _polygons(outline)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"annotation {annotation_id} has a 'segmentation' that is neither polygons "
                             "[[x, y, x, y, ...], ...] nor run lengths {'size': [height, width], 'counts': ...}"
                             ) from None
        for part in parts:
            self.content += part
            self.first_byte.append(len(self.content))
        self.ids.append(annotation_id)
        self.first_part.append(len(self.first_byte) - 1)
        self.runs.append(isinstance(outline, dict))

    def outlines(self) -> _Outlines:
        """All of them as arrays."""
        return _Outlines(np.array(self.first_part, np.int64), np.array(self.first_byte, np.int64),
                         np.frombuffer(bytes(self.content), np.uint8), np.frombuffer(bytes(self.runs), np.bool_))


def _polygons(outline: object) -> list[bytes]:
    """Each polygon's numbers as bytes, without those of fewer than three corners, which cover nothing."""
    if not isinstance(outline, list):
        raise TypeError(outline)
    polygons = [np.array(polygon, dtype=np.float64) for polygon in outline]
    if any(polygon.ndim != 1 or len(polygon) % 2 or not np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError(outline)
    return [polygon.tobytes() for polygon in polygons if len(polygon) >= 6]


def _runs(outline: Record) -> bytes:
    """Run lengths as COCO's compressed text."""
    counts = outline["counts"]
    if isinstance(counts, str):
        return counts.encode("ascii")
    height, width = outline["size"]
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(outline)
    compressed: bytes = mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return compressed
