"""How sure a score is: the interval that it has over draws of the images it was measured on.

The images of a validation set are a draw from all those that could have been taken. The bootstrap (Efron and Tibshirani
1993, An Introduction to the Bootstrap, chapter 13) draws as many of them again, with replacement, and computes the
metric anew on each draw: exactly, for AP and mIoU are no means over images. What two networks differ by is taken on the
same draws, in pairs, so that an image that is hard for both says nothing.

An interval tells what other images would have given, not what another training run would have; and it takes images for
independent of each other, which frames of one video are not: these say less than their number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple, TypeAlias, TypeVar

import hotcoco
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detseg.interfaces import Metric
from detseg.metrics.accuracy import Accuracy
from detseg.metrics.coco_ap import AREAS, CocoAP, numbered
from detseg.metrics.mean_iou import MeanIoU
from detseg.structures import ImageLabels

PredictionT = TypeVar("PredictionT")

Counts: TypeAlias = NDArray[np.int64]
"""[S, n]: how often each image counts in each of S draws; images in the order of the metric's index."""

Samples: TypeAlias = dict[str, NDArray[np.float64]]
"""A metric's numbers by name, [S] each; NaN where a draw has no such object."""

LEVEL = 0.95
"""The share of draws that an interval holds."""

_CELLS = 4_000_000
"""Numbers in the largest array that is made at a time."""


class Interval(NamedTuple):
    """A number, and between what the middle `LEVEL` of its draws lie. All NaN where it does not exist."""

    value: float
    low: float
    high: float


class Resamplable(Metric[PredictionT], ABC):
    """A metric that gives its numbers for any draw of its images too."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Of its index."""

    @abstractmethod
    def resampled(self, counts: Counts, /) -> Samples:
        """Its numbers on each draw, those of each class among them."""


@singledispatch
def resamplable(metric: Metric[Any]) -> Resamplable[Any]:
    """A new metric of the same kind and index that can be resampled.

    A metric of your own registers itself: `@resamplable.register`. ValueError for one that has not.
    """
    raise ValueError(f"nobody knows how to resample {type(metric).__name__}, so there is no interval; register it with "
                     "detseg.bootstrap.resamplable")


@resamplable.register
def _(metric: CocoAP) -> Resamplable[Any]:
    return ResamplableAP(metric.index, per_class=True)


@resamplable.register
def _(metric: MeanIoU) -> Resamplable[Any]:
    return ResamplableIoU(metric.index, per_class=True)


@resamplable.register
def _(metric: Accuracy) -> Resamplable[Any]:
    return ResamplableAccuracy(metric.index, per_class=True)


def draws(num_images: int, *, number: int, seed: int = 0) -> Counts:
    """So many draws of as many images, with replacement; seeded. ValueError for fewer than two images."""
    if num_images < 2:
        raise ValueError(f"an interval over images takes two or more, got {num_images}; evaluate on more data")
    return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), size=number)


def interval(value: float, samples: NDArray[np.float64]) -> Interval:
    """The interval of a number by the percentiles of its draws; those in which it does not exist say nothing."""
    existing = samples[~np.isnan(samples)]
    if math.isnan(value) or not existing.size:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(existing, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return Interval(value, low, high)


class _Ranked(NamedTuple):
    """The detections of a class for objects of one range of sizes, best first."""

    image: NDArray[np.int64]
    """[D]: the position of each one's image, in the order of ids."""
    hit: NDArray[np.bool_]
    """[T, D]: whether it is matched at each IoU threshold."""
    counted: NDArray[np.bool_]
    """[T, D]: whether it is one of those that count."""
    num_true: NDArray[np.int64]
    """[n]: the objects to be found in each image."""

    def average_precision(self, counts: Counts) -> NDArray[np.float64]:
        """[S, T]: AP on each draw, as COCO's accumulate computes it; NaN where there is nothing to be found.

        A copy of an image stands directly behind it in the ranking. Precision is read where an object is found, and
        there it is the highest at the last of the copies, so a copy is a count. Only the order of two equal scores of
        one image and class could tell the two apart.
        """
        to_find = counts @ self.num_true
        found = np.zeros((len(counts), len(self.hit)))
        seen: NDArray[np.int64] | None = None
        for t, (hit, counted) in enumerate(zip(self.hit, self.counted, strict=True)):
            if seen is None or not np.array_equal(counted, self.counted[t - 1]):
                seen = counts[:, self.image[counted]].cumsum(axis=1)
            hits = np.flatnonzero(hit[counted])
            if not len(hits):
                continue
            hits_so_far = counts[:, self.image[counted][hits]].cumsum(axis=1)
            precision = hits_so_far / np.maximum(seen[:, hits], 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits_so_far / np.maximum(to_find, 1)[:, None]
            reached = np.searchsorted(_RECALLS, recall, side="right")
            found[:, t] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(_RECALLS)
        found[to_find == 0] = math.nan
        return found


_RECALLS = np.linspace(0, 1, 101)


class ResamplableAP(CocoAP, Resamplable[Any]):
    """COCO's AP for any draw of images: AP, AP50, AP75, APs, APm, APl and those of each class.

    Matching is done once, by hotcoco: it knows nothing of other images. Ranking is done on every draw.
    """

    @property
    def num_images(self) -> int:
        """Of its index."""
        return len(self.index)

    def resampled(self, counts: Counts, /) -> Samples:
        """See `Resamplable`."""
        by_id = counts[:, np.argsort(self.index.image_ids)]
        of_class: dict[str, Samples] = {}
        for name, areas in self._ranked():
            measured = {area: _in_parts(ranked, by_id) for area, ranked in areas.items()}
            of_class[name] = {
                "AP": measured["all"].mean(1), "AP50": measured["all"][:, 0], "AP75": measured["all"][:, 5],
                **{f"AP{area[0]}": measured[area].mean(1) for area in ("small", "medium", "large")}}
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
        numbers = {name: mean_of_existing([one[name] for one in of_class.values()], like=counts) for name in names}
        return numbers | {f"AP/{name}": one["AP"] for name, one in of_class.items()}

    def _ranked(self) -> Iterator[tuple[str, dict[str, _Ranked]]]:
        """The used classes with their detections; class by class, for all that is known of COCO's takes gigabytes."""
        truth, rows = numbered(self.index, self.by_image())
        ground_truth = hotcoco.COCO(truth.coco_ground_truth())
        evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(rows[:, :7]), "bbox")
        for category_id, name in truth.classes.used.items():
            evaluation.params.cat_ids = [category_id]
            evaluation.evaluate()
            matched = [one for one in evaluation.eval_imgs if one is not None]
            yield name, {area: _ranked_of([one for one in matched if tuple(one["aRng"]) == limits], len(self.index))
                         for area, limits in AREAS.items()}


def _ranked_of(matched: Sequence[Mapping[str, Any]], num_images: int) -> _Ranked:
    """What matching gave for some images, in the order in which COCO's accumulate ranks it."""
    images = sorted(matched, key=lambda one: int(one["image_id"]))
    num_true = np.zeros(num_images, np.int64)
    for one in images:
        num_true[one["image_id"] - 1] = len(one["gtIgnore"]) - sum(one["gtIgnore"])
    with_rows = [one for one in images if one["dtScores"]]
    scores = np.concatenate([np.zeros(0), *(one["dtScores"] for one in with_rows)])
    order = np.argsort(-scores, kind="stable")
    image = np.repeat(np.array([one["image_id"] - 1 for one in with_rows], np.int64),
                      np.array([len(one["dtScores"]) for one in with_rows], np.int64))
    none = np.zeros((10, 0), bool)
    hit, ignored = (np.concatenate([none, *(np.array(one[key], bool) for one in with_rows)], axis=1)[:, order]
                    for key in ("dtMatched", "dtIgnore"))
    return _Ranked(image[order], hit & ~ignored, ~ignored, num_true)


def _in_parts(ranked: _Ranked, counts: Counts) -> NDArray[np.float64]:
    """[S, T], computed for as many draws at a time as memory has a place for."""
    together = max(1, _CELLS // max(1, len(ranked.image)))
    return np.concatenate([ranked.average_precision(counts[first : first + together])
                           for first in range(0, len(counts), together)] or [np.zeros((0, 10))])


class _Pixels(NamedTuple):
    """What is known of some images."""

    all: Any
    of_image: NDArray[np.int64]
    """[n, 3, K]: those of each image of the index and class that are true, predicted, and both."""


class ResamplableIoU(MeanIoU, Resamplable[ImageLabels]):
    """mIoU for any draw of images: of each it keeps the pixels of every class that are true, predicted and both."""

    def __init__(self, index: Any, *, per_class: bool = False, reference: bool = False) -> None:
        super().__init__(index, per_class=per_class, reference=reference)
        self._of_image = np.zeros((len(index), 3, len(index.classes)), np.int64)
        self._position = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}

    @property
    def num_images(self) -> int:
        """Of its index."""
        return len(self.index)

    def update(self, predictions: Sequence[ImageLabels], truths: Sequence[Tensor]) -> None:
        """As of `MeanIoU`, image by image."""
        for prediction, truth in zip(predictions, truths, strict=True):
            before = self.confusion.copy()
            super().update([prediction], [truth])
            added = self.confusion - before
            self._of_image[self._position[prediction.image_id]] = added.sum(1), added.sum(0), added.diagonal()

    def collected(self) -> Any:
        """The confusion matrix and whose it is, and the pixels of each image."""
        return _Pixels(super().collected(), self._of_image)

    def merge(self, collected: Sequence[Any]) -> None:
        """See `MeanIoU`; each process has the pixels of its own images."""
        super().merge([share.all for share in collected])
        self._of_image = np.sum([share.of_image for share in collected], axis=0)

    def resampled(self, counts: Counts, /) -> Samples:
        """See `Resamplable`."""
        classes = self.index.classes
        num_true, num_predicted, both = np.einsum("sn,npk->psk", counts, self._of_image, optimize=True)
        union = num_true + num_predicted - both
        iou = np.where(union > 0, both / np.maximum(union, 1), math.nan)
        used = [k for k, source_id in enumerate(classes.source_ids) if source_id in classes.used]
        present = np.where(num_true > 0, iou, math.nan)
        pixels = num_true.sum(1)
        return {
            "mIoU": mean_of_existing([iou[:, k] for k in used], like=counts),
            "mIoU_present": mean_of_existing([present[:, k] for k in used], like=counts),
            "pixel_accuracy": np.where(pixels > 0, both.sum(1) / np.maximum(pixels, 1), math.nan),
            **{f"IoU/{classes.names[k]}": iou[:, k] for k in used}}


class ResamplableAccuracy(Accuracy, Resamplable[Any]):
    """Top-1 and top-5 for any draw of images."""

    @property
    def num_images(self) -> int:
        """Of its index."""
        return len(self.index)

    def resampled(self, counts: Counts, /) -> Samples:
        """See `Resamplable`."""
        ranks, classes = self.collected().ranks, self.index.classes
        everywhere = np.ones(len(ranks), bool)
        numbers = {"top1": _share(counts, ranks == 0, everywhere)}
        if not math.isnan(self.compute()["top5"]):
            numbers["top5"] = _share(counts, (ranks >= 0) & (ranks < 5), everywhere)
        of_class = {name: self.index.labels == classes.names.index(name) for name in classes.used.values()}
        return numbers | {f"top1/{name}": _share(counts, ranks == 0, rows) for name, rows in of_class.items()}


def _share(counts: Counts, hits: NDArray[np.bool_], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[S]: the hits among some of the images."""
    all_of_them = counts @ rows.astype(np.int64)
    return np.where(all_of_them > 0, counts @ (hits & rows).astype(np.int64) / np.maximum(all_of_them, 1), math.nan)


def mean_of_existing(values: Sequence[NDArray[np.float64]], *, like: Counts) -> NDArray[np.float64]:
    """[S]: the mean of what exists in each draw, NaN where nothing does; `like` has S rows."""
    stacked = np.stack(values) if values else np.full((1, len(like)), math.nan)
    there = ~np.isnan(stacked)
    return np.where(there.any(0), np.where(there, stacked, 0).sum(0) / np.maximum(there.sum(0), 1), math.nan)
