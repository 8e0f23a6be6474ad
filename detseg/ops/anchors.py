"""Anchor boxes: where a detector looks before it has seen anything; and what it says there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from detseg.structures import Size


class AnchorRaw(NamedTuple):
    """What predictors say at every anchor: the raw output of a detector of one stage, map by map."""

    deltas: tuple[Tensor, ...]
    """Each [B, A * 4, H, W], encoded with the head's box weights."""
    logits: tuple[Tensor, ...]
    """Each [B, A * outputs, H, W]."""

    def rows(self, num_outputs: int) -> tuple[Tensor, Tensor]:
        """Logits [B, N, outputs] and deltas [B, N, 4], float32, in the order of the anchors."""
        return to_rows(self.logits, columns=num_outputs).float(), to_rows(self.deltas, columns=4).float()


def predict_maps(
    maps: Sequence[Tensor], *, locate: Iterable[nn.Module], classify: Iterable[nn.Module]
) -> AnchorRaw:
    """Each map through its two predictors."""
    return AnchorRaw(
        deltas=tuple(predict(x) for predict, x in zip(locate, maps, strict=True)),
        logits=tuple(predict(x) for predict, x in zip(classify, maps, strict=True)))


def to_rows(maps: Sequence[Tensor], *, columns: int) -> Tensor:
    """Outputs [B, A * columns, H, W] of each map to rows in the order of the anchors: [B, N, columns]."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns) for x in maps], 1)


class Anchors(Protocol):
    """Anchors of an image by the sizes of its maps."""

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        """All anchors of an image of `size`, float32 [N, 4] xyxy in pixels: by map, row, column, shape."""


class CachedAnchors:
    """Anchors, computed once for the same maps, image size and device.

    Args:
        anchors: how they are computed.
        stride: of the first map, where anchors lie on what the maps span, which may reach beyond the image.
    """

    def __init__(self, anchors: Anchors, *, stride: int | None = None) -> None:
        self.anchors, self.stride = anchors, stride
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, maps: Sequence[Tensor], size: Size, *, static: bool = False) -> Tensor:
        """float32 [N, 4] for the maps [B, C, H, W] of images of `size`, on their device; `static` computes them anew,
        for a program that is being recorded."""
        map_sizes, device = [(x.shape[2], x.shape[3]) for x in maps], maps[0].device
        if self.stride is not None:
            size = (map_sizes[0][0] * self.stride, map_sizes[0][1] * self.stride)
        if static:
            return self.anchors(map_sizes, size, device=device)
        key = (*map_sizes, size, device)
        if key not in self._kept:
            if len(self._kept) >= _MOST_SIZES:  # images of any size; the oldest go
                del self._kept[next(iter(self._kept))]
            with torch.inference_mode(mode=False):  # what is kept in evaluation has to serve training too
                self._kept[key] = self.anchors(map_sizes, size, device=device)
        return self._kept[key]

    def __deepcopy__(self, memo: object) -> CachedAnchors:
        return CachedAnchors(self.anchors, stride=self.stride)


_MOST_SIZES = 16


class CellAnchors(ABC):
    """SSD's kind of anchors: every cell of a map has boxes of the same shapes around its middle."""

    num_maps: int
    spacing: tuple[float, ...] | None = None

    @abstractmethod
    def relative_sizes(self, size: Size = (1, 1)) -> list[list[tuple[float, float]]]:
        """(width, height) of a cell's anchors as fractions of an image of `size`, by map."""

    @property
    def num_per_cell(self) -> tuple[int, ...]:
        """How many anchors a cell of each map has."""
        return tuple(len(sizes) for sizes in self.relative_sizes())

    def check_maps(self, num_taps: int, num_extra: int) -> None:
        """Refuses another number of maps, taken from the backbone and made by the head, with ValueError."""
        if num_taps + num_extra != self.num_maps:
            raise ValueError(
                f"{num_taps} taps and {num_extra} extra maps make {num_taps + num_extra}, but the anchors are for "
                f"{self.num_maps}: give as many extra_channels or set num_maps")

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        """All anchors of an image of `size`, float32 [N, 4] xyxy in pixels: by map, row, column, shape."""
        if len(map_sizes) != self.num_maps:
            raise ValueError(f"anchors for {self.num_maps} maps were asked for {len(map_sizes)}")
        height, width = size
        whole = torch.tensor((width, height), dtype=torch.float32, device=device)
        maps = []
        spacing = self.spacing or (1.0,) * self.num_maps
        for (rows, columns), sizes, apart in zip(map_sizes, self.relative_sizes(size), spacing, strict=True):
            y = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) / rows * apart
            x = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) / columns * apart
            centres = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), -1)[:, :, None]
            half = torch.tensor(sizes, dtype=torch.float32, device=device) / 2
            corners = torch.cat((centres - half, centres + half), -1)
            maps.append((corners.reshape(-1, 2, 2) * whole).reshape(-1, 4))
        return torch.cat(maps)


@dataclass(frozen=True)
class SSDAnchors(CellAnchors):
    """SSD's default boxes (Liu et al. 2016, section 2.2), sizes as fractions of the image.

    Each cell of map k has, at scale s_k: a square, a square at sqrt(s_k s_k+1), and both orientations of each of
    `ratios`. Scales run evenly from `min_scale` to `max_scale`; after the last comes 1.

    three_on_first: the papers' networks give the first map only a square at half its scale and the two boxes of ratio
    2 (TensorFlow's reduce_boxes_in_lowest_layer): 2,034 boxes at 320 x 320; torchvision gives all maps six: 3,234.
    clip_sizes: whether no side may exceed the image, as in torchvision. scales: one for each map instead of the even
    ones, for objects of known sizes. spacing: one for each map where the distance of its cells is not the image's side
    divided by their number, but so many times that (OpenMMLab's strides are whole pixels).
    """

    num_maps: int = 6
    min_scale: float = 0.2
    max_scale: float = 0.95
    ratios: tuple[float, ...] = (2.0, 3.0)
    three_on_first: bool = False
    clip_sizes: bool = True
    scales: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_scales(self.num_maps, self.min_scale, self.max_scale)
        for name, given in (("scales", self.scales), ("spacing", self.spacing)):
            if given is not None and (len(given) != self.num_maps or min(given) <= 0):
                raise ValueError(f"{name} needs a positive number for each of the {self.num_maps} maps, got {given}")

    def relative_sizes(self, size: Size = (1, 1)) -> list[list[tuple[float, float]]]:
        """(width, height) of a cell's anchors as fractions of an image of any size, by map."""
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


@dataclass(frozen=True)
class TensorFlowAnchors(CellAnchors):
    """SSD's default boxes as TensorFlow's object detection API makes them (ssd_anchor_generator): the order and the
    numbers that its weights were trained with.

    Each cell of map k has a box of each of `ratios`, width to height, at scale s_k, and behind them a square at
    sqrt(s_k s_k+1). Scales run evenly from `min_scale` to `max_scale`; after the last comes 1. They are fractions of
    the image's shorter side, so that squares are squares. Its published configs write 0.3333 for 1/3.

    reduced: the first map has only a square of 0.1, and ratios 2 and 1/2 (reduce_boxes_in_lowest_layer): 1,917 boxes at
    300 x 300.
    """

    num_maps: int = 6
    min_scale: float = 0.2
    max_scale: float = 0.95
    ratios: tuple[float, ...] = (1.0, 2.0, 0.5, 3.0, 0.3333)
    reduced: bool = True

    def __post_init__(self) -> None:
        _check_scales(self.num_maps, self.min_scale, self.max_scale)
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"anchors need positive ratios of width to height, got {self.ratios}")

    def relative_sizes(self, size: Size = (1, 1)) -> list[list[tuple[float, float]]]:
        """(width, height) of a cell's anchors as fractions of an image of `size`, by map."""
        step = (self.max_scale - self.min_scale) / (self.num_maps - 1)
        scales = [*(self.min_scale + step * k for k in range(self.num_maps)), 1.0]
        across, down = min(size) / size[1], min(size) / size[0]
        sizes = []
        for k in range(self.num_maps):
            if k == 0 and self.reduced:
                shapes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
            else:
                shapes = [*((scales[k], ratio) for ratio in self.ratios), (math.sqrt(scales[k] * scales[k + 1]), 1.0)]
            sizes.append([(scale * math.sqrt(ratio) * across, scale / math.sqrt(ratio) * down)
                          for scale, ratio in shapes])
        return sizes


@dataclass(frozen=True)
class GridAnchors:
    """The anchors of a feature pyramid: a cell of map k has every one of `sizes[k]` in every one of `ratios`.

    torchvision's AnchorGenerator (Faster R-CNN, RetinaNet) and, with `rounded` off and `centred` on, TensorFlow's
    RetinaNet.

    sizes: square roots of the areas, in pixels. ratios: height / width. rounded: whether the corners around a cell are
    whole pixels. centred: whether anchors sit half a stride inside the image, on the middle of their cell, instead of
    on its upper left corner.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = True
    centred: bool = False

    def __post_init__(self) -> None:
        if not self.sizes or not all(self.sizes) or min(min(sizes) for sizes in self.sizes) <= 0:
            raise ValueError(f"grid anchors need positive sizes for each map, got {self.sizes}")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"grid anchors need positive ratios of height to width, got {self.ratios}")

    @property
    def num_per_cell(self) -> tuple[int, ...]:
        """How many anchors a cell of each map has."""
        return tuple(len(sizes) * len(self.ratios) for sizes in self.sizes)

    def around_cell(self) -> list[list[tuple[float, float, float, float]]]:
        """A cell's anchors xyxy in pixels around the place it stands for, by map: each ratio in all sizes."""
        maps = []
        for sizes in self.sizes:
            halves = [(size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2)
                      for ratio in self.ratios for size in sizes]
            if self.rounded:
                halves = [(float(round(x)), float(round(y))) for x, y in halves]
            maps.append([(-x, -y, x, y) for x, y in halves])
        return maps

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        """All anchors of an image of `size`, float32 [N, 4] xyxy in pixels: by map, row, column, shape.

        A map's stride is what whole pixels of `size` each of its cells gets.
        """
        if len(map_sizes) != len(self.sizes):
            raise ValueError(f"anchors for {len(self.sizes)} maps were asked for {len(map_sizes)}")
        maps = []
        for (rows, columns), shapes in zip(map_sizes, self.around_cell(), strict=True):
            down, right = size[0] // rows, size[1] // columns
            y = torch.arange(rows, dtype=torch.float32, device=device) * down + (down / 2 if self.centred else 0.0)
            x = torch.arange(columns, dtype=torch.float32, device=device) * right + (right / 2 if self.centred else 0.0)
            places = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), -1)
            around = torch.tensor(shapes, dtype=torch.float32, device=device)
            maps.append((places.repeat(1, 1, 2)[:, :, None] + around).reshape(-1, 4))
        return torch.cat(maps)


@dataclass(frozen=True)
class Cells:
    """The cells of maps as boxes, for heads without anchors: where each of their predictions stands.

    strides: how many pixels a cell of each map spans.
    """

    strides: tuple[int, ...]

    def __call__(self, map_sizes: Sequence[Size], size: Size, *, device: torch.device) -> Tensor:
        """All cells of an image of any size, float32 [N, 4] xyxy in pixels: by map, row, column."""
        if len(map_sizes) != len(self.strides):
            raise ValueError(f"cells of {len(self.strides)} maps were asked for {len(map_sizes)}")
        maps = []
        for (rows, columns), stride in zip(map_sizes, self.strides, strict=True):
            y = torch.arange(rows, dtype=torch.float32, device=device) * stride
            x = torch.arange(columns, dtype=torch.float32, device=device) * stride
            corners = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), -1)
            maps.append(torch.cat((corners, corners + stride), -1).reshape(-1, 4))
        return torch.cat(maps)


def _check_scales(num_maps: int, min_scale: float, max_scale: float) -> None:
    """A ValueError where scales cannot run evenly over the maps."""
    if num_maps < 2:
        raise ValueError(f"SSD anchors need at least 2 maps, got {num_maps}")
    if not 0 < min_scale < max_scale:
        raise ValueError(f"anchor scales must satisfy 0 < min < max, got {min_scale} and {max_scale}")
