"""A network of very few layers for every head, used as a trained one is: what a converter is tested with.

The head is that of its config, small; in place of the backbone one convolution makes each tap. A converter's time goes
with the number of layers.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detseg.benchmark.synthetic import OneConvolution, calibrate
from detseg.data.sample import draw_scene
from detseg.interfaces import Head, Task
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.resize import Stretch
from detseg.structures import ClassScores, DenseBoxes, Pixels, Size
from detseg.tasks.detection import Detection
from heads.faster_rcnn import FasterRCNN
from heads.panlite import PANLite
from heads.retinanet import RetinaNet
from heads.ssd import SSD
from heads.ssdlite import SSDLite

from . import discovery

SIZE: Size = (64, 96)
MAX_DETECTIONS = 8


@cache
def scenes(number: int, *, seed: int) -> tuple[Pixels, ...]:
    """Generated pictures."""
    return tuple(draw_scene(np.random.default_rng((seed, k))).image for k in range(number))


def inputs(pictures: tuple[Pixels, ...], size: Size) -> Tensor:
    """float32 [B, 3, H, W]."""
    return torch.from_numpy(np.stack([Stretch(size).apply(picture) for picture in pictures])).permute(0, 3, 1, 2)


@torch.no_grad()
def use(predictor: Predictor, size: Size) -> None:
    """BatchNorm sees pictures, or activations would vanish; and as in a trained network scores differ from anchor to
    anchor, and no class is ahead in all pixels."""
    calibrate(predictor, inputs(scenes(32, seed=0), size).chunk(2))
    predictor.eval()
    head, pictures = predictor.head, inputs(scenes(2, seed=2), size)
    layers = [layer for layer, num_rows in head.class_layers.items() if num_rows == 1]
    for _ in range(60):
        dense = predictor.decode(pictures)
        if isinstance(dense, ClassScores):
            head.get_parameter(f"{layers[0]}.bias").sub_(dense.scores.log().mean(0))
            return
        if not isinstance(dense, DenseBoxes):
            head.get_parameter(f"{layers[0]}.bias").sub_(dense.logits.mean((0, 2, 3)))
            return
        if float(dense.scores.std()) > 0.05:
            return
        for layer in layers:
            head.get_parameter(f"{layer}.weight").mul_(1.5)


def network(head: str) -> tuple[Predictor, Task[Any, Any, Any, Any]]:
    """A head's network by the head's file name, and its task; seeded, and the caller's own."""
    predictor, task = _network(head)
    torch.manual_seed(0)
    return copy.deepcopy(predictor), task


@cache
def _network(head: str) -> tuple[Predictor, Task[Any, Any, Any, Any]]:
    torch.manual_seed(0)
    config = discovery.small_config(discovery.config_of_head(head))
    predictor = config.build_model(discovery.OWN)
    predictor.backbone = OneConvolution(predictor.backbone.specs)
    predictor.head = _smaller(predictor.head, predictor)
    predictor.resize = Stretch(SIZE)
    use(predictor, SIZE)
    task = config.experiment.task
    if isinstance(task, Detection):
        task = Detection(score_threshold=0.05, iou_threshold=0.5, max_detections=MAX_DETECTIONS, candidates=8)
    return predictor, task


def _smaller(head: Head[Any, Any, Any], predictor: Predictor) -> Head[Any, Any, Any]:
    """Detectors on few maps, and with few regions."""
    if isinstance(head, SSD | SSDLite):
        return type(head)(predictor.backbone.specs, len(discovery.OWN), anchors=SSDAnchors(num_maps=3),
                          extra_channels=(16,), width=0.35)
    if isinstance(head, RetinaNet):
        # All of the neck's maps: pnnx ends where some are computed for nothing.
        assert predictor.neck is not None
        return RetinaNet(predictor.neck.specs, len(discovery.OWN), anchors=head.anchors, num_convs=1)
    if isinstance(head, PANLite):
        return PANLite(predictor.backbone.specs, len(discovery.OWN), channels=16, num_convs=1)
    if isinstance(head, FasterRCNN):
        head.proposals = 8
    return head
