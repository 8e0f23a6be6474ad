"""What the tests of the detectors of one stage share."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from detseg.interfaces import Losses
from detseg.model import Predictor
from detseg.ops.anchors import AnchorRaw
from detseg.structures import BoxTargets

Object: TypeAlias = tuple[tuple[float, float, float, float], int, bool]
"""Box, label and crowd flag."""


def box_targets(*images: list[Object]) -> BoxTargets:
    """The objects of each image, padded as a batch."""
    num_boxes = max(len(image) for image in images)
    targets = BoxTargets(torch.zeros(len(images), num_boxes, 4), torch.full((len(images), num_boxes), -1),
                         torch.zeros(len(images), num_boxes, dtype=torch.bool))
    for row, image in enumerate(images):
        for number, (box, label, crowd) in enumerate(image):
            targets.boxes[row, number] = torch.tensor(box)
            targets.labels[row, number] = label
            targets.crowd[row, number] = crowd
    return targets


def row_gradients(predictor: Predictor, targets: BoxTargets) -> tuple[Losses, Tensor, Tensor]:
    """The losses on random images of the predictor's size, and the gradient of their sums in the rows of each delta and
    each logit."""
    head, size = predictor.head, predictor.resize.size
    given: AnchorRaw = predictor(torch.rand(len(targets.labels), 3, *size) * 255)
    raw = AnchorRaw(deltas=tuple(x.detach().requires_grad_() for x in given.deltas),
                    logits=tuple(x.detach().requires_grad_() for x in given.logits))
    losses = head.loss(raw, targets, size)
    assert losses["class"].count is losses["box"].count
    gradients = torch.autograd.grad(losses["class"].sum + losses["box"].sum, (*raw.deltas, *raw.logits))
    maps = len(raw.deltas)
    logits, deltas = AnchorRaw(deltas=gradients[:maps], logits=gradients[maps:]).rows(head.num_outputs)
    return losses, deltas, logits
