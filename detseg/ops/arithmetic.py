"""Comparisons by arithmetic: runtimes for phones are fast with products and slow with comparisons."""

from __future__ import annotations

from torch import Tensor

_STEEP = 1e30


def is_positive(x: Tensor) -> Tensor:
    """1 where a float32 is greater than 0, else 0; what is below about 1e-30 lies between."""
    return (x * _STEEP).clamp(0.0, 1.0)
