"""What the tests of the detectors of one stage share."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from detseg.interfaces import Losses
from detseg.model import Predictor
from detseg.ops import boxes
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


def assert_task_aligned_training_finds(targets: BoxTargets, predictor: Predictor, *, steps: int) -> None:
    """That after a few steps on two random images the surest box of each object's class is the right one. (The losses
    themselves are sums over qualities that grow, so they say little.)"""
    size = predictor.resize.size
    images = torch.rand(len(targets.labels), 3, *size) * 255
    optimizer = torch.optim.AdamW(predictor.train().parameters(), lr=0.01)
    for _ in range(steps):
        losses = predictor.head.loss(predictor(images), targets, size)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack([term.sum / term.count.clamp(min=1) for term in losses.values()]).sum())
        optimizer.step()
    dead = [name for name, parameter in predictor.named_parameters() if parameter.grad is None]
    assert not dead
    with torch.no_grad():
        dense = predictor.head.decode(predictor(images), size)
    for image, number in (targets.labels >= 0).nonzero().tolist():
        scores = dense.scores[image, :, targets.labels[image, number]]
        overlap = boxes.iou(dense.boxes[image, scores.argmax()][None], targets.boxes[image, number][None])
        assert float(overlap) > 0.7
        assert float(scores.max()) > 0.4


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
