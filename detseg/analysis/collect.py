"""What an analysis collects while images are predicted: one pass over the data, by one process or several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detseg.analysis.detection import NUM_EXAMPLES, analyze_detections, check_something
from detseg.analysis.result import Analysis
from detseg.analysis.segmentation import NUM_BANDS, edge_bands, label_image, segmentation_analysis
from detseg.analysis.segmentation_result import LabelImage
from detseg.data.box_index import BoxIndex
from detseg.data.check.network import NetworkView
from detseg.data.label_index import LabelIndex
from detseg.interfaces import Dataset, EvaluationSample, Metric, SampleKey, TrainingSample
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.mean_iou import MeanIoU, confusion_matrix
from detseg.structures import ImageDetections, ImageLabels, MetricTable, Pixels

_LUMA = torch.tensor((0.299, 0.587, 0.114))
"""Of RGB, ITU-R BT.601."""


class Anchors(NamedTuple):
    """The anchors of a network, or why there are none to see."""

    view: NetworkView | None
    note: str = ""


class Collector(Metric[Any]):
    """A metric that can also tell why its numbers are what they are."""

    def dataset(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """The data with what `update` needs to hear of them besides the truth."""
        return dataset

    @abstractmethod
    def analysis(self, numbers: Mapping[str, float], *, num_examples: int = NUM_EXAMPLES) -> Analysis:
        """Why the numbers that `compute` gave are what they are. num_examples: of each kind of error."""


@singledispatch
def collector(index: Any, anchors: Anchors, metric: Metric[Any] | None = None) -> Collector:
    """A new one for the annotations of a task; metric: a new one of the official numbers, with those of each class,
    where it is to be able to do more than they need. ValueError where there is nothing to analyse.

    Annotations of your own register theirs: `@collector.register`.
    """
    raise ValueError("detseg analyze explains detectors and segmenters; there is no analysis of a "
                     f"{type(index).__name__}; detseg test has its score")


@collector.register
def _(index: BoxIndex, anchors: Anchors, metric: Metric[Any] | None = None) -> Collector:
    return DetectionCollector(index, anchors, metric or CocoAP(index, per_class=True))


@collector.register
def _(index: LabelIndex, anchors: Anchors, metric: Metric[Any] | None = None) -> Collector:
    if not len(index):
        raise ValueError("there are no images with label maps to analyse; name other data with --data")
    chosen = metric or MeanIoU(index, per_class=True)
    if not isinstance(chosen, MeanIoU):
        raise ValueError(  # noqa: TRY004
            f"the analysis of label maps stands on mIoU; there is none on {type(chosen).__name__}")
    return SegmentationCollector(index, chosen)


class DetectionCollector(Collector):
    """Detections, and how bright their images are."""

    main = CocoAP.main

    def __init__(self, index: BoxIndex, anchors: Anchors, metric: Metric[Any]) -> None:
        check_something(index)
        self.index, self.anchors, self.metric = index, anchors, metric
        self.predictions: list[ImageDetections] = []
        self.brightness: dict[int, float] = {}

    def dataset(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """With the brightness of each image."""
        return _WithBrightness(dataset)

    def update(self, predictions: Sequence[ImageDetections], truths: Sequence[float]) -> None:
        """Takes detections, and the brightness of their images. Errors as of `CocoAP.update`."""
        self.metric.update(predictions, [None] * len(predictions))
        self.predictions += predictions
        self.brightness |= {one.image_id: value for one, value in zip(predictions, truths, strict=True)}

    def collected(self) -> tuple[Any, list[ImageDetections], dict[int, float]]:
        """What was taken in."""
        return self.metric.collected(), self.predictions, self.brightness

    def merge(self, collected: Sequence[tuple[Any, list[ImageDetections], dict[int, float]]]) -> None:
        """What all processes have taken in."""
        self.metric.merge([share for share, _, _ in collected])
        self.predictions = [prediction for _, share, _ in collected for prediction in share]
        self.brightness = {image_id: value for _, _, share in collected for image_id, value in share.items()}

    def compute(self) -> dict[str, float]:
        """COCO's AP and AR, of each class too."""
        return self.metric.compute()

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """COCO's rows."""
        return self.metric.table(numbers)

    def analysis(self, numbers: Mapping[str, float], *, num_examples: int = NUM_EXAMPLES) -> Analysis:
        """Why a detector has its AP."""
        return analyze_detections(
            self.predictions, self.index, numbers=numbers, brightness=self.brightness, view=self.anchors.view,
            anchors_note=self.anchors.note, num_examples=num_examples)


class SegmentationCollector(Collector):
    """Counts of label maps, which themselves are not kept."""

    main = MeanIoU.main

    def __init__(self, index: LabelIndex, metric: MeanIoU) -> None:
        self.index, self.metric = index, metric
        self.bands = np.zeros((NUM_BANDS, 2), np.int64)
        self.images: list[LabelImage] = []

    def update(self, predictions: Sequence[ImageLabels], truths: Sequence[Tensor]) -> None:
        """Takes label maps and the true ones. Errors as of `MeanIoU.update`."""
        self.metric.update(predictions, truths)
        for prediction, truth in zip(predictions, truths, strict=True):
            self.bands += edge_bands(truth.numpy(), prediction.labels)
            confusion = confusion_matrix(truth.numpy(), prediction.labels, len(self.index.classes))
            self.images.append(label_image(self.index, prediction.image_id, confusion))

    def collected(self) -> tuple[Any, Any, list[LabelImage]]:
        """What was counted."""
        return self.metric.collected(), self.bands, self.images

    def merge(self, collected: Sequence[tuple[Any, Any, list[LabelImage]]]) -> None:
        """What all processes have counted."""
        self.metric.merge([share for share, _, _ in collected])
        self.bands = np.sum([bands for _, bands, _ in collected], axis=0, dtype=np.int64)
        self.images = [image for _, _, share in collected for image in share]

    def compute(self) -> dict[str, float]:
        """mIoU, and the IoU of each class."""
        return self.metric.compute()

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The usual rows."""
        return self.metric.table(numbers)

    def analysis(self, numbers: Mapping[str, float], *, num_examples: int = NUM_EXAMPLES) -> Analysis:
        """Why a segmenter has its mIoU."""
        return segmentation_analysis(self.metric, self.bands, self.images, num_examples=num_examples)


class _WithBrightness(Dataset[Any]):
    """Images whose truth is how bright they are, 0 to 1; bars around them not counted."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.inner, self.classes = dataset, dataset.classes

    def __len__(self) -> int:
        return len(self.inner)

    def training(self, key: SampleKey) -> TrainingSample[Any]:
        return self.inner.training(key)

    def evaluation(self, item: int) -> EvaluationSample:
        sample = self.inner.evaluation(item)
        (height, width), place = sample.source.size, sample.source.placement
        top, left = round(place.offset_y), round(place.offset_x)
        image = sample.image[:, max(top, 0): round(top + height * place.scale_y),
                             max(left, 0): round(left + width * place.scale_x)]
        return sample._replace(truth=float(image.mean((1, 2)) @ _LUMA) / 255)

    def original(self, item: int) -> Pixels:
        return self.inner.original(item)
