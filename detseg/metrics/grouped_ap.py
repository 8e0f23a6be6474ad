"""COCO's AP and AR of objects told apart by their shape, or by how crowded it is around them.

As COCO tells small objects from large ones: an object outside a group is ignored there, and so is a detection outside
that has found nothing. What is measured of objects is therefore measured of detections in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.metrics.coco_ap import Measure, Range, accumulated, mean_of
from detseg.metrics.detections import DetectionMetric, Rows, box_iou
from detseg.metrics.numbers import best_first
from detseg.structures import MetricTable

_MOST = 1e10


class Grouping(NamedTuple):
    """What tells objects apart. A value that ends one group and begins the next is in both, as in COCO."""

    what: str
    """Is measured, for people."""
    measure: Measure
    ranges: Mapping[str, Range]
    """Of each group, by its name."""


def aspect_ratio(index: BoxIndex, position: int, boxes_xywh: Rows) -> NDArray[np.float64]:
    """Width over height, 1 where both are 0."""
    width, height = boxes_xywh[:, 2].clip(0), boxes_xywh[:, 3].clip(0)
    ratio: NDArray[np.float64] = np.divide(width, height, out=np.where(width > 0, _MOST, 1.0), where=height > 0)
    return np.minimum(ratio, _MOST)


def overlap(index: BoxIndex, position: int, boxes_xywh: Rows) -> NDArray[np.float64]:
    """The highest IoU with a true box, of any class, other than the one that the box itself is or overlaps most."""
    objects = _objects(index, position)
    if len(objects) < 2:
        return np.zeros(len(boxes_xywh))
    second: NDArray[np.float64] = np.partition(box_iou(boxes_xywh, objects), -2, axis=1)[:, -2]
    return second


def num_objects(index: BoxIndex, position: int, boxes_xywh: Rows) -> NDArray[np.float64]:
    """How many objects the image shows."""
    return np.full(len(boxes_xywh), float(len(_objects(index, position))))


def _objects(index: BoxIndex, position: int) -> Rows:
    """The true boxes of an image that are no crowds."""
    rows = slice(index.offsets[position], index.offsets[position + 1])
    return index.boxes[rows][~index.crowd[rows]]


ASPECT = Grouping("width over height", aspect_ratio, {"tall": (0, 2 / 3), "square": (2 / 3, 1.5), "wide": (1.5, _MOST)})
OVERLAP = Grouping(
    "IoU with another object", overlap, {"apart": (0, 0.1), "touching": (0.1, 0.3), "packed": (0.3, _MOST)})
COUNT = Grouping("objects in the image", num_objects, {"few": (0, 5), "some": (6, 15), "many": (16, _MOST)})


class GroupedAP(DetectionMetric):
    """COCO's AP and AR for each group of objects that the groupings make.

    Gives `AP_<group>` and `AR_<group>`, over 0.50 to 0.95 and 100 detections as usual, with `per_class` also
    `AP_<group>/<class name>`. NaN where a group has no objects.
    """

    def __init__(
        self, index: BoxIndex, *, per_class: bool = False, reference: bool = False,
        groupings: tuple[Grouping, ...] = (ASPECT, OVERLAP, COUNT),
    ) -> None:
        super().__init__(index, per_class=per_class, reference=reference)
        self.groupings = groupings
        self.main = f"AP_{next(iter(groupings[0].ranges))}"

    def compute(self) -> dict[str, float]:
        """Every number by name."""
        found, numbers, by_class = self.by_image(), dict[str, float](), dict[str, float]()
        for grouping in self.groupings:
            counted = accumulated(self.index, found, ranges=grouping.ranges, measure=grouping.measure,
                                  reference=self.reference)
            for a, group in enumerate(grouping.ranges):
                numbers[f"AP_{group}"] = mean_of(counted.precision[:, :, :, a])
                numbers[f"AR_{group}"] = mean_of(counted.recall[:, :, a])
                by_class |= {f"AP_{group}/{name}": mean_of(counted.precision[:, :, k, a])
                             for k, name in enumerate(self.index.classes.used.values())}
        return numbers | by_class if self.per_class else numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """A column for each group: its objects, AP, AR and, where `numbers` has them, AP of the classes."""
        groups = [group for grouping in self.groupings for group in grouping.ranges]
        rows: list[tuple[str | float, ...]] = [
            ("objects", *(str(count) for grouping in self.groupings for count in self._counts(grouping))),
            *((name, *(numbers[f"{name}_{group}"] for group in groups)) for name in ("AP", "AR"))]
        named = sorted(name.partition("/")[2] for name, _ in best_first(numbers, f"AP_{groups[0]}/"))
        rows += [(f"AP/{name}", *(numbers[f"AP_{group}/{name}"] for group in groups)) for name in named]
        return MetricTable(("measure", *groups), tuple(rows), sections=(0, 2), notes=tuple(
            f"{grouping.what}: " + ", ".join(f"{group} {_described(ends)}" for group, ends in grouping.ranges.items())
            for grouping in self.groupings))

    def _counts(self, grouping: Grouping) -> list[int]:
        """How many objects each group has."""
        values = np.concatenate([np.zeros(0), *(grouping.measure(self.index, i, _objects(self.index, i))
                                                for i in range(len(self.index)))])
        return [int(((values >= low) & (values <= high)).sum()) for low, high in grouping.ranges.values()]


def _described(ends: Range) -> str:
    low, high = ends
    if high == _MOST:
        return f"from {low:.3g}"
    return f"up to {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}"
