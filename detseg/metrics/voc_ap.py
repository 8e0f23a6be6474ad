"""PASCAL VOC's average precision at an IoU of 0.5, by both of its rules.

As VOCevaldet.m and VOCap.m of the 2012 development kit have it, and VOCevaldet.m of 2007's (Everingham et al. 2010, The
PASCAL Visual Object Classes (VOC) Challenge, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from detseg.metrics.detections import DetectionMetric, Rows, box_iou
from detseg.metrics.numbers import best_first, mean_existing
from detseg.structures import MetricTable

_LEAST_IOU = 0.5
_RULES = ("VOC_AP50", "VOC07_AP50")


class VocAP(DetectionMetric):
    """VOC's AP50 against the annotations of `index`, of which those marked difficult (`crowd`) are ignored.

    Gives `VOC_AP50`, the area under the curve as from 2010 on, and `VOC07_AP50`, the mean over 11 recalls as in 2007,
    both as means over the classes that have objects; with `per_class` also `VOC_AP50/<class name>` and
    `VOC07_AP50/<class name>`. There is one implementation, so `reference` changes nothing.

    A detection, the surest first, is compared with the one object of its class that it overlaps most, and with no
    other. Where that is a difficult one, neither counts; where it was found before, the detection is false. COCO would
    try the next best object, and matches crowds by the share of the detection.

    The development kit counts pixels, the last one included, so that a side is xmax - xmin + 1. Here boxes are edges,
    and what reads VOC's files takes 1 from xmin and ymin: sides, areas and IoU are the kit's, and 1 is not added again.
    Of the 11 recalls it is asked in whole numbers whether they are reached: 3 of 10 objects are 0.3, which the kit's
    floating point takes for less.
    """

    main = "VOC_AP50"

    def compute(self) -> dict[str, float]:
        """Every number by name; NaN where there is no such object."""
        classes, numbers = self.index.classes, dict[str, float]()
        judged = np.concatenate([np.zeros((0, 3)), *(self._judged(*image) for image in self.by_image())])
        objects = np.bincount(self.index.labels[~self.index.crowd], minlength=len(classes))
        for name in classes.used.values():
            k = classes.names.index(name)
            of_class = judged[judged[:, 1] == k]
            right = of_class[np.argsort(-of_class[:, 0], kind="stable"), 2] > 0
            for rule, value in zip(_RULES, _averages(right, int(objects[k])), strict=True):
                numbers[f"{rule}/{name}"] = value
        means = {rule: mean_existing(value for name, value in numbers.items() if name.startswith(f"{rule}/"))
                 for rule in _RULES}
        return means | numbers if self.per_class else means

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """Both rules beside each other and, where `numbers` has them, the classes, best first."""
        rows: list[tuple[str | float, ...]] = [("mean", *(numbers[rule] for rule in _RULES))]
        for name, value in best_first(numbers, "VOC_AP50/"):
            own = name.removeprefix("VOC_AP50/")
            rows.append((own, value, numbers[f"VOC07_AP50/{own}"]))
        return MetricTable(("class", *_RULES), tuple(rows), sections=(0,), notes=(
            "PASCAL VOC at IoU 0.50: VOC_AP50 is the area under the curve (2010 on), VOC07_AP50 the mean over 11 "
            "recalls (2007)",))

    def _judged(self, position: int, rows: Rows) -> NDArray[np.float64]:
        """[n, 3] of the detections of an image that count: score, label, and 1 where it has found an object."""
        truth = slice(self.index.offsets[position], self.index.offsets[position + 1])
        if truth.start == truth.stop or not len(rows):
            return np.column_stack([rows[:, 4:], np.zeros(len(rows))])
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
        iou = np.where(rows[:, 5, None] == self.index.labels[truth], box_iou(rows, self.index.boxes[truth]), -1)
        nearest = iou.argmax(1)  # the first of equals, as in the kit
        near = iou.max(1) >= _LEAST_IOU
        ignored = near & self.index.crowd[truth][nearest]
        right, hits = np.zeros(len(rows)), np.flatnonzero(near & ~ignored)
        right[hits[np.unique(nearest[hits], return_index=True)[1]]] = 1
        counted: NDArray[np.float64] = np.column_stack([rows[:, 4:], right])[~ignored]
        return counted


def _averages(right: NDArray[np.bool_], num_objects: int) -> tuple[float, float]:
    """The area under the curve and the mean over 11 recalls, of detections from the surest to the least sure."""
    if not num_objects:
        return math.nan, math.nan
    found = right.cumsum()
    # The best precision at this recall or a higher one.
    precision = np.maximum.accumulate((found / np.arange(1, len(found) + 1))[::-1])[::-1]
    reached = np.searchsorted(10 * found, num_objects * np.arange(11))
    eleven = precision[reached[reached < len(found)]]
    return math.fsum(precision[right]) / num_objects, math.fsum(eleven) / 11
