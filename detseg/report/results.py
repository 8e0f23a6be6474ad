"""Predictions as plain values: COCO's results format, rows, YOLO's lines, a few words, an image of ids, crops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np
from pycocotools import mask

from detseg.metrics.detections import detection_rows
from detseg.structures import Classes, ImageClasses, ImageDetections, ImageLabels, LabelPixels, Pixels, Size, Threshold


@singledispatch
def records(prediction: Any, classes: Classes) -> list[Mapping[str, Any]]:
    """The prediction of an image in COCO's results format: boxes, or the run lengths of each class; of whole images the
    scores of their best classes, in the same form without a place.

    Numbers keep every digit, so that AP from the file is AP from memory. Unused classes are left out: no file knows
    their ids. A task of your own registers its predictions: `@records.register`.
    """
    raise TypeError(f"there is no results format for a {type(prediction).__name__}")


@records.register
def _(prediction: ImageDetections, classes: Classes) -> list[Mapping[str, Any]]:
    return [{"image_id": prediction.image_id, "category_id": classes.source_ids[int(label)], "bbox": bbox,
             "score": score} for *bbox, score, label in detection_rows(prediction, classes).tolist()]


@records.register
def _(prediction: ImageLabels, classes: Classes) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for k in np.unique(prediction.labels).tolist():
        if classes.source_ids[k] in classes.used:
            runs = mask.encode(np.asfortranarray(prediction.labels == k, dtype=np.uint8))
            found.append({"image_id": prediction.image_id, "category_id": classes.source_ids[k],
                          "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}})
    return found


@records.register
def _(prediction: ImageClasses, classes: Classes) -> list[Mapping[str, Any]]:
    rows = zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
    return [{"image_id": prediction.image_id, "category_id": classes.source_ids[label], "score": score}
            for label, score in rows if classes.source_ids[label] in classes.used]


@singledispatch
def summary(prediction: Any, classes: Classes, *, threshold: Threshold) -> str:
    """What a picture of the prediction shows, in a few words without a line break."""
    raise TypeError(f"there is no summary of a {type(prediction).__name__}")


@summary.register
def _(prediction: ImageDetections, classes: Classes, *, threshold: Threshold) -> str:
    """How many of each class, the most frequent first."""
    counts = Counter(prediction.labels[prediction.shown(threshold)].tolist())
    return ", ".join(f"{count} {classes.names[label]}" for label, count in counts.most_common()) or "nothing"


@summary.register
def _(prediction: ImageLabels, classes: Classes, *, threshold: Threshold) -> str:
    """How much of the image each class has, the largest first and without what is below half a percent."""
    shares = np.bincount(prediction.labels.ravel(), minlength=len(classes)) / prediction.labels.size
    largest, *others = np.argsort(-shares, kind="stable").tolist()
    return ", ".join(f"{shares[k]:.0%} {classes.names[k]}"
                     for k in [largest, *(other for other in others if shares[other] >= 0.005)])


@summary.register
def _(prediction: ImageClasses, classes: Classes, *, threshold: Threshold) -> str:
    """The best class, and after it those of at least a tenth of its score."""
    rows = list(zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True))
    return ", ".join(f"{classes.names[label]} {score:.0%}" for label, score in rows if score >= rows[0][1] / 10)


def label_image(prediction: ImageLabels, classes: Classes) -> LabelPixels:
    """The label map as an image of source ids, as test servers take it. A ValueError where one does not fit into 8
    bits."""
    if too_large := [source_id for source_id in classes.source_ids if not 0 <= source_id <= 255]:
        raise ValueError(f"label images hold ids of 0 to 255, the classes have "
                         f"{', '.join(map(str, too_large[:5]))}{', ...' * (len(too_large) > 5)}; "
                         "predictions.json holds any")
    return np.asarray(classes.source_ids, dtype=np.uint8)[prediction.labels]


@singledispatch
def csv_rows(prediction: Any, classes: Classes, *, threshold: Threshold) -> list[tuple[str | float, ...]]:
    """Class, score, left, top, right and bottom of each box of at least `threshold`, in pixels; of a whole image, its
    best classes, with nothing behind their scores."""
    raise TypeError(f"there are no rows for a {type(prediction).__name__}")


@csv_rows.register
def _(prediction: ImageDetections, classes: Classes, *, threshold: Threshold) -> list[tuple[str | float, ...]]:
    return [(classes.names[label], score, *box) for box, score, label in _sure(prediction, threshold)]


@csv_rows.register
def _(prediction: ImageClasses, classes: Classes, *, threshold: Threshold) -> list[tuple[str | float, ...]]:
    rows = zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
    return [(classes.names[label], score) for label, score in rows]


def yolo_lines(
    prediction: ImageDetections, classes: Classes, size: Size, *, threshold: Threshold, scores: bool = False
) -> list[str]:
    """A line for each box of at least `threshold`, as YOLO's label files have them: the place of the class among those
    that are used, then the middle, the width and the height as shares of an image of `size`; and the score."""
    places = {name: place for place, name in enumerate(classes.used.values())}
    lines = []
    for (left, top, right, bottom), score, label in _sure(prediction, threshold):
        if classes.names[label] in places:
            shares = ((left + right) / 2 / size[1], (top + bottom) / 2 / size[0], (right - left) / size[1],
                      (bottom - top) / size[0], *((score,) if scores else ()))
            lines.append(" ".join([str(places[classes.names[label]]), *(f"{share:.6f}" for share in shares)]))
    return lines


def crops(
    prediction: ImageDetections, image: Pixels, classes: Classes, *, threshold: Threshold
) -> list[tuple[str, Pixels]]:
    """The class and the pixels of each box of at least `threshold`, best first; every pixel that the box touches."""
    height, width = image.shape[:2]
    found = []
    for (left, top, right, bottom), _, label in _sure(prediction, threshold):
        x, y = min(int(left), width - 1), min(int(top), height - 1)
        part = image[y : max(y + 1, math.ceil(bottom)), x : max(x + 1, math.ceil(right))]
        found.append((classes.names[label], part))
    return found


def _sure(prediction: ImageDetections, threshold: Threshold) -> list[tuple[list[float], float, int]]:
    kept = prediction.shown(threshold)
    columns = (prediction.boxes[kept].tolist(), prediction.scores[kept].tolist(), prediction.labels[kept].tolist())
    return list(zip(*columns, strict=True))
