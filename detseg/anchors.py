"""Anchor boxes: where a detector looks before it has seen anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detseg.interfaces import Size


@dataclass(frozen=True)
class SSDAnchors:
    """SSD's default boxes (Liu et al. 2016, section 2.2), sizes as fractions of the image.

    Each cell of map k has, at scale s_k: a square, a square at sqrt(s_k s_k+1), and both orientations of each of
    `ratios`. Scales run evenly from `min_scale` to `max_scale`; after the last comes 1.

    three_on_first: the papers' networks give the first map only a square at half its scale and the two boxes of ratio
    2 (TensorFlow's reduce_boxes_in_lowest_layer): 2,034 boxes at 320 x 320; torchvision gives all maps six: 3,234.
    clip_sizes: whether no side may exceed the image, as in torchvision. scales: one for each map instead of the even
    ones, for objects of known sizes.
    """

    num_maps: int = 6
    min_scale: float = 0.2
    max_scale: float = 0.95
    ratios: tuple[float, ...] = (2.0, 3.0)
    three_on_first: bool = False
    clip_sizes: bool = True
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_maps < 2:
            raise ValueError(f"SSD anchors need at least 2 maps, got {self.num_maps}")
        if not 0 < self.min_scale < self.max_scale:
            raise ValueError(f"anchor scales must satisfy 0 < min < max, got {self.min_scale} and {self.max_scale}")
        if self.scales is not None and (len(self.scales) != self.num_maps or min(self.scales) <= 0):
            raise ValueError(f"scales needs a positive number for each of the {self.num_maps} maps, got {self.scales}")

    @property
    def num_per_cell(self) -> tuple[int, ...]:
        """How many anchors a cell of each map has."""
        return tuple(len(sizes) for sizes in self.relative_sizes())

    def relative_sizes(self) -> list[list[tuple[float, float]]]:
        """(width, height) of a cell's anchors as fractions of the image, by map."""
        step = (self.max_scale - self.min_scale) / (self.num_maps - 1)
        even = [self.min_scale + step * k for k in range(self.num_maps)]
        scales = [*(self.scales or even), 1.0]
        sizes = []
        for k in range(self.num_maps):
            if k == 0 and self.three_on_first:
                half, ratio = scales[0] / 2, math.sqrt(2.0)
                cell = [(half, half), (scales[0] * ratio, scales[0] / ratio), (scales[0] / ratio, scales[0] * ratio)]
            else:
                between = math.sqrt(scales[k] * scales[k + 1])
                cell = [(scales[k], scales[k]), (between, between)]
                for ratio in self.ratios:
                    root = math.sqrt(ratio)
                    cell += [(scales[k] * root, scales[k] / root), (scales[k] / root, scales[k] * root)]
            sizes.append([(min(w, 1.0), min(h, 1.0)) if self.clip_sizes else (w, h) for w, h in cell])
        return sizes

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        """All anchors of an image of `size`, float32 [N, 4] xyxy in pixels: by map, row, column, shape."""
        if len(map_sizes) != self.num_maps:
            raise ValueError(f"anchors for {self.num_maps} maps were asked for {len(map_sizes)}")
        height, width = size
        whole = torch.tensor((width, height), dtype=torch.float32, device=device)
        maps = []
        for (rows, columns), sizes in zip(map_sizes, self.relative_sizes(), strict=True):
            y = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) / rows
            x = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) / columns
            centres = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), -1)[:, :, None]
            half = torch.tensor(sizes, dtype=torch.float32, device=device) / 2
            corners = torch.cat((centres - half, centres + half), -1)
            maps.append((corners.reshape(-1, 2, 2) * whole).reshape(-1, 4))
        return torch.cat(maps)
