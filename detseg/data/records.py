"""Images and their objects as small records: what readers of a file for each image collect, and indexes made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.box_index import BoxIndex, FindOutline, Segmentation
from detseg.data.drawn_labels import DrawnLabels, decoded_mask
from detseg.data.faults import Fault
from detseg.structures import VOID, Classes, LabelPixels, Size


class ObjectRecord(NamedTuple):
    """One object."""

    label: int
    box_xywh: tuple[float, float, float, float]
    crowd: bool = False
    outline: tuple[NDArray[np.float64], ...] = ()
    """Polygons [P, 2] of x, y in pixels; none where only the box is known."""


class ImageRecord(NamedTuple):
    """One image."""

    name: str
    """Relative to the data set's folder of images."""
    size: Size
    objects: tuple[ObjectRecord, ...]


def box_of(outline: Sequence[NDArray[np.float64]]) -> tuple[float, float, float, float]:
    """The x, y, width and height around polygons."""
    points = np.concatenate(outline)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right - left, bottom - top


def box_index(
    records: Sequence[ImageRecord], classes: Classes, folder: Path, *, notes: tuple[str, ...] = (),
    faults: tuple[Fault, ...] = (),
) -> BoxIndex:
    """The boxes of some images; images and annotations are numbered from 1 in the order given."""
    objects = [thing for record in records for thing in record.objects]
    boxes = np.array([thing.box_xywh for thing in objects], np.float64).reshape(-1, 4)
    return BoxIndex.of(
        classes,
        folder,
        image_ids=np.arange(1, len(records) + 1),
        sizes=np.array([record.size for record in records], np.int32).reshape(-1, 2),
        names=[record.name for record in records],
        image_of_box=np.repeat(np.arange(len(records)), [len(record.objects) for record in records]),
        boxes=boxes,
        labels=np.array([thing.label for thing in objects], np.int32),
        crowd=np.array([thing.crowd for thing in objects], np.bool_),
        areas=np.array([_area(thing) for thing in objects], np.float64),
        annotation_ids=np.arange(1, len(objects) + 1),
        notes=notes,
        faults=faults,
    )


def outlines_of(records: Sequence[ImageRecord]) -> FindOutline:
    """The outlines by the ids that `box_index` gives the annotations."""
    objects = [thing for record in records for thing in record.objects]

    def find(annotation_id: int) -> Segmentation | None:
        return [part.ravel().tolist() for part in objects[annotation_id - 1].outline] or None

    return find


def polygon_labels(
    records: Sequence[ImageRecord], classes: Classes, folder: Path, *, origin: str, notes: tuple[str, ...] = (),
    faults: tuple[Fault, ...] = (),
) -> PolygonLabels:
    """Label maps drawn from the outlines of some images: background, then the classes in their order.

    An image with an object that has a box only is a fault. ValueError where nothing has an outline.
    """
    if not any(thing.outline for record in records for thing in record.objects):
        raise ValueError(f"{origin} has boxes only, no outlines; label maps are drawn from outlines, boxes are not "
                         "enough")
    bare = [record.name for record in records if not all(thing.outline for thing in record.objects)]
    faults += tuple(Fault(str(folder / name), "an object has a box and no outline, so its pixels are unknown; outline "
                          "it") for name in bare)
    whole = [record for record in records if record.name not in set(bare)]
    objects = [thing for record in whole for thing in record.objects]
    parts = [part for thing in objects for part in thing.outline]
    label_classes, label_of_class = with_background(classes)
    return PolygonLabels(
        classes=label_classes,
        label_of_class=label_of_class,
        boxes=box_index(whole, classes, folder),
        first_part=_starts([len(thing.outline) for thing in objects]),
        first_point=_starts([len(part) for part in parts]),
        points=np.concatenate(parts) if parts else np.zeros((0, 2)),
        source=origin,
        values=np.arange(256, dtype=np.uint8),
        notes=notes,
        faults=faults,
    )


def with_background(classes: Classes) -> tuple[Classes, NDArray[np.uint8]]:
    """The classes of label maps drawn from objects, and the label of each class of the objects: what is no object is
    "background", 0, and so is a class of this name; the others follow, numbered from 1.

    ValueError where they are too many for a label map.
    """
    things = [k for k, name in enumerate(classes.names) if name.lower() != "background"]
    if len(things) >= VOID:
        raise ValueError(f"a label map has room for {VOID} classes, got background and {len(things)}")
    labels = np.zeros(len(classes), np.uint8)
    labels[things] = np.arange(1, len(things) + 1)
    return Classes(("background", *(classes.names[k] for k in things)), tuple(range(len(things) + 1)),
                   ((0, 0, 0), *(classes.colours[k] for k in things))), labels


@dataclass(frozen=True, eq=False, kw_only=True)
class PolygonLabels(DrawnLabels):
    """Label maps drawn from polygons; `m` objects of `p` polygons with `q` corners.

    Where objects overlap the one of the smaller area is seen, of equal ones the later; a crowd is void where nothing
    else is.
    """

    first_part: NDArray[np.int64]
    """[m + 1]: where the polygons of each object begin."""
    first_point: NDArray[np.int64]
    """[p + 1]: where the corners of each polygon begin."""
    points: NDArray[np.float64]
    """[q, 2] x, y."""

    def _drawn(self, rows: NDArray[np.int64], size: Size) -> LabelPixels:
        labels = np.zeros(size, np.uint8)
        order = np.lexsort((rows, -self.boxes.areas[rows], ~self.boxes.crowd[rows]))
        for row in rows[order].tolist():
            labels[self._pixels(row, size)] = (
                VOID if self.boxes.crowd[row] else self.label_of_class[self.boxes.labels[row]])
        return labels

    def _pixels(self, row: int, size: Size) -> NDArray[np.bool_]:
        """[H, W]: where an object is, by the rule of pycocotools for a polygon's pixels."""
        polygons = [self.points[self.first_point[part] : self.first_point[part + 1]].ravel()
                    for part in range(self.first_part[row], self.first_part[row + 1])]
        return decoded_mask(mask.merge(mask.frPyObjects(polygons, *size)))


def _area(thing: ObjectRecord) -> float:
    """Of the outline where there is one (the shoelace formula), else of the box."""
    if not thing.outline:
        return max(thing.box_xywh[2], 0.0) * max(thing.box_xywh[3], 0.0)
    areas = (np.dot(part[:, 0], np.roll(part[:, 1], -1)) - np.dot(part[:, 1], np.roll(part[:, 0], -1))
             for part in thing.outline)
    return sum(abs(float(area)) / 2 for area in areas)


def _starts(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
