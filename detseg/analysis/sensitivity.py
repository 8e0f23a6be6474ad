"""What finding an object depends on: its size, its place, whether the image's edge cuts it, how bright the image is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.analysis.tide import Matches, Scored, class_ap, scored
from detseg.data.box_index import BoxIndex
from detseg.metrics.numbers import mean_existing, ratio

_SIZES = (0.04, 0.08, 0.16, 0.32)
"""Borders of the groups by size: the root of a box's share of the image."""
_EDGE = 1.0
"""Pixels; an object that comes closer to the image's edge may be cut by it."""
_LEAST_IMAGES = 8
"""With fewer there are no quarters by brightness."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Objects that are alike in a property."""

    name: str
    objects: int
    found: int
    """Of them, with every class shown from its best threshold on."""
    recall: float
    ap50: float
    """Of these objects, and of the detections that find one of them or are alike and find none."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All objects by one property."""

    name: str
    groups: tuple[Group, ...]


class _Property(NamedTuple):
    name: str
    groups: tuple[str, ...]
    of_objects: NDArray[np.int64]
    """[m]: the group of each annotation."""
    of_detections: NDArray[np.int64]
    """[d]."""


def sensitivities(matches: Matches, shown: Matches, brightness: Mapping[int, float]) -> tuple[Sensitivity, ...]:
    """By size, position, truncation and, where it is known, brightness.

    Args:
        matches: all detections.
        shown: those of at least the threshold of their class.
        brightness: of images by their id, 0 to 1; empty where it is not known.
    """
    index = matches.index
    return tuple(
        Sensitivity(name=one.name, groups=tuple(
            _group(one, k, matches, shown) for k in range(len(one.groups))))
        for one in _properties(matches, index, brightness))


def _properties(matches: Matches, index: BoxIndex, brightness: Mapping[int, float]) -> list[_Property]:
    image_of_box = index.image_of_box()
    sizes = index.sizes[:, ::-1].astype(np.float64)  # width, height
    objects = (index.corners(), sizes[image_of_box])
    detections = (matches.boxes, sizes[matches.image])
    names = tuple(f"{low:.0%} to {high:.0%} of the image's side" for low, high in pairwise(_SIZES))
    found = [
        _Property("size", (f"under {_SIZES[0]:.0%} of the image's side", *names, f"over {_SIZES[-1]:.0%}"),
                  _by_size(*objects), _by_size(*detections)),
        _Property("position", tuple(f"{row} {column}".replace("middle middle", "middle")
                                    for row in ("upper", "middle", "lower") for column in ("left", "middle", "right")),
                  _by_position(*objects), _by_position(*detections)),
        _Property("truncation", ("inside the image", "at its edge"), _at_edge(*objects), _at_edge(*detections)),
    ]
    if len(brightness) >= _LEAST_IMAGES and brightness.keys() >= set(index.image_ids.tolist()):
        values = np.array([brightness[image_id] for image_id in index.image_ids.tolist()])
        borders = np.quantile(values, (0.25, 0.5, 0.75))
        of_image = np.searchsorted(borders, values, side="left")
        bounds = [values.min(), *borders, values.max()]
        names = tuple(f"{name} quarter ({low:.2f} to {high:.2f})" for name, low, high in zip(
            ("darkest", "second", "third", "brightest"), bounds[:-1], bounds[1:], strict=True))
        found.append(_Property("brightness of the image", names, of_image[image_of_box], of_image[matches.image]))
    return found


def _group(of: _Property, k: int, matches: Matches, shown: Matches) -> Group:
    mine = of.of_objects == k
    number = matches.num_objects(mine)
    now = scored(matches)
    kept = ~matches.ignored
    # An error belongs where it stands, what is found where the object is.
    alike, hits = of.of_detections == k, matches.found >= 0
    alike[hits] = mine[matches.found[hits]]
    alike = alike[kept]
    aps = class_ap(Scored(now.scores[alike], now.labels[alike], now.right[alike], number), number > 0)
    objects, found = int(number.sum()), int((mine & (shown.found_by >= 0)).sum())
    return Group(name=of.groups[k], objects=objects, found=found, recall=ratio(found, objects),
                 ap50=mean_existing(aps) if objects else math.nan)


def _by_size(boxes_xyxy: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(1)
    shares: NDArray[np.float64] = np.sqrt(area / sizes.prod(1))
    return np.searchsorted(np.array(_SIZES), shares, side="right")


def _by_position(boxes_xyxy: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    cells = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 / sizes * 3).clip(0, 2).astype(np.int64)
    places: NDArray[np.int64] = cells @ np.array((1, 3))
    return places


def _at_edge(boxes_xyxy: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    cut = (boxes_xyxy[:, :2] <= _EDGE).any(1) | (boxes_xyxy[:, 2:] >= sizes - _EDGE).any(1)
    return np.asarray(cut, np.int64)
