"""What is particular to detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from detseg.interfaces import Source, Task
from detseg.ops.suppression import suppress
from detseg.structures import BoxTargets, DenseBoxes, Detections, ImageDetections, Size


@dataclass(frozen=True, kw_only=True)
class Detection(Task[BoxTargets, DenseBoxes, Detections, ImageDetections]):
    """Boxes with classes. The defaults are torchvision's for SSDLite, made for COCO's AP, which counts unsure
    detections too.

    Args:
        score_threshold: less sure predictions are left out.
        iou_threshold: a box that overlaps a surer one of its class by more is left out.
        per_class: so many of each class, the surest, enter suppression.
        max_detections: rows of the result.
        candidates: so many boxes of all classes enter the static suppression that is exported, the surest. Eager code
            begins with as many and takes more in while rows would stay empty.
    """

    scored: ClassVar[bool] = True
    score_threshold: float = 0.001
    iou_threshold: float = 0.55
    per_class: int = 300
    max_detections: int = 300
    candidates: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold < 1 or not 0 < self.iou_threshold <= 1:
            raise ValueError(f"score_threshold must lie in [0, 1) and iou_threshold in (0, 1], got "
                             f"{self.score_threshold} and {self.iou_threshold}")
        if not 1 <= self.max_detections <= self.candidates or self.per_class < 1:
            raise ValueError(f"need 1 <= max_detections <= candidates and 1 <= per_class, got {self.max_detections}, "
                             f"{self.candidates} and {self.per_class}")

    def collate_targets(self, targets: Sequence[BoxTargets], size: Size) -> BoxTargets:
        """Boxes padded with label -1 to the fullest image."""
        num_boxes = max((len(one.labels) for one in targets), default=0)
        seeds = [one.seed for one in targets if one.seed is not None]
        assert len(seeds) in (0, len(targets)), "all images have a seed, or none"
        batch = BoxTargets(
            torch.zeros(len(targets), num_boxes, 4),
            torch.full((len(targets), num_boxes), -1),
            torch.zeros(len(targets), num_boxes, dtype=torch.bool),
            torch.stack(seeds) if seeds else None,
        )
        for row, one in enumerate(targets):
            for padded, values in zip(batch[:3], one[:3], strict=True):
                padded[row, : len(values)] = values
        return batch

    def postprocess(self, dense: DenseBoxes, *, static: bool = False) -> Detections:
        """Suppression to `max_detections` rows."""
        return suppress(
            dense, score_threshold=self.score_threshold, iou_threshold=self.iou_threshold, per_class=self.per_class,
            max_detections=self.max_detections, candidates=self.candidates, static=static)

    def to_original(self, finished: Detections, sources: Sequence[Source]) -> list[ImageDetections]:
        """The valid rows, in original pixels and inside the image."""
        found = []
        for row, source in enumerate(sources):
            num_valid = int(finished.num_valid[row])
            found.append(ImageDetections(
                source.image_id,
                source.placement.boxes_to_original(finished.boxes[row, :num_valid], source.size),
                finished.scores[row, :num_valid],
                finished.labels[row, :num_valid],
            ))
        return found
