"""What is particular to detection, and to segmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from detseg import boxes
from detseg.data.detection import DetectionDataset
from detseg.data.segmentation import SegmentationDataset
from detseg.interfaces import (
    IMAGENET_MEAN,
    VOID,
    Batch,
    BoxTargets,
    Classes,
    Dataset,
    DenseBoxes,
    DenseLogits,
    Detections,
    ImageDetections,
    ImageLabels,
    LabelMaps,
    LabelPixels,
    LabelTargets,
    Metric,
    Pixels,
    Sample,
    Size,
    Source,
    Task,
)
from detseg.metrics import coco_ap, mean_iou
from detseg.report.pictures import draw_boxes, draw_labels
from detseg.suppression import suppress


@dataclass(frozen=True, kw_only=True)
class Detection(Task[BoxTargets, DenseBoxes, Detections, ImageDetections]):
    """Boxes with classes; see `suppression.suppress` for what the numbers mean.

    The defaults are torchvision's for SSDLite, made for COCO's AP, which counts unsure detections too.
    """

    scored: ClassVar[bool] = True
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
        """Images stacked, smaller ones padded at the end with ImageNet's mean colour; boxes padded with label -1 to the
        fullest image."""
        num_boxes = max((len(sample.targets.labels) for sample in samples), default=0)
        batch = BoxTargets(
            torch.zeros(len(samples), num_boxes, 4),
            torch.full((len(samples), num_boxes), -1),
            torch.zeros(len(samples), num_boxes, dtype=torch.bool),
        )
        for row, sample in enumerate(samples):
            for padded, values in zip(batch, sample.targets, strict=True):
                padded[row, : len(values)] = values
        return Batch(_stacked([sample.image for sample in samples]), batch, tuple(sample.source for sample in samples))

    def made_up(self, size: Size, num_classes: int, *, seed: int) -> BoxTargets:
        """1 to 12 boxes, with consecutive seeds one more each."""
        random, (height, width) = np.random.default_rng(seed), size
        num_boxes = 1 + seed % 12
        sides = random.uniform(0.05, 0.6, (num_boxes, 2)) * (width, height)
        corners = random.uniform(0.0, 1.0, (num_boxes, 2)) * ((width, height) - sides)
        labels = torch.from_numpy(random.integers(0, num_classes, num_boxes))
        return BoxTargets(torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float(), labels,
                          torch.zeros(num_boxes, dtype=torch.bool))

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


@dataclass(frozen=True)
class Segmentation(Task[LabelTargets, DenseLogits, LabelMaps, ImageLabels]):
    """A class for every pixel."""

    scored: ClassVar[bool] = False
    label_maps: ClassVar[bool] = True

    def collate(self, samples: Sequence[Sample[LabelTargets]]) -> Batch[LabelTargets]:
        """Images and label maps stacked, smaller ones padded at the end with ImageNet's mean colour and VOID."""
        images = _stacked([sample.image for sample in samples])
        labels = torch.full((len(samples), *images.shape[2:]), VOID, dtype=torch.uint8)
        for row, sample in enumerate(samples):
            height, width = sample.targets.labels.shape
            labels[row, :height, :width] = sample.targets.labels
        return Batch(images, LabelTargets(labels), tuple(sample.source for sample in samples))

    def made_up(self, size: Size, num_classes: int, *, seed: int) -> LabelTargets:
        """8 x 8 patches, a twentieth of them VOID."""
        random, (height, width) = np.random.default_rng(seed), size
        patches = random.integers(0, num_classes, (8, 8))
        patches[random.uniform(size=(8, 8)) < 0.05] = VOID
        rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
        return LabelTargets(torch.from_numpy(patches.astype(np.uint8)[rows[:, None], columns]))

    def finish(self, dense: DenseLogits) -> LabelMaps:
        """The class of the highest score, the first of equals."""
        return LabelMaps(dense.logits.argmax(1))

    def restore(self, finished: LabelMaps, sources: Sequence[Source]) -> list[ImageLabels]:
        """Label maps of the original size: each pixel has the label of the network's pixel in which its centre lies."""
        return [ImageLabels(source.image_id, _label_map_to_original(labels, source))
                for labels, source in zip(finished.labels, sources, strict=True)]

    def metric(
        self, dataset: Dataset[LabelTargets], *, per_class: bool = False, reference: bool = False
    ) -> Metric[ImageLabels]:
        """Mean intersection over union against the dataset's label maps; there is one implementation."""
        assert isinstance(dataset, SegmentationDataset), "segmentation is measured on label maps"
        return mean_iou.MeanIoU(dataset.index, per_class=per_class)

    def draw(self, image: Pixels, prediction: ImageLabels, classes: Classes, *, threshold: float) -> Pixels:
        """The classes' colours over the image."""
        return draw_labels(image, prediction.labels, classes)

    def summary(self, prediction: ImageLabels, classes: Classes, *, threshold: float) -> str:
        """How much of the image each class has, the largest first and without what is below half a percent."""
        shares = np.bincount(prediction.labels.ravel(), minlength=len(classes)) / prediction.labels.size
        largest, *others = np.argsort(-shares, kind="stable").tolist()
        return ", ".join(f"{shares[k]:.0%} {classes.names[k]}"
                         for k in [largest, *(other for other in others if shares[other] >= 0.005)])

    def records(self, prediction: ImageLabels, classes: Classes) -> list[Mapping[str, Any]]:
        """COCO's results format: the run lengths of each class that occurs."""
        return mean_iou.records(prediction, classes)

    def label_image(self, prediction: ImageLabels, classes: Classes) -> LabelPixels:
        """Source ids. A ValueError where one does not fit into 8 bits."""
        if too_large := [source_id for source_id in classes.source_ids if not 0 <= source_id <= 255]:
            raise ValueError(f"label images hold ids of 0 to 255, the classes have "
                             f"{', '.join(map(str, too_large[:5]))}{', ...' * (len(too_large) > 5)}; "
                             "predictions.json holds any")
        return np.asarray(classes.source_ids, dtype=np.uint8)[prediction.labels]


def _label_map_to_original(labels: Tensor, source: Source) -> LabelPixels:
    """Each original pixel takes the label at its centre, which always lies in the image and not in bars."""
    height, width = source.size
    scale_y, scale_x, offset_y, offset_x = source.placement
    rows = ((np.arange(height) + 0.5) * scale_y + offset_y).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * scale_x + offset_x).astype(np.int64)
    restored: LabelPixels = labels.to(torch.uint8).cpu().numpy()[rows[:, None], columns]
    return restored


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """[B, 3, H, W] with the largest height and the largest width."""
    height, width = (max((image.shape[axis] for image in images), default=0) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(list(images))
    colour = (255 * torch.tensor(IMAGENET_MEAN)).view(3, 1, 1)
    batch = (colour if images[0].is_floating_point() else colour.round().to(images[0].dtype)).expand(
        len(images), -1, height, width).clone()
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
    return batch
