"""Precision, recall and F1 over the score, and the score from which a class is best shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detseg.analysis.tide import precision_at_recalls
from detseg.metrics.numbers import ratio

SCORES = np.arange(101) / 100
"""Where curves over the score are told."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """How good the detections of a class are, by the score from which they count."""

    threshold: float
    """The score from which F1 is largest; NaN where nothing right is found."""
    precision: float
    """From that score on."""
    recall: float
    f1: float
    precision_at_recall: tuple[float, ...]
    """[101]: at a recall of 0, 0.01, ... 1."""
    precision_at_score: tuple[float, ...]
    """[101]: from a score of 0, 0.01, ... 1 on; NaN where there is no detection."""
    recall_at_score: tuple[float, ...]
    """[101]; NaN without objects."""
    f1_at_score: tuple[float, ...]
    """[101]."""


def curves(scores: NDArray[np.float64], right: NDArray[np.bool_], num_objects: int) -> Curves:
    """Of detections [d], which of them are right, and the number of objects."""
    order = np.argsort(-scores, kind="stable")
    falling, true = scores[order], right[order].cumsum()
    kept = np.searchsorted(-falling, -SCORES, side="right")
    true_at = np.concatenate([[0], true])[kept]
    threshold = _best_threshold(falling, true, num_objects)
    shown = int((scores >= threshold).sum())
    hits = int(right[scores >= threshold].sum())
    return Curves(
        threshold=threshold, precision=ratio(hits, shown), recall=ratio(hits, num_objects),
        f1=ratio(2 * hits, shown + num_objects),
        precision_at_recall=tuple(precision_at_recalls(scores, right, num_objects).tolist()),
        precision_at_score=tuple(map(ratio, true_at.tolist(), kept.tolist())),
        recall_at_score=tuple(ratio(hits, num_objects) for hits in true_at.tolist()),
        f1_at_score=tuple(ratio(2 * hits, number + num_objects)
                          for hits, number in zip(true_at.tolist(), kept.tolist(), strict=True)))


def _best_threshold(falling: NDArray[np.float64], true: NDArray[np.int64], num_objects: int) -> float:
    """Half way between the last detection that is best shown and the next; the last one's score where none follows."""
    if not num_objects or not len(true) or not true[-1]:
        return float("nan")
    last_of_equals = np.append(falling[1:] < falling[:-1], True)
    f1 = np.where(last_of_equals, 2 * true / (np.arange(1, len(true) + 1) + num_objects), -1)
    best = int(f1.argmax())
    if best + 1 == len(falling):
        return float(falling[best])
    return float((falling[best] + falling[best + 1]) / 2)
