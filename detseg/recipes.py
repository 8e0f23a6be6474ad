"""What many experiments have in common: how their data are read, and what `--sample` makes of them.

A sample run takes a few minutes on two CPU cores, on the generated sample. There is one recipe for each family of
heads. A config names its own model settings; everything else of it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import singledispatch
from types import MappingProxyType
from typing import Any

import numpy as np

from detseg.config import Data, SampleRun
from detseg.data.augment import ClassificationAugment, SegmentationAugment, SSDAugment
from detseg.data.classification import ClassificationDataset
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes, read_image_classes, read_labels
from detseg.data.sample import draw_scene, generate_class_sample, generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.interfaces import Task
from detseg.metrics.accuracy import Accuracy
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.mean_iou import MeanIoU
from detseg.optim import EMA, SGD, AdamW, Cosine, Poly
from detseg.resize import Resize
from detseg.settings import Value
from detseg.structures import Pixels
from detseg.tasks.classification import Classification

BOXES = Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample)
"""Boxes in any layout that is known, measured with COCO's AP."""
LABELS = Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU, generate=generate_sample)
"""Label maps in any layout that is known, measured with mIoU."""
CLASSES = Data(read=read_image_classes, dataset=ClassificationDataset, metric=Accuracy, generate=generate_class_sample,
               folder="data/imagenet")
"""Images in folders of their classes, measured with top-1 and top-5 accuracy."""


@singledispatch
def usual_data(task: Task[Any, Any, Any, Any]) -> Data:
    """Where no config says it: how data for a task are read and measured."""
    return LABELS if task.label_maps else BOXES


@usual_data.register
def _(task: Classification) -> Data:
    return CLASSES


def sample_pictures(number: int) -> list[Pixels]:
    """Pictures as the generated sample has them."""
    return [draw_scene(np.random.default_rng((7, k))).image for k in range(number)]


def ssd_sample() -> SampleRun:
    """SSD and SSDLite at 224 x 224, for 800 steps."""
    return SampleRun(
        model={"size": 224},
        optimizer=SGD(lr=0.05, momentum=0.9, weight_decay=4e-5),
        schedule=Cosine(epochs=32, warmup_steps=100),
        batch_size=16,
        ema=EMA(decay=0.99),
        clip_norm=10.0,
        validate_every=4,
    )


def panlite_sample() -> SampleRun:
    """PANLite as SSDLite, but with AdamW and without mosaics; see benchmarks.md."""

    def plain(resize: Resize) -> SSDAugment:
        """IoU crop and mirror image only."""
        return SSDAugment(resize, photometric=0.0, zoom_out=0.0)

    return replace(
        ssd_sample(),
        augment=plain,
        optimizer=AdamW(lr=0.002, weight_decay=0.05, decay_norms=False),
        schedule=Cosine(epochs=32, warmup_steps=50),
    )


def retinanet_sample(model: Mapping[str, Value]) -> SampleRun:
    """RetinaNet in TensorFlow's wiring, for 600 steps. model: its settings."""
    return SampleRun(
        model=model,
        optimizer=AdamW(lr=0.002, weight_decay=0.05, decay_norms=False),
        schedule=Cosine(epochs=24, warmup_steps=50),
        batch_size=16,
        ema=EMA(decay=0.99),
        clip_norm=10.0,
        validate_every=4,
    )


def faster_rcnn_sample(model: Mapping[str, Value] = MappingProxyType({})) -> SampleRun:
    """Faster R-CNN at 224 pixels and half the width, for 1,200 steps. model: further settings of it."""
    return SampleRun(
        model={"size": 224, "width": 0.5, "region_samples": 128, **model},
        optimizer=SGD(lr=0.02, momentum=0.9, weight_decay=1e-4),
        schedule=Cosine(epochs=24, warmup_steps=100),
        batch_size=8,
        validate_every=4,
    )


def segmenter_sample(
    augment: Callable[[Resize], SegmentationAugment], model: Mapping[str, Value]
) -> SampleRun:
    """A segmenter, for 1,200 steps with gentler crops than `augment` gives. model: its settings."""

    def gentle(resize: Resize) -> SegmentationAugment:
        """3/4 to 3/2 of the size, no colours, half of the crops around a rare class."""
        return replace(augment(resize), scale=(0.75, 1.5), photometric=0.0, rare_classes=0.5)

    return SampleRun(
        model=model,
        augment=gentle,
        optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=4e-5),
        schedule=Poly(epochs=24, power=0.9, warmup_steps=50),
        batch_size=8,
        ema=EMA(decay=0.99),
        clip_norm=10.0,
        validate_every=4,
    )


def classifier_sample(model: Mapping[str, Value]) -> SampleRun:
    """A classifier, for 500 steps with gentle crops. model: its settings."""

    def gentle(resize: Resize) -> ClassificationAugment:
        """At least half of the area, and no colours."""
        return ClassificationAugment(resize.size, area=(0.5, 1.0))

    return SampleRun(
        model=model,
        augment=gentle,
        optimizer=AdamW(lr=0.002, weight_decay=0.05, decay_norms=False),
        schedule=Cosine(epochs=16, warmup_steps=50),
        batch_size=32,
        ema=EMA(decay=0.99),
        clip_norm=10.0,
        validate_every=4,
    )
