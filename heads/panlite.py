"""PANLite: boxes without anchors on a light path-aggregation neck, whole: neck, predictors, loss.

What detectors of this size have in common since 2020, each part with its source: a neck that carries meaning down and
places up again (PANet, Liu et al. 2018, arXiv 1803.01534, section 3.1) of depthwise 5 x 5 convolutions (PicoDet, Yu et
al. 2021, arXiv 2111.00902, section 3.2); convolutions that all maps share, each with norms of its own (RTMDet, Lyu et
al. 2022, arXiv 2212.07784, section 3.2); the distances from a cell's middle to a box's four sides in the place of
anchors (FCOS, Tian et al. 2019, arXiv 1904.01355); cells matched by what the network says of them, and scores that
learn how well boxes fit (TOOD, Feng et al. 2021, arXiv 2108.07755). The sum is nobody's published network: there are no
weights of it but those that detseg trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import Activation, ConvNormAct, Norm, SharedConv, separable_conv
from detseg.ops import boxes, losses
from detseg.ops.anchors import AnchorRaw, CachedAnchors, Cells
from detseg.ops.losses import IoULoss
from detseg.structures import BoxTargets, DenseBoxes, Size

NORM = Norm(momentum=0.1, eps=1e-3)
"""PyTorch's momentum: a norm of the usual 0.03 has not forgotten the untrained network after a few hundred steps."""
PRIOR = 0.01
"""What the classifier first says of every class in every cell."""
FIRST_DISTANCE = 3.0
"""Cells from the middle to each side of the first boxes: an object of six cells suits its map best, about as in
PicoDet. With boxes of two cells, matching begins on maps that are too coarse for their objects."""


class PANLite(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts a box in every cell of the backbone's maps.

    Args:
        specs: the backbone's; every map is used, from fine to coarse, each at twice the stride of the one before.
        num_classes: without background, of which there is no output.
        channels: of all maps behind the neck's first layers.
        num_convs: before the predictors, which share them.
        kernel: of the depthwise convolutions.
        box_loss: "giou" or "ciou".
        box_weight: the box loss counts so much.
        norm, activation: of all layers.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, channels: int = 96, num_convs: int = 2,
        kernel: int = 5, box_loss: IoULoss = "giou", box_weight: float = 2.0, norm: Norm = NORM,
        activation: Activation = "relu6",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        strides = [spec.stride for spec in specs.values()]
        if strides != [strides[0] * 2 ** k for k in range(len(strides))]:
            raise ValueError(f"the neck doubles the stride from map to map, got {strides}: choose other taps, or a "
                             "backbone without dilation")
        self.taps = tuple(specs)
        self.num_outputs = num_classes
        self.cells = Cells(tuple(strides))
        self._cells = CachedAnchors(self.cells)
        self.box_loss, self.box_weight = box_loss, box_weight
        self.neck = _PAN(
            [spec.channels for spec in specs.values()], channels, kernel=kernel, norm=norm, activation=activation)
        self.convs = nn.ModuleList(
            SharedConv(separable_conv(channels, channels, kernel=kernel), channels, num_maps=len(specs), norm=norm,
                       activation=activation)
            for _ in range(num_convs))
        self.classify, self.locate = nn.Conv2d(channels, num_classes, 1), nn.Conv2d(channels, 4, 1)
        self.class_layers = {"classify": 1}
        self._initialise()

    def forward(self, features: Features) -> AnchorRaw:
        """Maps by tap to raw predictions, one a cell; deltas are distances, see `ops.boxes.from_distances`."""
        maps = self.neck([features[tap] for tap in self.taps])
        for conv in self.convs:
            maps = conv(maps)
        return AnchorRaw(deltas=tuple(self.locate(x) for x in maps), logits=tuple(self.classify(x) for x in maps))

    def loss(self, raw: AnchorRaw, targets: BoxTargets, size: Size) -> Losses:
        """Classification and localisation; see `losses.task_aligned_losses`."""
        logits, distances = raw.rows(self.num_outputs)
        cells = self._cells(raw.logits, size)
        return losses.task_aligned_losses(
            logits, boxes.from_distances(distances, cells), cells, targets, size, first=0, kind=self.box_loss,
            box_weight=self.box_weight)

    def decode(self, raw: AnchorRaw, size: Size, *, static: bool = False) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities."""
        logits, distances = raw.rows(self.num_outputs)
        found = boxes.from_distances(distances, self._cells(raw.logits, size, static=static))
        return DenseBoxes(boxes.clip(found, size), logits.sigmoid())

    def _initialise(self) -> None:
        """Predictors of std 0.01 (FCOS), with the priors; the other layers keep what they were made with."""
        for predictor, first in (
            (self.classify, -math.log((1 - PRIOR) / PRIOR)),
            (self.locate, math.log(FIRST_DISTANCE)),
        ):
            nn.init.normal_(predictor.weight, std=0.01)
            assert predictor.bias is not None
            nn.init.constant_(predictor.bias, first)


class _PAN(nn.Module):
    """Every map meets those above it and then those below it, in as many channels."""

    def __init__(
        self, in_channels: Sequence[int], channels: int, *, kernel: int, norm: Norm, activation: Activation
    ) -> None:
        super().__init__()
        steps = range(len(in_channels) - 1)
        self.lateral = nn.ModuleList(
            ConvNormAct(each, channels, kernel=1, norm=norm, activation=activation) for each in in_channels)
        self.from_above = nn.ModuleList(
            _merge(channels, kernel=kernel, norm=norm, activation=activation) for _ in steps)
        self.down = nn.ModuleList(
            ConvNormAct(channels, channels, kernel=kernel, stride=2, groups=channels, norm=norm, activation=activation)
            for _ in steps)
        self.from_below = nn.ModuleList(
            _merge(channels, kernel=kernel, norm=norm, activation=activation) for _ in steps)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse to the same, [B, channels, H, W]."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for k, merge in reversed(list(enumerate(self.from_above))):
            enlarged = F.interpolate(maps[k + 1], maps[k].shape[2:], mode="nearest")
            maps[k] = merge(torch.cat((maps[k], enlarged), 1))
        for k, (down, merge) in enumerate(zip(self.down, self.from_below, strict=True), start=1):
            maps[k] = merge(torch.cat((maps[k], down(maps[k - 1])), 1))
        return maps


def _merge(channels: int, *, kernel: int, norm: Norm, activation: Activation) -> nn.Sequential:
    """Two maps, one behind the other in their channels, to one: 1 x 1, depthwise, 1 x 1."""
    return nn.Sequential(
        ConvNormAct(2 * channels, channels, kernel=1, norm=norm, activation=activation),
        ConvNormAct(channels, channels, kernel=kernel, groups=channels, norm=norm, activation=activation),
        ConvNormAct(channels, channels, kernel=1, norm=norm, activation=activation))
