"""Data as a network sees them: at its size, and against its anchors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.box_index import BoxIndex
from detseg.resize import Resize, Stretch

MET = 0.5
"""IoU from which an anchor learns an object."""
_MOST_BOXES = 50_000
"""Boxes that are compared with anchors; of more, evenly chosen ones."""
_CHUNK = 256


class NetworkView(NamedTuple):
    """What a network makes of images."""

    title: str
    """For the report: "320 x 320, as ssdlite_v3_large.py has it"."""
    resize: Resize
    anchors: NDArray[np.float32] | None = None
    """[N, 4] xyxy in the pixels of an image of `resize.size`; None of one without anchors."""


def usual_view(_index: BoxIndex | None) -> NetworkView:
    """Where no config is named, whatever the boxes."""
    return NetworkView("320 x 320, the usual size", Stretch((320, 320)))


def at_network_size(index: BoxIndex, view: NetworkView) -> NDArray[np.float64]:
    """[m, 4]: the boxes xyxy in the network's pixels, clipped to their images first."""
    image_of_box = index.image_of_box()
    limits = np.tile(index.sizes[image_of_box][:, ::-1], 2)
    corners = np.clip(index.corners(), 0, limits)
    sizes, inverse = np.unique(index.sizes, axis=0, return_inverse=True)
    placements = [view.resize.place((int(height), int(width))) for height, width in sizes]
    columns = np.array([(p.scale_x, p.scale_y, p.offset_x, p.offset_y) for p in placements]).reshape(-1, 4)
    chosen = columns[inverse.reshape(-1)[image_of_box]]
    placed: NDArray[np.float64] = corners * np.tile(chosen[:, :2], 2) + np.tile(chosen[:, 2:], 2)
    return placed


class AnchorFit(NamedTuple):
    """How well anchors meet boxes."""

    rows: NDArray[np.int64]
    """[r]: the annotations that were compared."""
    best_iou: NDArray[np.float64]
    """[r]: of each with the anchor that meets it best."""


def anchor_fit(boxes_xyxy: NDArray[np.float64], usable: NDArray[np.bool_], view: NetworkView) -> AnchorFit:
    """Compares boxes in the network's pixels, [m, 4], with its anchors where they lie; for a network of many image
    sizes by their shapes alone, which every cell has."""
    assert view.anchors is not None
    rows = np.flatnonzero(usable)
    if len(rows) > _MOST_BOXES:
        rows = rows[np.linspace(0, len(rows) - 1, _MOST_BOXES).astype(np.int64)]
    anchors, boxes = view.anchors.astype(np.float32), boxes_xyxy[rows].astype(np.float32)
    if not view.resize.fixed:
        anchors = np.unique(_centred(anchors).round(2), axis=0)
        boxes = _centred(boxes)
    areas = np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)
    best = np.zeros(len(rows))
    for start in range(0, len(rows), _CHUNK):
        some = boxes[start : start + _CHUNK, None]
        shared = np.prod((np.minimum(some[..., 2:], anchors[:, 2:]) - np.maximum(some[..., :2], anchors[:, :2])
                          ).clip(0), axis=2)
        own = np.prod(some[..., 2:] - some[..., :2], axis=2)
        best[start : start + _CHUNK] = (shared / np.maximum(own + areas - shared, 1e-9)).max(axis=1)
    return AnchorFit(rows, best)


def _centred(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2
    return np.concatenate([-half, half], axis=1)
