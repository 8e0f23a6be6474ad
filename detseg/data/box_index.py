"""What a detection data set says about its images, as a few flat arrays.

A Python list of dictionaries grows in every DataLoader worker: reading an object writes its reference count, which
copies the page it lies on. These arrays are never written, so forked workers share one copy (COCO's training set:
51 MB). Every reader (COCO, VOC, a generated set) ends here, so training and the metric know one form only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detseg.data.faults import Fault
from detseg.structures import Classes, Size

_OUTSIDE_TOLERANCE = 1.0
"""Pixels that a box may reach out of its image without a remark: rounding, as in COCO itself."""


Segmentation: TypeAlias = list[list[float]] | dict[str, object]
"""An outline as COCO's files have it: polygons [[x, y, x, y, ...], ...], or run lengths."""

FindOutline: TypeAlias = Callable[[int], Segmentation | None]
"""The outline of an annotation, by its id; None where it has a box only."""


class Remark(NamedTuple):
    """Boxes that are odd and no error."""

    kind: str
    rows: NDArray[np.bool_]
    """[m]."""
    text: str
    """What is said of them."""


class ImageBoxes(NamedTuple):
    """The boxes of one image that can be learned from, in original pixels."""

    boxes: NDArray[np.float32]
    """[M, 4] xyxy, inside the image and of some area."""
    labels: NDArray[np.int64]
    """[M], 0..K-1."""
    crowd: NDArray[np.bool_]
    """[M]: a region to ignore."""


@dataclass(frozen=True, eq=False)
class BoxIndex:
    """The images of a split and their annotations, grouped by image. `n` images, `m` annotations.

    Built by `BoxIndex.of`; image i has the annotations `offsets[i]` to `offsets[i + 1]`.
    """

    classes: Classes
    folder: Path
    """The file names are relative to it."""
    image_ids: NDArray[np.int64]
    """[n], all different."""
    sizes: NDArray[np.int32]
    """[n, 2] height, width."""
    name_bytes: NDArray[np.uint8]
    """All file names, one after the other."""
    name_offsets: NDArray[np.int64]
    """[n + 1]: where each name begins in `name_bytes`."""
    offsets: NDArray[np.int64]
    """[n + 1]: where the annotations of each image begin."""
    boxes: NDArray[np.float64]
    """[m, 4] x, y, width, height exactly as in the file: the metric needs these."""
    labels: NDArray[np.int32]
    """[m], 0..K-1."""
    crowd: NDArray[np.bool_]
    """[m]: COCO's iscrowd, VOC's difficult."""
    areas: NDArray[np.float64]
    """[m]: COCO's area, which is that of the outline and not of the box."""
    annotation_ids: NDArray[np.int64]
    """[m], all different."""
    notes: tuple[str, ...]
    """What a person should know about these data and that is no error."""
    faults: tuple[Fault, ...] = ()
    """What was left out because it is broken; training and evaluation refuse it unless they are told to skip it."""
    outlines: Callable[[], FindOutline] | None = None
    """Reads the outlines again, for who writes the annotations elsewhere; None where the layout has boxes only."""

    @classmethod
    def of(
        cls,
        classes: Classes,
        folder: Path,
        *,
        image_ids: NDArray[np.int64],
        sizes: NDArray[np.int32],
        names: Sequence[str],
        image_of_box: NDArray[np.int64],
        boxes: NDArray[np.float64],
        labels: NDArray[np.int32],
        crowd: NDArray[np.bool_],
        areas: NDArray[np.float64],
        annotation_ids: NDArray[np.int64],
        notes: tuple[str, ...] = (),
        faults: tuple[Fault, ...] = (),
    ) -> BoxIndex:
        """Groups annotations in any order by image; within an image they keep their order.

        `image_of_box` [m] holds positions (0..n-1), not ids. The readers have checked everything else: ids differ,
        numbers are finite, lengths agree. Adds notes about boxes that cannot be trained on.
        """
        present = {classes.names[k] for k in np.unique(labels)}
        if unused := present - set(classes.used.values()):
            raise ValueError(f"a name that begins with 'unused' marks a class without objects; rename {sorted(unused)}")
        encoded = [os.fsencode(name) for name in names]
        order = np.argsort(image_of_box, kind="stable")
        index = cls(
            classes=classes,
            folder=folder,
            image_ids=image_ids,
            sizes=sizes,
            name_bytes=np.frombuffer(b"".join(encoded), np.uint8),
            name_offsets=_offsets(np.array([len(name) for name in encoded], np.int64)),
            offsets=_offsets(np.bincount(image_of_box, minlength=len(names))),
            boxes=boxes[order],
            labels=labels[order],
            crowd=crowd[order],
            areas=areas[order],
            annotation_ids=annotation_ids[order],
            notes=(),
            faults=faults,
        )
        usable, remarks = index._judged()
        loud = () if np.any(usable & ~index.crowd) or not len(index) else (
            f"NOTHING TO LEARN FROM: {index.nothing_to_learn()}",)
        return replace(index, notes=loud + notes + tuple(remark.text for remark in remarks))

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, i: int) -> Path:
        """The file of image i."""
        return self.folder / self._name(i)

    def size(self, i: int) -> Size:
        """(height, width) of image i, as its annotations say."""
        height, width = self.sizes[self._checked(i)]
        return int(height), int(width)

    def targets(self, i: int) -> ImageBoxes:
        """The boxes of image i to learn from: clipped to it, and without those that then have no area."""
        rows, corners_xyxy, kept = self._learnable_rows(i)
        return ImageBoxes(corners_xyxy[kept], self.labels[rows][kept].astype(np.int64), self.crowd[rows][kept])

    def target_ids(self, i: int) -> NDArray[np.int64]:
        """[M]: the annotations that the boxes of `targets` are of."""
        rows, _, kept = self._learnable_rows(i)
        return self.annotation_ids[rows][kept]

    def learnable(self) -> NDArray[np.int64]:
        """[K]: the boxes of each class to learn from: no regions to ignore, and of some area inside their image."""
        usable = ~self.crowd & _has_area(_clipped_xyxy(self.boxes, self.sizes[self.image_of_box()]))
        return np.bincount(self.labels[usable], minlength=len(self.classes))

    def repeats(self, share: float) -> NDArray[np.float64]:
        """[n]: how often each image should come so that rare classes are learned too: the root of `share` over the
        share of the images that show its rarest class, at least 1 (repeat factor sampling, Gupta et al. 2019, arXiv
        1908.03195, appendix B)."""
        learned = ~self.crowd
        shown = np.zeros((len(self), len(self.classes)), bool)
        shown[self.image_of_box()[learned], self.labels[learned]] = True
        of_class = np.sqrt(share / np.maximum(shown.mean(axis=0), 1e-12))
        of_image: NDArray[np.float64] = np.where(shown, of_class, 1.0).max(axis=1, initial=1.0)
        return of_image

    def nothing_to_learn(self) -> str | None:
        """Why no detector can learn from these annotations; None where one can."""
        if self.learnable().any():
            return None
        crowds, boxes = int(self.crowd.sum()), len(self.boxes)
        if not boxes:
            return f"none of the {_counted(len(self), 'image', 'images')} has a box"
        if crowds == boxes:
            return (f"every one of the {_counted(boxes, 'box', 'boxes')} is a region to ignore (COCO's iscrowd, VOC's "
                    "difficult); if they are objects, set that to 0")
        ignored = f" ({crowds} of them regions to ignore)" if crowds else ""
        return f"none of the {_counted(boxes, 'box', 'boxes')}{ignored} has an area inside its image"

    def select(self, image_positions: Sequence[int]) -> BoxIndex:
        """The index of some of the images only, in the order given."""
        chosen = np.array([self._checked(i) for i in image_positions], np.int64)
        rows = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen] or [chosen])
        selected = BoxIndex.of(
            self.classes,
            self.folder,
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            names=[self._name(int(i)) for i in chosen],
            image_of_box=np.repeat(np.arange(len(chosen)), np.diff(self.offsets)[chosen]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
            annotation_ids=self.annotation_ids[rows],
        )
        return replace(selected, outlines=self.outlines)

    def remarks(self) -> tuple[Remark, ...]:
        """Boxes of no area, outside their image, or beyond its edge; the notes say the same of them."""
        return self._judged()[1]

    def image_of_box(self) -> NDArray[np.int64]:
        """[m]: the position of each annotation's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def corners(self) -> NDArray[np.float64]:
        """[m, 4]: the boxes as xyxy, as they are in the file."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)

    def relabel(self, classes: Classes, /) -> BoxIndex:
        """The same annotations with labels that are positions in `classes`, matched by source id.

        ValueError where an annotated class is not among them, or has another name there.
        """
        if (classes.names, classes.source_ids) == (self.classes.names, self.classes.source_ids):
            return replace(self, classes=classes)
        position = {source_id: k for k, source_id in enumerate(classes.source_ids)}
        table = np.full(len(self.classes), -1, np.int32)
        for k, (source_id, name) in enumerate(zip(self.classes.source_ids, self.classes.names, strict=True)):
            if classes.used.get(source_id) == name:
                table[k] = position[source_id]
        strange = sorted({self.classes.names[k] for k in np.unique(self.labels) if table[k] < 0})
        if strange:
            raise ValueError(f"the annotations have classes that are not asked for: {', '.join(strange)}")
        return replace(self, classes=classes, labels=table[self.labels])

    def common(self, classes: Classes, /) -> BoxIndex:
        """The annotations of the classes that `classes` has too, by name, with labels that are positions in it.

        All images stay; those that show nothing else are images without objects.
        """
        shared = self.classes.common(classes)
        table = np.array([classes.names.index(name) if name in shared else -1 for name in self.classes.names], np.int32)
        kept = table[self.labels] >= 0
        index = BoxIndex.of(
            classes,
            self.folder,
            image_ids=self.image_ids,
            sizes=self.sizes,
            names=[self._name(i) for i in range(len(self))],
            image_of_box=self.image_of_box()[kept],
            boxes=self.boxes[kept],
            labels=table[self.labels[kept]],
            crowd=self.crowd[kept],
            areas=self.areas[kept],
            annotation_ids=self.annotation_ids[kept],
            faults=self.faults,
        )
        return replace(index, notes=self.notes)

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotations in COCO's format, as `pycocotools.coco.COCO.dataset` takes them; with the file's own ids.

        Boxes of no area are among them, as in the original. Slots named "unused" are not.
        """
        # pycocotools marks a match by the annotation's id and reads 0 as "none" (cocoeval.py, accumulate: gtm, dtm):
        # an object with id 0 would never count as found. Ids that start at 0 are common in converted data.
        ids = self.annotation_ids + max(0, 1 - int(self.annotation_ids.min(initial=1)))
        images = [
            {"id": image_id, "file_name": self._name(i), "height": height, "width": width}
            for i, (image_id, (height, width)) in enumerate(
                zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
            )
        ]
        source_ids = np.array(self.classes.source_ids, np.int64)
        columns = (
            ids,
            self.image_ids[self.image_of_box()],
            source_ids[self.labels],
            self.boxes,
            self.areas,
            self.crowd.astype(np.int64),
        )
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        return {
            "info": {"description": f"ground truth of {len(self)} images"},
            "images": images,
            "categories": [{"id": source_id, "name": name} for source_id, name in self.classes.used.items()],
            "annotations": [
                dict(zip(keys, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)
            ],
        }

    def _learnable_rows(self, i: int) -> tuple[slice, NDArray[np.float32], NDArray[np.bool_]]:
        """The annotations of image i, their corners clipped to it, and which of them then have an area."""
        rows = slice(self.offsets[self._checked(i)], self.offsets[i + 1])
        corners_xyxy = _clipped_xyxy(self.boxes[rows], self.sizes[i])
        return rows, corners_xyxy, _has_area(corners_xyxy)

    def _checked(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of a data set of {len(self)}; positions run from 0 to {len(self) - 1}")
        return i

    def _name(self, i: int) -> str:
        start, end = self.name_offsets[self._checked(i)], self.name_offsets[i + 1]
        return os.fsdecode(self.name_bytes[start:end].tobytes())

    def _judged(self) -> tuple[NDArray[np.bool_], tuple[Remark, ...]]:
        """[m]: which boxes have an area inside their image; and what there is to say about others."""
        sizes = self.sizes[self.image_of_box()]
        flat = np.any(self.boxes[:, 2:] <= 0, axis=1)
        empty = ~flat & ~_has_area(_clipped_xyxy(self.boxes, sizes))
        far_xy = np.maximum(-self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:] - sizes[:, ::-1])
        beyond = ~flat & ~empty & np.any(far_xy > _OUTSIDE_TOLERANCE, axis=1)
        remarks = (
            ("no area", flat, "of no area", "not trained on"),
            ("outside", empty, "outside the image", "not trained on"),
            ("beyond the edge", beyond, f"more than {_OUTSIDE_TOLERANCE:g} pixel beyond the image's edge",
             "clipped for training"),
        )
        return ~flat & ~empty, tuple(
            Remark(kind, rows, f"{_counted(int(rows.sum()), 'box', 'boxes')} {what}, {done} {self._listed(rows)}")
            for kind, rows, what, done in remarks
            if rows.any()
        )

    def _listed(self, rows: NDArray[np.bool_]) -> str:
        """The ids and files of some annotations; of the first five, where they are many."""
        first = np.flatnonzero(rows)[:5]
        images = np.searchsorted(self.offsets, first, side="right") - 1
        named = [f"{self.annotation_ids[row]} in {self._name(int(i))}" for row, i in zip(first, images, strict=True)]
        more = int(rows.sum()) - len(first)
        return f"(annotation ids: {', '.join(named)}{f' and {more} more' if more else ''})"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _clipped_xyxy(boxes_xywh: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float32]:
    """[m, 4] corners inside images of `sizes` ([m, 2] or [2], height and width); possibly of no area."""
    corners_xyxy = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    limits = np.tile(sizes[..., ::-1], 2)
    return np.clip(corners_xyxy, 0, limits).astype(np.float32)


def _has_area(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
    positive: NDArray[np.bool_] = np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1)
    return positive
