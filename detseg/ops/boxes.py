"""Box arithmetic on tensors with any leading dimensions. Boxes are xyxy in pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detseg.structures import Size

_MAX_LOG_SCALE = math.log(1000 / 16)
"""The largest enlargement a delta may ask for; beyond it exp would overflow (as in torchvision's coder)."""


def area(boxes: Tensor) -> Tensor:
    """[..., 4] to [...] square pixels; inside-out boxes have none."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """[..., N, 4] and [..., M, 4] to the common area of every pair, [..., N, M]."""
    width = (torch.minimum(boxes[..., :, None, 2], others[..., None, :, 2])
             - torch.maximum(boxes[..., :, None, 0], others[..., None, :, 0])).clamp(min=0)
    height = (torch.minimum(boxes[..., :, None, 3], others[..., None, :, 3])
              - torch.maximum(boxes[..., :, None, 1], others[..., None, :, 1])).clamp(min=0)
    return width * height


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair, [..., N, M]; 0 where neither box has an area."""
    common = intersection(boxes, others)
    union = area(boxes)[..., :, None] + area(others)[..., None, :] - common
    return common / union.clamp(min=torch.finfo(common.dtype).tiny)


def coverage(boxes: Tensor, others: Tensor) -> Tensor:
    """The share of each of `boxes` that lies inside each of `others`, [..., N, M] (pycocotools' measure for crowds)."""
    return intersection(boxes, others) / area(boxes)[..., :, None].clamp(min=torch.finfo(boxes.dtype).tiny)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Boxes [..., 4] cut to an image of `size`."""
    height, width = float(size[0]), float(size[1])
    return torch.minimum(boxes.clamp(min=0.0), boxes.new_tensor((width, height, width, height)))


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """What a network must say at `anchors` to mean `boxes` (Girshick et al. 2014, appendix C), [..., 4].

    weights: factors of the deltas of x, y, width and height; SSD uses 10, 10, 5, 5.
    """
    sizes, anchor_sizes = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_sizes
    return torch.cat((shift, (sizes / anchor_sizes).log()), -1) * shift.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """The boxes that `deltas` mean at `anchors`; the inverse of `encode`."""
    anchor_sizes = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + anchor_sizes / 2
    shift_x, shift_y, scale_x, scale_y = weights
    shift = deltas[..., :2] / deltas.new_tensor((shift_x, shift_y))
    scale = (deltas[..., 2:] / deltas.new_tensor((scale_x, scale_y))).clamp(max=_MAX_LOG_SCALE).exp()
    centres, half = centres + shift * anchor_sizes, anchor_sizes * scale / 2
    return torch.cat((centres - half, centres + half), -1)


def from_distances(distances: Tensor, cells: Tensor) -> Tensor:
    """Boxes around the middles of cells, [..., 4] (Tian et al. 2019, arXiv 1904.01355, section 3.1).

    distances: [..., 4], the logarithms of how many cells the left, upper, right and lower side are away.
    """
    size = cells[..., 2:] - cells[..., :2]
    away = distances.clamp(max=_MAX_LOG_SCALE).exp() * torch.cat((size, size), -1)
    middles = cells[..., :2] + size / 2
    return torch.cat((middles - away[..., :2], middles + away[..., 2:]), -1)
