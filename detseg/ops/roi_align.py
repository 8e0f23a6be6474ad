"""RoIAlign over a feature pyramid: every region's features in a small grid (He et al. 2017, arXiv 1703.06870).

Two ways, tested equal. Eager code runs torchvision's kernel. The static form, for runtimes that have no such kernel,
uses that bilinear sampling and averaging are separable: a region's grid is the product of a matrix of row
weights, the map, and a matrix of column weights. On a small map that is the faster way for eager code, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

SAMPLES = 2
"""Points along each side of a grid cell whose values are averaged."""

_SMALL_MAP = 256
"""Cells. The products of 150 regions took 9 ms on a map of 140 cells, where the kernel took 20, and on 850 cells more
than twice as long as the kernel."""

_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
"""Regions of this side in pixels are pooled at a stride of 2^4 (Lin et al. 2017, arXiv 1612.03144, equation 1)."""


def roi_align(
    maps: Sequence[Tensor], regions: Tensor, *, strides: Sequence[int], size: int = 7, static: bool = False
) -> Tensor:
    """The features of regions of a batch, [B, P, C, size, size].

    Args:
        maps: [B, C, H, W] from fine to coarse, one for each of `strides`.
        regions: [B, P, 4] xyxy in pixels; each is pooled from the map that fits its area, with torchvision's first
            convention (`aligned=False`).
        strides: each twice the one before; a second map of the last stride is never read.
        size: rows and columns of the grid.
        static: the form that is exported.
    """
    num_levels = strides[-1].bit_length() - strides[0].bit_length() + 1
    assert list(strides[:num_levels]) == [strides[0] * 2 ** level for level in range(num_levels)], strides
    is_small = num_levels == 1 and maps[0].shape[2] * maps[0].shape[3] <= _SMALL_MAP
    pool = _by_matrix_products if is_small or static else _by_kernel
    return pool(maps, regions, strides=strides[:num_levels], size=size)


def _levels(regions: Tensor, strides: Sequence[int]) -> Tensor:
    """Which of the maps each region is pooled from, int64 without the last dimension; torchvision's LevelMapper."""
    finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    side = ((regions[..., 2] - regions[..., 0]) * (regions[..., 3] - regions[..., 1])).sqrt()
    level = (_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE) + 1e-6).floor()
    return level.clamp(float(finest), float(coarsest)).long() - finest


def _by_kernel(maps: Sequence[Tensor], regions: Tensor, *, strides: Sequence[int], size: int) -> Tensor:
    """torchvision's kernel on the regions of each level."""
    num_images, num_regions = regions.shape[:2]
    image = torch.arange(num_images, device=regions.device).repeat_interleave(num_regions)
    rows = torch.cat((image[:, None].to(regions.dtype), regions.flatten(0, 1)), 1)
    levels = _levels(rows[:, 1:], strides)
    pooled = rows.new_zeros(len(rows), maps[0].shape[1], size, size)
    for level, stride in enumerate(strides):
        here = slice(None) if len(strides) == 1 else (levels == level).nonzero()[:, 0]
        pooled[here] = torchvision.ops.roi_align(
            maps[level], rows[here], size, spatial_scale=1 / stride, sampling_ratio=SAMPLES)
    return pooled.view(num_images, num_regions, -1, size, size)


def _by_matrix_products(maps: Sequence[Tensor], regions: Tensor, *, strides: Sequence[int], size: int) -> Tensor:
    """Every region from every level, of which all but its own count for nothing; no shape depends on a value."""
    levels, pooled = _levels(regions, strides), []
    num_images, num_regions = regions.shape[:2]
    for level, stride in enumerate(strides):
        height, width = maps[level].shape[2:]
        rows = _weights(regions[..., 1] / stride, regions[..., 3] / stride, cells=height, size=size)
        columns = _weights(regions[..., 0] / stride, regions[..., 2] / stride, cells=width, size=size)
        here = (levels == level).to(rows.dtype)[..., None, None]
        channels_last = maps[level].permute(0, 2, 3, 1)
        partly = torch.matmul((rows * here).flatten(1, 2), channels_last.flatten(2))
        partly = partly.reshape(num_images, num_regions, size, width, -1)
        pooled.append(torch.matmul(columns[:, :, None], partly))
    total = pooled[0]
    for features in pooled[1:]:  # added up one by one: stacked, they would have a rank that Core ML does not take
        total = total + features
    return total.permute(0, 1, 4, 2, 3)


def _weights(start: Tensor, end: Tensor, *, cells: int, size: int) -> Tensor:
    """How much each of a map's `cells` counts for each of `size` grid cells between `start` and `end` [B, P], measured
    in cells of the map: [B, P, size, cells]."""
    length = (end - start).clamp(min=1.0)
    offsets = (torch.arange(size * SAMPLES, dtype=start.dtype, device=start.device) + 0.5) / (size * SAMPLES)
    points = start[..., None] + length[..., None] * offsets
    inside = ((points >= -1.0) & (points <= float(cells))).to(start.dtype)
    distance = points.clamp(0.0, float(cells - 1))[..., None] - torch.arange(
        cells, dtype=start.dtype, device=start.device)
    weights = (1.0 - distance.abs()).clamp(min=0.0) * inside[..., None]
    return weights.reshape(*start.shape, size, SAMPLES, cells).mean(3)
