"""What is particular to detection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detseg import boxes
from detseg.data.detection import DetectionDataset
from detseg.interfaces import (
    Batch,
    BoxTargets,
    Classes,
    Dataset,
    DenseBoxes,
    Detections,
    ImageDetections,
    Metric,
    Pixels,
    Sample,
    Source,
    Task,
)
from detseg.metrics import coco_ap
from detseg.report.pictures import draw_boxes
from detseg.suppression import suppress


@dataclass(frozen=True, kw_only=True)
class Detection(Task[BoxTargets, DenseBoxes, Detections, ImageDetections]):
    """Boxes with classes; see `suppression.suppress` for what the numbers mean.

    The defaults are torchvision's for SSDLite, made for COCO's AP, which counts unsure detections too.
    """

    score_threshold: float = 0.001
    iou_threshold: float = 0.55
    per_class: int = 300
    max_detections: int = 300
    candidates: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1 or not 0 < self.iou_threshold <= 1:
            raise ValueError(f"score_threshold must lie in [0, 1) and iou_threshold in (0, 1], got "
                             f"{self.score_threshold} and {self.iou_threshold}")
        if not 1 <= self.max_detections <= self.candidates or self.per_class < 1:
            raise ValueError(f"need 1 <= max_detections <= candidates and 1 <= per_class, got {self.max_detections}, "
                             f"{self.candidates} and {self.per_class}")

    def collate(self, samples: Sequence[Sample[BoxTargets]]) -> Batch[BoxTargets]:
        """Images stacked, boxes padded with label -1 to the fullest image."""
        num_boxes = max((len(sample.targets.labels) for sample in samples), default=0)
        batch = BoxTargets(
            torch.zeros(len(samples), num_boxes, 4),
            torch.full((len(samples), num_boxes), -1),
            torch.zeros(len(samples), num_boxes, dtype=torch.bool),
        )
        for row, sample in enumerate(samples):
            for padded, values in zip(batch, sample.targets, strict=True):
                padded[row, : len(values)] = values
        return Batch(torch.stack([sample.image for sample in samples]), batch,
                     tuple(sample.source for sample in samples))

    def finish(self, dense: DenseBoxes) -> Detections:
        """Suppression to `max_detections` rows."""
        return suppress(
            dense, score_threshold=self.score_threshold, iou_threshold=self.iou_threshold, per_class=self.per_class,
            max_detections=self.max_detections, candidates=self.candidates)

    def restore(self, finished: Detections, sources: Sequence[Source]) -> list[ImageDetections]:
        """Rows that are meant, in original pixels and inside the image."""
        restored = []
        for row, source in enumerate(sources):
            num_valid = int(finished.num_valid[row])
            restored.append(ImageDetections(
                source.image_id,
                _to_original(finished.boxes[row, :num_valid], source),
                finished.scores[row, :num_valid].cpu(),
                finished.labels[row, :num_valid].cpu(),
            ))
        return restored

    def metric(
        self, dataset: Dataset[BoxTargets], *, per_class: bool = False, reference: bool = False
    ) -> Metric[ImageDetections]:
        """COCO's AP and AR against the dataset's annotations."""
        assert isinstance(dataset, DetectionDataset), "detection is measured on detection data"
        return coco_ap.CocoAP(
            dataset.index, backend="pycocotools" if reference else "hotcoco", per_class=per_class)

    def draw(self, image: Pixels, prediction: ImageDetections, classes: Classes, *, threshold: float) -> Pixels:
        """Boxes with class and score."""
        return draw_boxes(image, prediction, classes, threshold=threshold)

    def summary(self, prediction: ImageDetections, classes: Classes, *, threshold: float) -> str:
        """How many of each class, the most frequent first."""
        counts = Counter(prediction.labels[prediction.scores >= threshold].tolist())
        return ", ".join(f"{count} {classes.names[label]}" for label, count in counts.most_common()) or "nothing"

    def records(self, prediction: ImageDetections, classes: Classes) -> list[Mapping[str, Any]]:
        """COCO's results format."""
        return coco_ap.records(prediction, classes)


def _to_original(boxes_xyxy: Tensor, source: Source) -> Tensor:
    scale_y, scale_x, offset_y, offset_x = source.placement
    offset = boxes_xyxy.new_tensor((offset_x, offset_y, offset_x, offset_y))
    scale = boxes_xyxy.new_tensor((scale_x, scale_y, scale_x, scale_y))
    return boxes.clip((boxes_xyxy - offset) / scale, source.size).cpu()
