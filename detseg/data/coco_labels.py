"""Outlines of objects in COCO's annotation files as label maps.

`read_instances_labels` takes the classes that a file has. `read_coco_labels` makes VOC's 21 classes of COCO's 80,
torchvision's training set "COCO with VOC labels": it follows coco_utils.py of torchvision's references/segmentation,
where pixels of two objects are void, with one difference: crowds are void here, as they are ignored by every loss. What
is no object of VOC's classes is background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.box_index import BoxIndex
from detseg.data.coco import COCO_80, CocoIndex
from detseg.data.coco_outlines import Outlines, read_outlines
from detseg.data.drawn_labels import DrawnLabels, decoded_mask
from detseg.data.faults import Fault
from detseg.data.voc import VOC_21
from detseg.structures import VOID, Classes, LabelPixels, Size

VOC_OF_COCO = {
    5: 1, 2: 2, 16: 3, 9: 4, 44: 5, 6: 6, 3: 7, 17: 8, 62: 9, 21: 10, 67: 11, 18: 12, 19: 13, 4: 14, 1: 15, 64: 16,
    20: 17, 63: 18, 7: 19, 72: 20,
}  # fmt: skip
"""COCO's category id to VOC's class."""


@dataclass(frozen=True, eq=False, kw_only=True)
class OutlineLabels(DrawnLabels):
    """Label maps drawn from COCO's outlines: polygons, or runs of pixels."""

    outlines: Outlines
    """Of those objects that are drawn."""
    outline_of_box: NDArray[np.int64]
    """For each object of `boxes` the position of its outline; -1 for one that is not drawn."""

    def _outlined(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the objects that are drawn."""
        return rows[self.outline_of_box[rows] >= 0]


class CocoLabels(OutlineLabels):
    """VOC's classes: background, an object's class, and void where there are two objects, or a crowd."""

    def _drawn(self, rows: NDArray[np.int64], size: Size) -> LabelPixels:
        labels = np.zeros(size, np.uint8)
        times = np.zeros(size, np.uint16)
        for row in self._outlined(rows):
            found = decoded_mask(self.outlines.encoded(int(self.outline_of_box[row]), size))
            labels[found] = self.label_of_class[self.boxes.labels[row]]
            times += found * np.uint16(2 if self.boxes.crowd[row] else 1)
        return np.where(times > 1, np.uint8(VOID), labels)


class InstanceLabels(OutlineLabels):
    """Background and a file's own classes. Of objects that overlap the one with fewer pixels lies on top, of equal ones
    the later; crowds are void, and lie below all others."""

    def _drawn(self, rows: NDArray[np.int64], size: Size) -> LabelPixels:
        labels = np.zeros(size, np.uint8)
        rows = self._outlined(rows)
        encoded = [self.outlines.encoded(int(self.outline_of_box[row]), size) for row in rows]
        pixels = mask.area(encoded) if encoded else np.zeros(0)
        crowd = self.boxes.crowd[rows]
        for k in np.lexsort((np.arange(len(rows)), -pixels.astype(np.int64), ~crowd)).tolist():
            label = VOID if crowd[k] else self.label_of_class[self.boxes.labels[rows[k]]]
            labels[decoded_mask(encoded[k])] = label
        return labels


def read_coco_labels(annotations: Path, images: Path, *, more_than: int | None = None) -> CocoLabels:
    """The images of an annotation file with COCO's own categories, in its order; `images` is the folder they lie in.

    With `more_than` only those whose objects of VOC's classes have more pixels than this together, by their "area", as
    torchvision trains; a note says how many are left out. Images with a broken annotation or outline are left out and
    named in `faults`.

    Raises FileNotFoundError, or ValueError where nothing can be read: it names the file, and what to do.
    """
    index = CocoIndex.read(annotations, images)
    if not _has_vocs_classes(index.boxes.classes):
        raise ValueError(f"{annotations}: its categories are not COCO's, so they do not become VOC's classes. "
                         "`read_instances_labels` takes the file's own")
    return _coco_labels(index, annotations, more_than)


def _has_vocs_classes(classes: Classes) -> bool:
    """Whether they are COCO's own, or at least those that are VOC's too, under COCO's ids."""
    wanted = {source_id: name for source_id, name in COCO_80.used.items() if source_id in VOC_OF_COCO}
    return wanted.items() <= classes.used.items()


def _coco_labels(index: CocoIndex, annotations: Path, more_than: int | None) -> CocoLabels:
    label_of_class = np.array([VOC_OF_COCO.get(source_id, 0) for source_id in index.boxes.classes.source_ids], np.uint8)
    drawn = _drawn(index, annotations, label_of_class > 0)
    boxes, notes = drawn.boxes, drawn.notes
    if more_than is not None:
        seen = _seen_pixels(boxes, label_of_class > 0) > more_than
        if not seen.any():
            raise ValueError(f"{annotations}: no image has more than {more_than} pixels of VOC's classes; "
                             "there is nothing to learn from")
        if not seen.all():
            notes += (f"{(~seen).sum()} of {len(seen)} images have at most {more_than} pixels of VOC's classes and are "
                      "left out",)
        drawn = drawn.select(np.flatnonzero(seen))
    outlines, outline_of_box = drawn.numbered()
    return CocoLabels(
        classes=VOC_21, boxes=drawn.boxes, source=str(annotations), outlines=outlines, outline_of_box=outline_of_box,
        label_of_class=label_of_class, values=np.arange(256, dtype=np.uint8), notes=notes, faults=drawn.faults)


def read_instances_labels(annotations: Path, images: Path) -> InstanceLabels:
    """The images of an annotation file of any categories, in its order; `images` is the folder they lie in.

    The classes are "background" and the file's own. They keep their ids, and background has 0, unless an id does not
    fit a label map (0 is taken, 255 is void): then all are numbered from 1. A category that is itself called background
    is the background. `InstanceLabels` says what lies on top. Images with a broken annotation or outline, or with an
    object without outline, are left out and named in `faults`.

    Raises FileNotFoundError, or ValueError where nothing can be read: it names the file, and what to do.
    """
    return _instances_labels(CocoIndex.read(annotations, images), annotations)


def read_outline_labels(annotations: Path, images: Path, *, more_than: int | None = None) -> OutlineLabels:
    """What `read_coco_labels` gives of a file with COCO's own categories, and `read_instances_labels` of any other."""
    index = CocoIndex.read(annotations, images)
    if _has_vocs_classes(index.boxes.classes):
        return _coco_labels(index, annotations, more_than)
    return _instances_labels(index, annotations)


def _instances_labels(index: CocoIndex, annotations: Path) -> InstanceLabels:
    try:
        classes, label_of_class = _with_background(index.boxes.classes)
    except ValueError as problem:
        raise ValueError(f"{annotations}: {problem}") from None
    drawn = _drawn(index, annotations, np.ones(len(label_of_class), np.bool_))
    outlines, outline_of_box = drawn.numbered()
    return InstanceLabels(
        classes=classes, boxes=drawn.boxes, source=str(annotations), outlines=outlines, outline_of_box=outline_of_box,
        label_of_class=label_of_class, values=np.arange(256, dtype=np.uint8), notes=drawn.notes, faults=drawn.faults)


def _with_background(classes: Classes) -> tuple[Classes, NDArray[np.uint8]]:
    """The classes of label maps, and the label of each class of the boxes."""
    things = [k for k, name in enumerate(classes.names) if name.lower() != "background"]
    if len(things) >= VOID:
        raise ValueError(f"has {len(things)} categories; a label map has room for {VOID - 1} and background")
    ids = [classes.source_ids[k] for k in things]
    if not all(0 < source_id < VOID for source_id in ids):
        ids = list(range(1, len(things) + 1))
    labels = np.zeros(len(classes), np.uint8)
    labels[things] = np.arange(1, len(things) + 1)
    return Classes(("background", *(classes.names[k] for k in things)), (0, *ids)), labels


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The images all of whose objects can be drawn."""

    boxes: BoxIndex
    all_outlines: Outlines
    records: NDArray[np.int64]
    """[m]: where the outline of each box is among them; -1 for one that is not drawn."""
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]

    def select(self, images: NDArray[np.int64]) -> _Drawn:
        """Those of some of the images."""
        rows = np.concatenate([np.arange(self.boxes.offsets[i], self.boxes.offsets[i + 1]) for i in images] or [images])
        return replace(self, boxes=self.boxes.select(images.tolist()), records=self.records[rows])

    def numbered(self) -> tuple[Outlines, NDArray[np.int64]]:
        """The outlines that are drawn, and where that of each box is among them."""
        shown = self.records >= 0
        if 2 * shown.sum() > len(self.all_outlines.thin):
            return self.all_outlines, self.records  # not worth a copy
        return self.all_outlines.select(self.records[shown]), np.where(shown, np.cumsum(shown) - 1, -1)


def _drawn(index: CocoIndex, annotations: Path, shown_classes: NDArray[np.bool_]) -> _Drawn:
    """Leaves out the images that would be drawn wrong: what is not drawn would be learned as background."""
    outlines, boxes = read_outlines(annotations), index.boxes
    shown = shown_classes[boxes.labels]
    image_of_box = np.repeat(np.arange(len(boxes)), np.diff(boxes.offsets))
    present = outlines.present()[index.records]
    if shown.any() and not present[shown].any() and not any(i in outlines.reasons for i in index.records.tolist()):
        raise ValueError(f"{annotations}: none of its {shown.sum()} annotations has a 'segmentation'; label maps are "
                         "drawn from outlines, boxes are not enough. Train a detector, or draw outlines")
    run_sizes = outlines.run_sizes[index.records]
    other_size = np.any(run_sizes != boxes.sizes[image_of_box], axis=1) & (run_sizes[:, 0] > 0)
    good = index.complete.copy()
    faults = list(boxes.faults)
    for row in np.flatnonzero(shown & (~present | other_size)).tolist():
        height, width = boxes.size(int(image_of_box[row]))
        reason = outlines.reasons.get(int(index.records[row])) or (
            "it has no 'segmentation'; label maps are drawn from outlines" if not present[row] else
            f"the run lengths of its 'segmentation' are for an image of {run_sizes[row, 0]} x {run_sizes[row, 1]}, its "
            f"own is {height} x {width} (height x width)")
        faults.append(Fault(f"{annotations}: annotation {boxes.annotation_ids[row]}",
                            f"{reason}. Its image is left out"))
        good[image_of_box[row]] = False
    if not good.any():
        raise ValueError("\n".join([f"{annotations}: no image can be used:", *(f"  {fault}" for fault in faults[:5])]))
    incomplete = int((~index.complete).sum())
    notes = index.notes
    if incomplete:
        notes += (f"{incomplete} image{'s are' if incomplete > 1 else ' is'} left out: an annotation of "
                  f"{'each' if incomplete > 1 else 'it'} is broken, and would be learned as background",)
    if thin := int(outlines.thin[index.records[shown]].sum()):
        notes += (f"{thin} polygon{'s' * (thin > 1)} of fewer than three corners beside others of the same object, "
                  "which cover nothing",)
    drawn = _Drawn(boxes, outlines, np.where(shown, index.records, -1), notes, tuple(faults))
    return drawn if good.all() else drawn.select(np.flatnonzero(good))


def _seen_pixels(boxes: BoxIndex, shown_classes: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n]: the areas of the objects of some classes in each image, crowds included."""
    image_of_box = np.repeat(np.arange(len(boxes)), np.diff(boxes.offsets))
    seen = np.zeros(len(boxes))
    np.add.at(seen, image_of_box, boxes.areas * shown_classes[boxes.labels])
    return seen
