"""What a recipe for any data takes from the training data, before the first step.

A choice is a setting like any other: it is printed with its reason, kept in the run and in every checkpoint, and a
value that the command line sets stays. Each part can be switched off, and `--set from_data=none` does it for all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.data.check.network import NetworkView, anchor_fit, at_network_size
from detseg.data.label_index import LabelIndex
from detseg.data.loading import spread
from detseg.model import Predictor, anchored_maps
from detseg.ops.anchors import SSDAnchors
from detseg.settings import Settings, Value
from detseg.structures import VOID, Size

_VALIDATIONS = 8
"""No more in a run: of small data sets they are a large part of its time."""
_EMA_SHARE = 0.2
"""The average of the weights reaches back over this part of the steps."""
_MOST_BOXES = 300
"""That anchors are compared with; at least 5 of each class."""
_MOST_LABEL_MAPS = 300
_LARGEST_SCALE = 0.95
_WORTH = 0.01
"""Anchors stay as the config has them unless others meet boxes with an IoU that is so much larger."""
_LARGEST_WEIGHT = 10.0
_SIZE_STEP = 8


class Choice(NamedTuple):
    """A setting that follows from the data."""

    name: str
    """Dotted: "schedule.epochs"."""
    value: Value
    reason: str


@dataclass(frozen=True)
class FromData(Settings, ABC):
    """A run takes `passes` over the images, but no fewer steps than `min_steps` and no more than `max_steps`.

    With fewer images than two batches, batches get smaller, and the learning rate with them.
    """

    schedule: bool = True
    """Whether batch, epochs, the average of the weights and validations follow from the number of images."""
    passes: int = 36
    min_steps: int = 500
    max_steps: int = 30_000

    def __post_init__(self) -> None:
        for name in ("passes", "min_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"from_data.{name} must be at least 1, got {getattr(self, name)}")
        if self.max_steps < self.min_steps:
            raise ValueError(f"from_data.max_steps must be at least min_steps, {self.min_steps}, got {self.max_steps}")

    def choices(
        self, index: Any, model: Predictor, given: Mapping[str, Value], *, fixed: Collection[str], pretrained: bool,
    ) -> Iterator[Choice]:
        """What follows from an index of training data for an untrained network, and from whether it will start from
        trained weights; `given` are the settings as they are, `fixed` the names of those that will stay."""
        if given["freeze.stride"] and not pretrained:
            yield Choice("freeze.stride", 0, "the first layers are untrained too, for no --weights were given")
        if self.schedule:
            yield from self._schedule(len(index), given, fixed)
        yield from self.of_targets(index, model)

    @abstractmethod
    def of_targets(self, index: Any, model: Predictor) -> Iterator[Choice]:
        """What follows from the targets."""

    def _schedule(self, num_images: int, given: Mapping[str, Value], fixed: Collection[str]) -> Iterator[Choice]:
        batch_size, lr = given["batch_size"], given["optimizer.lr"]
        assert isinstance(batch_size, int)
        assert isinstance(lr, float | int)
        if num_images < 2 * batch_size and "batch_size" not in fixed:
            smaller = max(1, 2 ** int(math.log2(max(1, num_images // 2))))
            yield Choice("batch_size", smaller, f"{num_images} images are fewer than two batches of {batch_size}")
            yield Choice("optimizer.lr", lr * smaller / batch_size, "in proportion to the batch")
            batch_size = smaller
        epoch_steps = max(1, num_images // batch_size)
        epochs = given["schedule.epochs"]
        assert isinstance(epochs, int)
        if "schedule.epochs" not in fixed:
            wanted = self.passes * epoch_steps
            steps = min(max(wanted, self.min_steps), self.max_steps)
            epochs = math.ceil(steps / epoch_steps)
            reason = f"{self.passes} passes over {num_images} images are {wanted} steps"
            if wanted < self.min_steps:
                reason += f", and {self.min_steps} is the least"
            elif wanted > self.max_steps:
                reason += f", and {self.max_steps} is the most"
            yield Choice("schedule.epochs", epochs, reason)
        warmup = given.get("schedule.warmup_steps")
        if isinstance(warmup, int) and warmup > epochs * epoch_steps // 10:
            yield Choice("schedule.warmup_steps", epochs * epoch_steps // 10, "a tenth of the steps")
        if "ema.decay" in given:
            decay = round(1 - 1 / max(10.0, _EMA_SHARE * epochs * epoch_steps), 5)
            yield Choice("ema.decay", decay, f"an average over a fifth of {epochs * epoch_steps} steps")
        yield Choice("validate_every", math.ceil(epochs / _VALIDATIONS), f"at most {_VALIDATIONS} validations")


@dataclass(frozen=True)
class DetectorFromData(FromData):
    """For SSD's anchors: their scales, `model.anchor_scales`, so that boxes meet anchors of their size."""

    anchors: bool = True

    def of_targets(self, index: BoxIndex, model: Predictor) -> Iterator[Choice]:
        """The first map's scale and the second's; the others follow evenly."""
        anchors = getattr(model.head, "anchors", None)
        if not self.anchors or not isinstance(anchors, SSDAnchors):
            return
        view = NetworkView("", model.resize)
        boxes = at_network_size(index, view)
        chosen = _some_of_each_class(index, ~index.crowd & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
        if not chosen.any():
            return
        anchored = anchored_maps(model)
        assert anchored is not None, "it has SSD's"
        sizes = [(x.shape[2], x.shape[3]) for x in anchored[1]]

        def met(candidate: SSDAnchors) -> float:
            """The mean over classes, as AP is one."""
            placed = candidate(sizes, model.resize.size, device=torch.device("cpu")).numpy()
            fit = anchor_fit(boxes, chosen, view._replace(anchors=placed))
            labels = index.labels[fit.rows]
            return float(np.mean([fit.best_iou[labels == label].mean() for label in np.unique(labels)]))

        now = met(anchors)
        found = max(((met(candidate), candidate) for candidate in _candidates(anchors)), key=lambda pair: pair[0])
        if found[0] > now + _WORTH:
            yield Choice("model.anchor_scales", found[1].scales,
                         f"boxes meet their best anchor with an IoU of {found[0]:.2f}, the mean over classes; with the "
                         f"config's it is {now:.2f}")


def _some_of_each_class(index: BoxIndex, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[m]: of the usable boxes, evenly chosen ones of each class."""
    chosen = np.zeros_like(usable)
    labels = np.unique(index.labels[usable])
    for label in labels:
        rows = np.flatnonzero(usable & (index.labels == label))
        chosen[rows[spread(len(rows), max(5, _MOST_BOXES // len(labels)))]] = True
    return chosen


def _candidates(anchors: SSDAnchors) -> Iterator[SSDAnchors]:
    """With other scales: of the first map, and of the second, from which the rest rise evenly."""
    for first in np.geomspace(0.03, 0.6, 14):
        for second in np.geomspace(first * 1.2, 0.8, 8) if first * 1.2 < 0.8 else ():
            rest = np.linspace(second, _LARGEST_SCALE, anchors.num_maps - 1)
            yield replace(anchors, scales=tuple(round(float(scale), 3) for scale in (first, *rest)))


@dataclass(frozen=True)
class SegmenterFromData(FromData):
    """For segmenters whose model has `input_height`, `input_width` and `class_weights`.

    Images come to the network in the shape that half of them have, with `most_pixels` pixels, or as many as they have.
    Classes weigh by the root of their rarity, because the mean over classes counts a pole like the road.
    """

    size: bool = True
    most_pixels: int = 360 * 480
    class_weights: bool = True

    def of_targets(self, index: LabelIndex, model: Predictor) -> Iterator[Choice]:
        """Of up to 300 label maps, evenly chosen."""
        items = spread(len(index), _MOST_LABEL_MAPS)
        if self.size:
            height, width = _suited_size(np.array([index.size(item) for item in items]), self.most_pixels)
            reason = f"the shape of {len(items)} images, at most {self.most_pixels} pixels, in steps of {_SIZE_STEP}"
            yield Choice("model.input_height", height, reason)
            yield Choice("model.input_width", width, reason)
        if self.class_weights:
            counts = np.zeros(len(index.classes), np.int64)
            for item in items:
                labels = index.labels(item, index.size(item))
                counts += np.bincount(labels.ravel(), minlength=VOID + 1)[: len(counts)]
            weights = class_weights(counts)
            if weights is not None:
                yield Choice("model.class_weights", weights,
                             f"1 / root of each class's share of the pixels of {len(items)} label maps, at most "
                             f"{_LARGEST_WEIGHT:g}")


def _suited_size(sizes: NDArray[np.int64], most_pixels: int) -> Size:
    """[n, 2] heights and widths to one height and width, of the middle one of their shapes."""
    shape = float(np.median(sizes[:, 1] / sizes[:, 0]))
    pixels = min(float(most_pixels), float(np.median(sizes.prod(1))))
    height = math.sqrt(pixels / shape)
    height, width = (max(_SIZE_STEP, round(side / _SIZE_STEP) * _SIZE_STEP) for side in (height, height * shape))
    return height, width


def class_weights(counts: NDArray[np.int64]) -> tuple[float, ...] | None:
    """[K] numbers of pixels to a factor for each class, with a mean over pixels of 1; of a class without pixels 1; None
    where there are no two classes to weigh."""
    present = counts > 0
    if present.sum() < 2:
        return None
    shares = counts / counts.sum()
    weights = np.where(present, 1 / np.sqrt(np.where(present, shares, 1)), 0)
    weights = np.minimum(weights / (weights * shares).sum(), _LARGEST_WEIGHT)
    return tuple(round(float(weight), 2) if known else 1.0 for weight, known in zip(weights, present, strict=True))
