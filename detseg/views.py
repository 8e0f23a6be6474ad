"""Several views of an image for one prediction: mirrored, larger and smaller (test-time augmentation), and in tiles.

`with_views` makes a network of a network. It takes images as they are and makes the views itself, each by the inner
network's own resize, so that evaluation, the commands and Python predict with it as with any other. The inner network's
input never changes its size: seen larger, an image is in tiles, and seen smaller, it has a margin. Detectors need that,
whose anchors grow with the input, and exported files take nothing else.

Of a detector, the boxes of all views go through the task's suppression once more. A box of a tile that comes close to a
border at which the tile ends and the image does not may be a part of an object. A neighbour has the object whole if it
is no larger than the overlap; then the part is left out. Parts of larger ones that agree where both tiles look become
one box. An image in tiles is also predicted as a whole, of which boxes are taken that are larger than the overlap.

Of a segmenter, the probabilities of all views are averaged at each pixel of the image, and tiles fade into each other
over their overlap. Views are worked off from the top down: memory grows with an image's width, not with its height.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.interfaces import Task
from detseg.ops.resample import enlarge
from detseg.ops.stitching import Boxes, covered, stitch
from detseg.predict import Network, network_input, predict_image
from detseg.resize import RGB, AsItIs, Placement, Resize
from detseg.structures import Classes, DenseBoxes, Detections, ImageDetections, LabelMaps, Pixels, Size
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation

_CLOSE = 1 / 8
"""Of the overlap: a box that comes nearer to the end of its tile may be a part. No detector is exact to the pixel."""
_SCALES = (0.25, 4.0)
"""The smallest and the largest of test-time augmentation."""
_SMALLEST_TILE = 32
OVERLAP = 0.2
"""Of tiles, unless another is asked for."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Which views of an image are predicted.

    Args:
        flip: each view mirrored too.
        scales: how many times as large an image is seen, beside 1.
        tile: of so many pixels of the image; None sees it as a whole.
        overlap: of neighbouring tiles, at least, as a share of their sides.
    """

    flip: bool = False
    scales: tuple[float, ...] = ()
    tile: Size | None = None
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not _SCALES[0] <= scale <= _SCALES[1]:
                raise ValueError(f"a scale of test-time augmentation lies between {_SCALES[0]:g} and {_SCALES[1]:g}, "
                                 f"got {scale:g}")
        if self.tile is not None and min(self.tile) < _SMALLEST_TILE:
            raise ValueError(f"a tile's sides have at least {_SMALLEST_TILE} pixels, got {self.tile[0]} x "
                             f"{self.tile[1]}")
        if not 0 < self.overlap <= 0.5:
            raise ValueError(f"tiles overlap by more than 0 and up to 0.5 of their side, got {self.overlap:g}")

    def __str__(self) -> str:
        """For people."""
        words = [*(["flip"] if self.flip else []), *(f"{scale:g}" for scale in self.all_scales[1:])]
        return ", ".join([*([f"TTA ({' '.join(words)})"] if words else []),
                          *([f"tiles of {self.tile[0]} x {self.tile[1]}"] if self.tile is not None else [])])

    @property
    def all_scales(self) -> tuple[float, ...]:
        """The network's own, 1, first; each once."""
        return tuple(dict.fromkeys((1.0, *self.scales)))


def parse_tta(words: Sequence[str]) -> tuple[bool, tuple[float, ...]]:
    """Whether "flip" is among the words of a command line, and the scales that the others are. ValueError for others.
    """
    scales = list[float]()
    for word in words:
        try:
            scales += [] if word == "flip" else [float(word)]
        except ValueError:
            raise ValueError(f"--tta takes flip and scales such as 0.75, got {word!r}; put files and folders before it"
                             ) from None
    return "flip" in words, tuple(scales)


def parse_tile(text: str) -> Size:
    """The size of a tile that a command line's "640" or "480x640" (height x width) means. ValueError for others."""
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError(f"--tiles takes a number of pixels, or height and width as 480x640, got {text!r}")
    return int(sides[0]), int(sides[-1])


def with_views(network: Network, task: Task[Any, Any, Any, Any], views: Views) -> MultiView:
    """A network that predicts images from several views, ready for inference. ValueError where it is a file without the
    probabilities that are averaged, and for a task whose predictions nobody knows how to merge."""
    if _merged.dispatch(type(task)) is _merged.dispatch(object):
        raise ValueError(f"predictions of {type(task).__name__} are not merged; leave out test-time augmentation and "
                         "tiles")
    ready = network.ready()
    if task.label_maps:  # a file that ends with label maps refuses here, and not at the first large image
        with torch.inference_mode():
            ready.decode(torch.zeros(1, 3, *ready.resize.size, device=ready.device))
    return MultiView(ready, views)


class MultiView:
    """Predicts images as they are, one by one, from several views; `with_views` makes it."""

    def __init__(self, network: Network, views: Views) -> None:
        self.network, self.views = network, views

    @property
    def classes(self) -> Classes:
        """What it predicts."""
        return self.network.classes

    @property
    def resize(self) -> Resize:
        """None: views are cut out of the original image."""
        return AsItIs(self.network.resize.size, self.network.resize.fill)

    @property
    def device(self) -> torch.device:
        """Where images are to be brought: views are made on the CPU."""
        return torch.device("cpu")

    @property
    def form(self) -> str:
        """What it is, for people."""
        return f"{self.network.form}, {self.views}"

    def ready(self) -> Self:
        """It is."""
        return self

    def decode(self, images: Tensor, *, static: bool = False) -> Any:
        """Views have no dense predictions in common."""
        raise ValueError("predictions of several views have been merged; dense ones are those of a single view")

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], *, static: bool = False) -> Any:
        """float [1, 3, H, W] RGB, 0..255, an original image, to final predictions in its pixels."""
        assert len(images) == 1, "images come one by one"
        image: Pixels = np.ascontiguousarray(images[0].permute(1, 2, 0).round().to(torch.uint8).numpy())
        return _merged(task, self, image, static=static)


@dataclass(frozen=True)
class _Grid:
    """Tiles over an image, all of one size and evenly spread; a single one may be larger than the image."""

    size: Size
    tile: Size
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def overlap(self) -> tuple[float, float]:
        """Pixels that neighbours have in common, at least, down and across; without end where there is one tile."""
        down, across = (min((side + first - second for first, second in pairwise(starts)), default=math.inf)
                        for starts, side in zip((self.rows, self.columns), self.tile, strict=True))
        return down, across

    def cut(self, image: Pixels, top: int, left: int, fill: RGB) -> Pixels:
        """The tile at (top, left), with a margin below and to the right where it is larger than the image."""
        height, width = self.tile
        part = image[top : top + height, left : left + width]
        if part.shape[:2] == self.tile:
            return np.ascontiguousarray(part)
        tile = np.full((height, width, 3), fill, dtype=np.uint8)
        tile[: part.shape[0], : part.shape[1]] = part
        return tile


def _grids(size: Size, views: Views) -> list[_Grid]:
    """A grid for each scale."""
    base = size if views.tile is None else (min(views.tile[0], size[0]), min(views.tile[1], size[1]))
    grids = []
    for scale in views.all_scales:
        height, width = (max(1, round(side / scale)) for side in base)
        grids.append(_Grid(size, (height, width), _starts(size[0], height, views.overlap),
                           _starts(size[1], width, views.overlap)))
    return grids


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    """Where tiles begin along an axis."""
    if length <= side:
        return (0,)
    step = max(1, side - math.ceil(side * overlap))
    number = math.ceil((length - side) / step)
    return tuple(i * (length - side) // number for i in range(number + 1))


def _sides(image: Pixels, views: Views) -> list[tuple[bool, Pixels]]:
    """The image, and the mirrored one where that is asked for, with whether it is mirrored."""
    return [(False, image), *([(True, np.ascontiguousarray(image[:, ::-1]))] if views.flip else [])]


@singledispatch
def _merged(task: Task[Any, Any, Any, Any], network: MultiView, image: Pixels, *, static: bool) -> Any:
    """Final predictions of one image, from all views of it, in its pixels."""
    raise AssertionError(f"with_views refuses {type(task).__name__}")


@_merged.register
def _(task: Detection, network: MultiView, image: Pixels, *, static: bool) -> Detections:
    size = (image.shape[0], image.shape[1])
    grids = _grids(size, network.views)
    fill, found = network.network.resize.fill, list[Boxes]()
    for mirrored, pixels in _sides(image, network.views):
        here, parts = list[Boxes](), list[Boxes]()
        for grid in grids:
            whole, others = _of_tiles(grid, [
                (top, left, predict_image(network.network, task, grid.cut(pixels, top, left, fill), static=static))
                for top in grid.rows for left in grid.columns])
            here.append(whole)
            parts.append(others)
        if all(len(grid) > 1 for grid in grids):
            large = _large(predict_image(network.network, task, pixels, static=static), min(grids, key=len))
            here += [large, *(part.at(~covered(part, large)) for part in parts)]
        found += [_mirrored(one, size[1]) if mirrored else one for one in here]
    boxes, scores, labels = Boxes.joined(*found)
    if len(found) == 1:
        return Detections(boxes[None], scores[None], labels[None], torch.tensor([len(scores)]))
    scores_NK = scores.new_zeros(len(scores), len(network.classes))
    scores_NK[torch.arange(len(scores)), labels] = scores
    # What is kept of an image is what is kept of a tile, for each of them. Merging is no part of what is exported.
    tiles = min(map(len, grids))
    roomy = replace(task, per_class=max(1, len(scores)), max_detections=tiles * task.max_detections,
                    candidates=max(tiles * task.max_detections, task.candidates))
    return roomy.postprocess(DenseBoxes(boxes[None], scores_NK[None]))


def _of_tiles(grid: _Grid, found: Sequence[tuple[int, int, ImageDetections]]) -> tuple[Boxes, Boxes]:
    """What the tiles at (top, left) show, in the image's pixels: whole objects, those that several tiles have in parts
    among them; and parts of which no other tile shows more."""
    whole, parts, tiles = list[Boxes](), list[Boxes](), list[Tensor]()
    down, across = (_CLOSE * overlap for overlap in grid.overlap)
    for top, left, (_, boxes, scores, labels) in found:
        x0, y0, x1, y1 = boxes.unbind(1)
        cut = torch.zeros(len(boxes), dtype=torch.bool)
        if top > 0:
            cut |= y0 < down
        if left > 0:
            cut |= x0 < across
        if (bottom := top + grid.tile[0]) < grid.size[0]:
            cut |= y1 > grid.tile[0] - down
        if (right := left + grid.tile[1]) < grid.size[1]:
            cut |= x1 > grid.tile[1] - across
        limits = boxes.new_tensor((grid.size[1], grid.size[0]) * 2)
        here = Boxes(torch.minimum(boxes + boxes.new_tensor((left, top, left, top)), limits), scores, labels)
        whole.append(here.at(~cut))
        parts.append(here.at(cut))
        tiles.append(boxes.new_tensor((left, top, right, bottom)).expand(int(cut.sum()), 4))
    uncut, others = Boxes.joined(*whole), Boxes.joined(*parts)
    left_over = ~covered(others, uncut)
    stitched, single = stitch(others.at(left_over), torch.cat(tiles)[left_over])
    return Boxes.joined(uncut, stitched), single


def _large(found: ImageDetections, grid: _Grid) -> Boxes:
    """Of what the whole image shows, the boxes that no tile may have whole."""
    down, across = ((1 - _CLOSE) * overlap for overlap in grid.overlap)
    x0, y0, x1, y1 = found.boxes.unbind(1)
    return Boxes(found.boxes, found.scores, found.labels).at((y1 - y0 > down) | (x1 - x0 > across))


def _mirrored(found: Boxes, width: int) -> Boxes:
    left, top, right, bottom = found.boxes.unbind(1)
    return found._replace(boxes=torch.stack((width - right, top, width - left, bottom), dim=1))


@_merged.register
def _(task: Segmentation, network: MultiView, image: Pixels, *, static: bool) -> LabelMaps:
    size, inner = (image.shape[0], image.shape[1]), network.network
    grids = _grids(size, network.views)
    sides = _sides(image, network.views)
    if len(sides) == len(grids) == len(grids[0]) == 1:
        return LabelMaps(torch.from_numpy(predict_image(inner, task, image, static=static).labels)[None])
    labels, done = torch.empty(size, dtype=torch.uint8), 0
    sums_KHW = torch.zeros(len(network.classes), min(size[0], max(grid.tile[0] for grid in grids)), size[1])
    """Of probabilities, from row `done` of the image."""

    def finish(end: int) -> None:
        """No view to come reaches above row `end`."""
        nonlocal done
        labels[done:end] = sums_KHW[:, : end - done].argmax(0).to(torch.uint8)
        rest = sums_KHW[:, end - done :].clone()
        sums_KHW.zero_()
        sums_KHW[:, : rest.shape[1]] = rest
        done = end

    weighted = [(grid, _weights(grid.rows, grid.tile[0], size[0], grid.overlap[0]),
                 _weights(grid.columns, grid.tile[1], size[1], grid.overlap[1])) for grid in grids]
    rows = sorted(((top, n, row) for n, grid in enumerate(grids) for row, top in enumerate(grid.rows)))
    for top, n, row in rows:
        grid, down, across = weighted[n]
        finish(top)
        for mirrored, pixels in sides:
            for column, left in enumerate(grid.columns):
                height, width = min(grid.tile[0], size[0]), min(grid.tile[1], size[1])
                tile, source = network_input(inner.resize, grid.cut(pixels, top, left, inner.resize.fill))
                dense = inner.decode(tile.to(inner.device), static=static)
                shares = _at_original(enlarge(dense).softmax(1), source.placement, (height, width))[0].cpu()
                shares *= down[row, top : top + height, None] * across[column, left : left + width]
                if mirrored:
                    left, shares = size[1] - left - width, shares.flip(-1)
                sums_KHW[:, top - done : top - done + height, left : left + width] += shares
    finish(size[0])
    return LabelMaps(labels[None])


def _weights(starts: Sequence[int], side: int, length: int, overlap: float) -> Tensor:
    """[T, length]: the share of each tile in the pixels along an axis, falling over the overlap; they add up to 1."""
    place = torch.arange(length) + 0.5
    weights = torch.stack([
        torch.minimum((place - start) / overlap if start > 0 else torch.ones(length),
                      (start + side - place) / overlap if start + side < length else torch.ones(length))
        for start in starts]).clamp(0, 1)
    return weights / weights.sum(0)


def _at_original(values_BKHW: Tensor, placement: Placement, size: Size) -> Tensor:
    """Values of the network's pixels at those of an original image of `size`, bilinear."""
    height, width = values_BKHW.shape[2:]
    device = values_BKHW.device
    y = ((torch.arange(size[0], device=device) + 0.5) * placement.scale_y + placement.offset_y) * (2 / height) - 1
    x = ((torch.arange(size[1], device=device) + 0.5) * placement.scale_x + placement.offset_x) * (2 / width) - 1
    grid = torch.stack((x.expand(size[0], -1), y[:, None].expand(-1, size[1])), dim=-1)[None]
    return F.grid_sample(values_BKHW, grid, mode="bilinear", padding_mode="border", align_corners=False)
