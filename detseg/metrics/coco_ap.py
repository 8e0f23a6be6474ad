"""COCO's twelve numbers for boxes, computed by the official code or by a faster equal of it.

What they mean: https://cocodataset.org/#detection-eval. Matching and accumulation are done by `pycocotools` (the
reference) or `hotcoco` (the same numbers to 1e-6 at a hundredth of the time); both give a precision array
[T, R, K, A, M] (10 IoU thresholds, 101 recalls, K classes, A ranges of areas, M limits of detections) and a recall
array [T, K, A, M] that say -1 where there is no such object. Here the detections are brought to them, and the numbers
read.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.box_index import BoxIndex
from detseg.metrics.detections import DetectionMetric, Rows
from detseg.metrics.numbers import best_first
from detseg.structures import Classes, MetricTable

_Array: TypeAlias = NDArray[np.float64]

Range: TypeAlias = tuple[float, float]
"""From the first to the last value, both inside."""

Measure: TypeAlias = Callable[[BoxIndex, int, Rows], _Array]
"""What takes the place of the area, so that objects are told apart by something else: annotations, the position of an
image and boxes there [n, 4 or more], x, y, width and height first, to a number for each [n]."""

AREAS: Mapping[str, Range] = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""COCO's, in pixels."""


class _Number(NamedTuple):
    """One of the official numbers: the mean of a part of the precision or the recall array."""

    name: str
    of: Literal["precision", "recall"]
    iou: float | None
    """The one threshold, or None for the mean over 0.50, 0.55, ... 0.95."""
    area: Literal["all", "small", "medium", "large"]
    detections: int
    """The most sure detections of each class in each image that count."""

    def read(self, counted: Accumulated) -> float:
        thresholds = slice(None) if self.iou is None else round((self.iou - 0.5) / 0.05)
        values = counted.precision if self.of == "precision" else counted.recall
        area, limit = list(AREAS).index(self.area), counted.limits.index(self.detections)
        return mean_of(values[..., area, limit][thresholds])


_OFFICIAL = (
    _Number("AP", "precision", None, "all", 100),
    _Number("AP50", "precision", 0.50, "all", 100),
    _Number("AP75", "precision", 0.75, "all", 100),
    _Number("APs", "precision", None, "small", 100),
    _Number("APm", "precision", None, "medium", 100),
    _Number("APl", "precision", None, "large", 100),
    _Number("AR1", "recall", None, "all", 1),
    _Number("AR10", "recall", None, "all", 10),
    _Number("AR100", "recall", None, "all", 100),
    _Number("ARs", "recall", None, "small", 100),
    _Number("ARm", "recall", None, "medium", 100),
    _Number("ARl", "recall", None, "large", 100),
)


class CocoAP(DetectionMetric):
    """COCO's box AP and AR against the original annotations of `index`.

    Gives AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl, with `per_class` also `AP/<class name>`,
    as fractions. `reference` takes pycocotools where hotcoco, which is faster, is the default. As in the official code
    every image of the index counts: one without predictions has found nothing.

    per_image: the most sure detections of an image that count, of all classes together, in place of 100 of each class.
        Where classes are many, 100 of each are more than anybody would show, and AP grows with guesses of low scores;
        LVIS allows 300 (Gupta et al. 2019, arXiv 1908.03195; Dave et al. 2021, arXiv 2102.01066). The numbers are
        LVIS's and named for the limit, AP@300. They take the annotations for complete, as COCO's are: of LVIS's own
        files the lists of classes that were not looked for are not read, so that there they are not the official ones.
    """

    main = "AP"

    def __init__(
        self, index: BoxIndex, *, per_class: bool = False, reference: bool = False, per_image: int | None = None
    ) -> None:
        super().__init__(index, per_class=per_class, reference=reference)
        if per_image is not None and per_image < 1:
            raise ValueError(f"at least 1 detection of an image must count, got per_image={per_image}; LVIS has 300")
        self.per_image = per_image
        self._suffix = "" if per_image is None else f"@{per_image}"
        self._numbers = _OFFICIAL if per_image is None else tuple(
            number._replace(name=number.name.replace("AR100", "AR") + self._suffix, detections=per_image)
            for number in _OFFICIAL if number.detections == 100)
        self.main = self._numbers[0].name

    def compute(self) -> dict[str, float]:
        """Every number by name; NaN where there is no such object."""
        limits = (1, 10, 100) if self.per_image is None else (self.per_image,)
        counted = accumulated(self.index, self.by_image(), limits=limits, per_image=self.per_image,
                              reference=self.reference)
        numbers = {number.name: number.read(counted) for number in self._numbers}
        if self.per_class:
            numbers |= {f"AP{self._suffix}/{name}": mean_of(counted.precision[:, :, k, 0, -1])
                        for k, name in enumerate(self.index.classes.used.values())}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The official rows and, where `numbers` has them, the classes, best first."""
        rows: list[tuple[str | float, ...]] = []
        for number in self._numbers:
            iou = "0.50:0.95" if number.iou is None else f"{number.iou:.2f}"
            rows.append((number.name, iou, number.area, str(number.detections), numbers[number.name]))
        for name, value in best_first(numbers, f"AP{self._suffix}/"):
            rows.append((name, "0.50:0.95", "all", str(self._numbers[0].detections), value))
        # The official groups: by IoU, by area, by number of detections, by area.
        ends = tuple(row for row, number in enumerate(self._numbers)
                     if number.name.removesuffix(self._suffix) in ("AP75", "APl", "AR100", "ARl"))
        counted = "" if self.per_image is None else f", the {self.per_image} most sure detections of an image"
        return MetricTable(("measure", "IoU", "objects", "detections", "value"), tuple(rows), sections=ends,
                           notes=(f"COCO boxes{counted}; - where none exist",))


class Accumulated(NamedTuple):
    """The arrays of the official code; -1 where there is no such object."""

    precision: _Array
    """[T, R, K, A, M], of the used classes in their order."""
    recall: _Array
    """[T, K, A, M]."""
    limits: tuple[int, ...]
    """M: the most sure detections of each class in each image that count."""


def accumulated(
    index: BoxIndex, found: Sequence[tuple[int, Rows]], *, ranges: Mapping[str, Range] = AREAS,
    limits: tuple[int, ...] = (100,), per_image: int | None = None, measure: Measure | None = None,
    reference: bool = False,
) -> Accumulated:
    """COCO's matching and accumulation.

    Args:
        index: the annotations.
        found: detections by position, as `DetectionMetric.by_image` gives them.
        ranges: of areas, or of what `measure` says: in each, objects outside are ignored, and so are detections outside
            that match no object.
        limits: how many of the most sure detections of each class in each image count, ascending.
        per_image: how many of an image count, of all classes together; None for all.
        measure: takes the place of the area.
        reference: by pycocotools.
    """
    truth, table = numbered(index, found, per_image=per_image, measure=measure)
    arrays = _with_pycocotools if reference else _with_hotcoco
    category_ids, precision, recall = arrays(truth.coco_ground_truth(), table, ranges, limits)
    used = [category_ids.index(number) for number in truth.classes.used]
    return Accumulated(precision[:, :, used], recall[:, used], limits)


def numbered(
    index: BoxIndex, found: Sequence[tuple[int, Rows]], *, per_image: int | None = None, measure: Measure | None = None,
) -> tuple[BoxIndex, _Array]:
    """The annotations, and a row for each detection: image, x, y, width, height, score, class, area. Images and classes
    are numbers from 1, for ids may have more digits than a float64 holds. Arguments as of `accumulated`."""
    tables = []
    numbers = np.zeros(len(index), np.int64)
    for number, (position, rows) in enumerate(found, start=1):
        numbers[position] = number
        if per_image is not None:
            rows = rows[np.argsort(-rows[:, 4], kind="stable")[:per_image]]
        sizes = rows[:, 2] * rows[:, 3] if measure is None else measure(index, position, rows)
        tables.append(np.column_stack([np.full(len(rows), number), rows[:, :5], rows[:, 5] + 1, sizes]))
    areas = index.areas if measure is None else np.concatenate([np.zeros(0), *(
        measure(index, position, index.boxes[index.offsets[position]:index.offsets[position + 1]])
        for position in range(len(index)))])
    truth = replace(index, image_ids=numbers, annotation_ids=np.arange(1, len(index.boxes) + 1), areas=areas,
                    classes=Classes(index.classes.names, tuple(range(1, len(index.classes) + 1))))
    return truth, np.concatenate([np.zeros((0, 8)), *tables])


def mean_of(values: _Array) -> float:
    """The mean over what exists; NaN where nothing does."""
    existing = values[values > -1]
    return float(existing.mean()) if existing.size else math.nan


def _with_hotcoco(
    ground_truth: dict[str, Any], table: _Array, ranges: Mapping[str, Range], limits: tuple[int, ...]
) -> tuple[list[int], _Array, _Array]:
    truth = hotcoco.COCO(ground_truth)
    found = truth.load_res(table[:, :7])
    found.update_anns(ids=np.arange(1, len(table) + 1), area=table[:, 7])
    evaluation = hotcoco.COCOeval(truth, found, "bbox")
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [list(ends) for ends in ranges.values()], list(ranges)
    evaluation.params.max_dets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    return evaluation.params.cat_ids, evaluation.eval["precision"], evaluation.eval["recall"]


def _with_pycocotools(
    ground_truth: dict[str, Any], table: _Array, ranges: Mapping[str, Range], limits: tuple[int, ...]
) -> tuple[list[int], _Array, _Array]:
    found = [{"id": number, "image_id": int(image_id), "category_id": int(category_id), "bbox": bbox, "score": score,
              "area": area, "iscrowd": 0}
             for number, (image_id, *bbox, score, category_id, area) in enumerate(table.tolist(), start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        # `loadRes` would do the same to `found`, and fail on an empty list.
        evaluation = COCOeval(_indexed(ground_truth), _indexed({**ground_truth, "annotations": found}), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(ends) for ends in ranges.values()], list(ranges)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.params.catIds, evaluation.eval["precision"], evaluation.eval["recall"]


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
