"""What every metric of detections takes in: the detections of each image, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.interfaces import Metric
from detseg.structures import Classes, ImageDetections

Rows: TypeAlias = NDArray[np.float64]
"""Detections, a row each: x, y, width, height, score, label."""


class DetectionMetric(Metric[ImageDetections]):
    """A metric against the original annotations of `index`; an image without predictions has found nothing.

    AP ranks the detections of all images, so they are kept: 48 bytes each, and nothing else that grows with the images.
    """

    def __init__(self, index: BoxIndex, *, per_class: bool = False, reference: bool = False) -> None:
        self.index, self.per_class, self.reference = index, per_class, reference
        self._waiting = set(index.image_ids.tolist())
        self._rows: dict[int, Rows] = {}

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

    def collected(self) -> dict[int, Rows]:
        """The detections by image id."""
        return self._rows

    def merge(self, collected: Sequence[dict[int, Rows]]) -> None:
        """Takes the detections of all processes; an image that two of them have is an error of ours."""
        self._rows = {image_id: rows for share in collected for image_id, rows in share.items()}
        assert len(self._rows) == sum(map(len, collected)), "two processes predicted the same image"
        self._waiting = set(self.index.image_ids.tolist()) - self._rows.keys()

    def by_image(self) -> list[tuple[int, Rows]]:
        """Positions in the index and the detections there, in the order of image ids: equal scores are ranked by
        image, which must not depend on who predicted what when."""
        nothing = np.zeros((0, 6))
        return [(position, self._rows.get(image_id, nothing)) for image_id, position in
                sorted(zip(self.index.image_ids.tolist(), range(len(self.index)), strict=True))]


def detection_rows(prediction: ImageDetections, classes: Classes) -> Rows:
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
    rows: Rows = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], scores, labels])
    used_ids = classes.used.keys()
    used = np.array([source_id in used_ids for source_id in classes.source_ids])
    of_used: Rows = rows[used[labels]]
    return of_used


def box_iou(boxes_xywh: Rows, others_xywh: Rows) -> Rows:
    """[n, m]: intersection over union in float64; 0 where neither box has an area."""
    starts = np.maximum(boxes_xywh[:, None, :2], others_xywh[:, :2])
    ends = np.minimum((boxes_xywh[:, :2] + boxes_xywh[:, 2:4])[:, None], others_xywh[:, :2] + others_xywh[:, 2:4])
    common = (ends - starts).clip(0).prod(2)
    union = boxes_xywh[:, 2:4].prod(1)[:, None] + others_xywh[:, 2:4].prod(1) - common
    iou: Rows = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou
