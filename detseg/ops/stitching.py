"""Boxes of tiles to boxes of the image: what one tile shows whole goes before what others show of it, and the parts of
an object that no tile has whole become one box."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detseg.ops.boxes import coverage, iou

_SAME = 0.5
"""The share of a part inside a box, or the overlap of two parts where both tiles look, from which on they are of one
object."""
_WEAKER = 0.5
"""A box of less than this share of a part's score says nothing about it."""
_MOST_PARTS = 1000
"""The surest are stitched; every pair is compared."""


class Boxes(NamedTuple):
    """Boxes with classes, in any order."""

    boxes: Tensor
    """float [R, 4]."""
    scores: Tensor
    """float [R]."""
    labels: Tensor
    """int64 [R]."""

    def at(self, rows: Tensor) -> Boxes:
        """Some of them."""
        return Boxes(self.boxes[rows], self.scores[rows], self.labels[rows])

    @staticmethod
    def joined(*parts: Boxes) -> Boxes:
        """All of several, of which there is one."""
        boxes, scores, labels = (torch.cat(values) for values in zip(*parts, strict=True))
        return Boxes(boxes, scores, labels)


def covered(parts: Boxes, whole: Boxes) -> Tensor:
    """Which parts show what a box of their class shows whole, bool [R]."""
    same = parts.labels[:, None] == whole.labels
    sure = whole.scores >= _WEAKER * parts.scores[:, None]
    return ((coverage(parts.boxes, whole.boxes) >= _SAME) & same & sure).any(1)


def stitch(parts: Boxes, tiles: Tensor) -> tuple[Boxes, Boxes]:
    """Boxes of the parts that belong together, each with its best score; and the parts that belong to none.

    The surest part goes first, and takes of each other tile the surest that agrees with it where both tiles look; these
    look for others in turn.

    Args:
        parts: boxes that touch the end of a tile.
        tiles: float [R, 4], the tile of each.
    """
    order = parts.scores.argsort(descending=True, stable=True)[:_MOST_PARTS]
    parts, tiles = parts.at(order), tiles[order]
    common = _common(tiles[:, None], tiles[None])
    mine, theirs = _common(parts.boxes[:, None], common), _common(parts.boxes[None], common)
    seen = ((mine[..., 2:] > mine[..., :2]) & (theirs[..., 2:] > theirs[..., :2])).all(-1)
    agree = iou(mine[:, :, None], theirs[:, :, None])[..., 0, 0] >= _SAME
    together = seen & agree & (parts.labels[:, None] == parts.labels) & (tiles[:, None] != tiles[None]).any(-1)
    free = torch.ones(len(order), dtype=torch.bool)
    boxes, first, single = list[Tensor](), list[int](), list[int]()
    for row in range(len(order)):
        if not free[row]:
            continue
        group, places = [row], {tuple(tiles[row].tolist())}
        for member in group:  # it grows on the way
            for other in (together[member] & free).nonzero().flatten().tolist():
                if (place := tuple(tiles[other].tolist())) not in places:
                    places.add(place)
                    group.append(other)
        free[group] = False
        if len(group) == 1:
            single.append(row)
            continue
        first.append(row)
        boxes.append(torch.cat((parts.boxes[group, :2].amin(0), parts.boxes[group, 2:].amax(0))))
    stitched = parts.at(torch.tensor(first, dtype=torch.long))
    if boxes:
        stitched = stitched._replace(boxes=torch.stack(boxes))
    return stitched, parts.at(torch.tensor(single, dtype=torch.long))


def _common(boxes: Tensor, others: Tensor) -> Tensor:
    """What two boxes have in common, pair by pair; inside out where that is nothing."""
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    return torch.cat((low, high), -1)
