"""Comparisons by arithmetic: runtimes for phones are fast with products and slow with comparisons."""

from __future__ import annotations

from torch import Tensor

_STEEP = 1e30


def is_positive(x: Tensor) -> Tensor:
    """1 where a float32 is positive, 0 where it is 0; nothing is below. What is less than about 1e-30 lies between.

    The limits are -1 and 1 because XNNPACK has a kernel for these, and not for 0 and 1 in LiteRT.
    """
    return (x * _STEEP).clamp(-1.0, 1.0)
