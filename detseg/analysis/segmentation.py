"""Why a segmenter has its mIoU: classes, confusions, distance to edges, images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.analysis.advice import segmentation_findings
from detseg.analysis.segmentation_result import ConfusedPair, EdgeBand, LabelClass, LabelImage, SegmentationAnalysis
from detseg.data.label_index import LabelIndex
from detseg.metrics.mean_iou import MeanIoU, class_iou
from detseg.metrics.numbers import mean_existing, ratio
from detseg.structures import VOID, LabelPixels

_DISTANCES = (0.0, 2.0, 4.0, 8.0, 16.0, math.inf)
"""Pixels to the nearest edge: where bands begin and end."""
NUM_BANDS = len(_DISTANCES) - 1
NUM_EXAMPLES = 20
"""Worst images, and pairs of classes."""

_Counts: TypeAlias = NDArray[np.int64]


def edge_distance(labels: LabelPixels) -> NDArray[np.float32]:
    """[H, W]: how far each pixel's centre is from that of the nearest pixel at an edge, which has one of another label
    above, below, left or right; void is a label too. Without any edge no pixel is near one: inf."""
    at_edge = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = labels[one] != labels[other]
        at_edge[one] |= differ
        at_edge[other] |= differ
    if not at_edge.any():
        return np.full(labels.shape, np.inf, np.float32)
    distance: NDArray[np.float32] = cv2.distanceTransform(
        (~at_edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance


def edge_bands(truth: LabelPixels, labels: LabelPixels) -> _Counts:
    """[NUM_BANDS, 2]: pixels that are not void, and those of them that are wrong, by distance to an edge of the truth.
    """
    known = truth != VOID
    band = np.searchsorted(_DISTANCES[1:-1], edge_distance(truth)[known], side="right")
    wrong = (truth != labels)[known]
    return np.stack([np.bincount(one, minlength=NUM_BANDS) for one in (band, band[wrong])], axis=1)


def label_image(index: LabelIndex, image_id: int, confusion: _Counts) -> LabelImage:
    """What became of an image, of its confusion matrix [K, K]."""
    i = int(np.flatnonzero(index.image_ids == image_id)[0])
    pixels, right = int(confusion.sum()), int(confusion.trace())
    missed = confusion.copy()
    np.fill_diagonal(missed, 0)
    true, predicted = divmod(int(missed.argmax()), len(confusion))
    confused, names = int(missed.max()), index.classes.names
    return LabelImage(
        image_id=image_id, file=index.path(i).name, pixels=pixels, wrong=pixels - right, accuracy=ratio(right, pixels),
        miou=mean_existing(class_iou(confusion)), true=names[true] if confused else None,
        predicted=names[predicted] if confused else None, confused=confused)


def segmentation_analysis(
    metric: MeanIoU, bands: _Counts, images: Sequence[LabelImage], *, num_examples: int = NUM_EXAMPLES
) -> SegmentationAnalysis:
    """Why label maps have their mIoU.

    Args:
        metric: all of them against the truth.
        bands: the sum of `edge_bands` over them.
        images: what became of each.
        num_examples: worst images and pairs of classes.

    ValueError: nothing to analyse.
    """
    if num_examples < 0:
        raise ValueError(f"the number of examples is at least 0, got {num_examples}")
    index, confusion = metric.index, metric.confusion
    if not confusion.any():
        raise ValueError(f"none of the {len(index)} images has a pixel with a label, so there is no mIoU to explain; "
                         "name other data with --data")
    used = [k for k, source_id in enumerate(index.classes.source_ids) if source_id in index.classes.used]
    iou, names = class_iou(confusion), index.classes.names
    rows, columns = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    total, right = int(confusion.sum()), int(confusion.trace())
    classes = tuple(
        LabelClass(name=names[k], pixels=rows[k], predicted=columns[k], iou=iou[k],
                   precision=ratio(int(confusion[k, k]), columns[k]), recall=ratio(int(confusion[k, k]), rows[k]))
        for k in used)
    missed = confusion.copy()
    np.fill_diagonal(missed, 0)
    largest = np.argsort(-missed, axis=None, kind="stable")[:num_examples].tolist()
    pairs = [(*divmod(place, len(confusion)), int(missed.flat[place])) for place in largest]
    ordered = tuple(sorted(images, key=lambda one: one.image_id))
    worst = sorted((one for one in ordered if one.wrong), key=lambda one: one.miou)[:num_examples]
    analysis = SegmentationAnalysis(
        num_images=len(index), numbers=metric.compute(), findings=(), pixel_accuracy=ratio(right, total),
        classes=classes, confusion=tuple(tuple(row) for row in confusion[np.ix_(used, used)].tolist()),
        pairs=tuple(
            ConfusedPair(true=names[true], predicted=names[predicted], pixels=count,
                         share_of_true=ratio(count, rows[true]), share_of_errors=ratio(count, total - right))
            for true, predicted, count in pairs if count),
        edges=tuple(
            EdgeBand(low=low, high=high, pixels=pixels, wrong=wrong, share_wrong=ratio(wrong, pixels),
                     share_of_errors=ratio(wrong, total - right))
            for low, high, (pixels, wrong) in zip(_DISTANCES[:-1], _DISTANCES[1:], bands.tolist(), strict=True)),
        worst=tuple(worst), images=ordered)
    return replace(analysis, findings=segmentation_findings(analysis))
