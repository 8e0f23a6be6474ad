"""COCO's twelve numbers for boxes, computed by the official code or by a faster equal of it.

What they mean: https://cocodataset.org/#detection-eval. Matching and accumulation are done by `pycocotools` (the
reference) or `hotcoco` (the same numbers to 1e-6 at a hundredth of the time); both give a precision array
[T, R, K, A, M] (10 IoU thresholds, 101 recalls, K classes, 4 areas, 3 limits of detections) and a recall array
[T, K, A, M] that say -1 where there is no such object. Here the detections are brought to them, and the numbers read.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detseg.data.box_index import BoxIndex
from detseg.interfaces import Metric
from detseg.structures import Classes, ImageDetections, MetricTable

_Array: TypeAlias = NDArray[np.float64]

class _Number(NamedTuple):
    """One of the official numbers: the mean of a part of the precision or the recall array."""

    name: str
    of: Literal["precision", "recall"]
    iou: float | None
    """The one threshold, or None for the mean over 0.50, 0.55, ... 0.95."""
    area: Literal["all", "small", "medium", "large"]
    detections: Literal[1, 10, 100]
    """The most sure detections of each class in each image that count."""

    def read(self, precision: _Array, recall: _Array) -> float:
        thresholds = slice(None) if self.iou is None else round((self.iou - 0.5) / 0.05)
        area = ("all", "small", "medium", "large").index(self.area)
        values = (precision if self.of == "precision" else recall)[..., area, (1, 10, 100).index(self.detections)]
        return _mean(values[thresholds])


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


class CocoAP(Metric[ImageDetections]):
    """COCO's box AP and AR against the original annotations of `index`.

    Gives AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm and ARl, with `per_class` also `AP/<class name>`,
    as fractions. `reference` takes pycocotools where hotcoco, which is faster, is the default. As in the official code
    every image of the index counts: one without predictions has found nothing.
    """

    main = "AP"

    def __init__(self, index: BoxIndex, *, per_class: bool = False, reference: bool = False) -> None:
        self.index, self.per_class, self.reference = index, per_class, reference
        self._waiting = set(index.image_ids.tolist())
        self._rows: dict[int, _Array] = {}

    def update(self, predictions: Sequence[ImageDetections], truths: Sequence[None] = ()) -> None:
        """Takes the detections of some images; what is true stands in the index.

        An image that was given before or that the index does not have is a ValueError, and a box or score that is
        not finite a FloatingPointError; the images before it in `predictions` have then been taken.
        """
        for prediction in predictions:
            if prediction.image_id not in self._waiting:
                known = prediction.image_id in self.index.image_ids
                raise ValueError(f"image {prediction.image_id} was given twice; give each image once" if known else
                                 f"image {prediction.image_id} is not one of the {len(self.index.image_ids)} images "
                                 "with annotations; evaluate on the data that was predicted")
            self._rows[prediction.image_id] = detection_rows(prediction, self.index.classes)
            self._waiting.remove(prediction.image_id)

    def collected(self) -> dict[int, _Array]:
        """The detections by image id."""
        return self._rows

    def merge(self, collected: Sequence[dict[int, _Array]]) -> None:
        """Takes the detections of all processes; an image that two of them have is an error of ours."""
        self._rows = {image_id: rows for share in collected for image_id, rows in share.items()}
        assert len(self._rows) == sum(map(len, collected)), "two processes predicted the same image"
        self._waiting = set(self.index.image_ids.tolist()) - self._rows.keys()

    def numbered(self) -> tuple[BoxIndex, _Array]:
        """The annotations, and the detections as [D, 7] (image, x, y, width, height, score, class), both with images
        and classes numbered from 1, images in the order of their ids."""
        # Ids may have more digits than a float64 holds. In the ids' order: equal scores are ranked by image, which must
        # not depend on who predicted what when.
        image_ids, classes = np.sort(self.index.image_ids), self.index.classes
        rows = np.concatenate([np.zeros((0, 7)), *(
            np.insert(self._rows[image_id], 0, number, axis=1)
            for number, image_id in enumerate(image_ids.tolist(), 1) if image_id in self._rows)])
        rows[:, 6] += 1
        return replace(self.index, image_ids=np.searchsorted(image_ids, self.index.image_ids) + 1,
                       annotation_ids=np.arange(1, len(self.index.boxes) + 1),
                       classes=Classes(classes.names, tuple(range(1, len(classes) + 1)))), rows

    def compute(self) -> dict[str, float]:
        """Every number by name; NaN where there is no such object."""
        truth, rows = self.numbered()
        arrays = _with_pycocotools if self.reference else _with_hotcoco
        category_ids, precision, recall = arrays(truth.coco_ground_truth(), rows)
        numbers = {number.name: number.read(precision, recall) for number in _OFFICIAL}
        if self.per_class:
            position = {category_id: k for k, category_id in enumerate(category_ids)}
            numbers |= {f"AP/{name}": _mean(precision[:, :, position[number], 0, -1])
                        for number, name in truth.classes.used.items()}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The official rows and, where `numbers` has them, the classes, best first."""
        rows: list[tuple[str | float, ...]] = []
        for number in _OFFICIAL:
            iou = "0.50:0.95" if number.iou is None else f"{number.iou:.2f}"
            rows.append((number.name, iou, number.area, str(number.detections), numbers[number.name]))
        by_class = {name: value for name, value in numbers.items() if name.startswith("AP/")}
        for name, value in sorted(by_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])):
            rows.append((name, "0.50:0.95", "all", "100", value))
        # The official groups: by IoU, by area, by number of detections, by area.
        ends = tuple(row for row, number in enumerate(_OFFICIAL) if number.name in ("AP75", "APl", "AR100", "ARl"))
        return MetricTable(("measure", "IoU", "objects", "detections", "value"), tuple(rows), sections=ends,
                           notes=("COCO boxes; - where none exist",))


def _mean(values: _Array) -> float:
    """The mean over what exists; NaN where nothing does."""
    existing = values[values > -1]
    return float(existing.mean()) if existing.size else math.nan


def detection_rows(prediction: ImageDetections, classes: Classes) -> _Array:
    """The detections of used classes as float64 [R, 6]: x, y, width, height, score, label.

    The width is taken in float64, where x + width gives the float32 corner back: IoU sees the box that was predicted.
    """
    boxes = prediction.boxes.detach().double().cpu().numpy()
    scores = prediction.scores.detach().double().cpu().numpy()
    labels = prediction.labels.cpu().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise FloatingPointError(f"image {prediction.image_id} has boxes or scores that are not finite: "
                                 "the network has diverged")
    assert np.logical_and(labels >= 0, labels < len(classes)).all(), "padding, or the labels of another set of classes"
    rows: _Array = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels])
    used = np.array([source_id in classes.used for source_id in classes.source_ids])
    of_used: _Array = rows[used[labels]]
    return of_used


def _with_hotcoco(ground_truth: dict[str, Any], rows: _Array) -> tuple[list[int], _Array, _Array]:
    truth = hotcoco.COCO(ground_truth)
    evaluation = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    return evaluation.params.cat_ids, evaluation.eval["precision"], evaluation.eval["recall"]


def _with_pycocotools(ground_truth: dict[str, Any], rows: _Array) -> tuple[list[int], _Array, _Array]:
    found = [{"id": number, "image_id": int(image_id), "category_id": int(category_id), "bbox": bbox, "score": score,
              "area": bbox[2] * bbox[3], "iscrowd": 0}
             for number, (image_id, *bbox, score, category_id) in enumerate(rows.tolist(), start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        # `loadRes` would do the same to `found`, and fail on an empty list.
        evaluation = COCOeval(_indexed(ground_truth), _indexed({**ground_truth, "annotations": found}), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.params.catIds, evaluation.eval["precision"], evaluation.eval["recall"]


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
