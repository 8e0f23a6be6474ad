"""Numbers that may not exist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def mean_existing(values: Iterable[float]) -> float:
    """The mean of those that are not NaN; NaN of none."""
    existing = [value for value in values if not math.isnan(value)]
    return math.fsum(existing) / len(existing) if existing else math.nan


def ratio(part: float, whole: float) -> float:
    """NaN where there is no whole."""
    return part / whole if whole else math.nan


def best_first(numbers: Mapping[str, float], prefix: str) -> list[tuple[str, float]]:
    """Those whose names begin so; NaN last."""
    named = ((name, value) for name, value in numbers.items() if name.startswith(prefix))
    return sorted(named, key=lambda item: (math.isnan(item[1]), -item[1], item[0]))
