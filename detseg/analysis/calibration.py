"""Whether scores are probabilities: a detection of score 0.8 should be right 8 times in 10.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599): sections 2
and 4.2, for detections that are right or wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detseg.metrics.numbers import ratio

NUM_BINS = 10
LEAST_SCORE = 0.05
"""Detections of a smaller score are left out: they are most of all, and nobody looks at them."""
_EXTREME = 1e-6
"""Scores this close to 0 or 1 have no finite logit."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The detections of a range of scores."""

    low: float
    high: float
    count: int
    score: float
    """Their mean score."""
    precision: float
    """How many of them are right."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far scores are from being probabilities, as they are and after temperature scaling."""

    least_score: float
    """Detections of at least this score were taken."""
    bins: tuple[Bin, ...]
    """The reliability diagram."""
    error: float
    """Expected calibration error: the mean distance of score and precision, weighted by the bins' detections."""
    temperature: float
    """What logits are divided by to fit best (least cross entropy); above 1: scores are too extreme."""
    scaled_bins: tuple[Bin, ...]
    """With the temperature; on the detections that it was fitted to."""
    scaled_error: float


def calibration(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """Of detections [d] and which of them are right."""
    kept = scores >= LEAST_SCORE
    scores, right = scores[kept].clip(_EXTREME, 1 - _EXTREME), right[kept]
    logits = np.log(scores) - np.log1p(-scores)
    temperature = _temperature(logits, right)
    scaled = scores if math.isnan(temperature) else _sigmoid(logits / temperature)
    bins, scaled_bins = _bins(scores, right), _bins(scaled, right)
    return Calibration(least_score=LEAST_SCORE, bins=bins, error=_error(bins), temperature=temperature,
                       scaled_bins=scaled_bins, scaled_error=_error(scaled_bins))


def _temperature(logits: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """NaN where no finite one is best: all detections are right, or none."""
    if not right.any() or right.all():
        return math.nan
    low, high = math.log(0.01), math.log(100.0)
    for _ in range(60):  # cross entropy is convex in 1 / temperature: where its slope is 0
        middle = (low + high) / 2
        slope = float(np.mean((_sigmoid(logits * math.exp(middle)) - right) * logits))
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-middle)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    positive: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits / 2))
    return positive


def _bins(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    of_bin = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(of_bin, minlength=NUM_BINS).tolist()
    sums = np.bincount(of_bin, scores, minlength=NUM_BINS).tolist()
    hits = np.bincount(of_bin, right, minlength=NUM_BINS).tolist()
    return tuple(
        Bin(low=k / NUM_BINS, high=(k + 1) / NUM_BINS, count=counts[k], score=ratio(sums[k], counts[k]),
            precision=ratio(hits[k], counts[k]))
        for k in range(NUM_BINS))


def _error(bins: tuple[Bin, ...]) -> float:
    return ratio(math.fsum(one.count * abs(one.score - one.precision) for one in bins if one.count),
                 sum(one.count for one in bins))
