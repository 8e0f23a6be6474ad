"""RetinaNet: one stage on a feature pyramid, taught by the focal loss (Lin et al. 2017, arXiv 1708.02002).

Two wirings are in the world, and this head is both. torchvision's (retinanet_resnet50_fpn): full convolutions without
norm, L1 loss. TensorFlow's (official/vision/modeling/heads/dense_prediction_heads.py), with which the MobileNetV4 paper
compares backbones: separable convolutions that all maps share, each followed by a BatchNorm of the map's own, Huber
loss. Both predict K + 1 outputs a box, of which the first, background, is unused, as in all published weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses, Term
from detseg.layers import Norm, SharedConv, normal_weights, separable_conv
from detseg.ops import boxes, losses, matching
from detseg.ops.anchors import AnchorRaw, CachedAnchors, GridAnchors
from detseg.structures import BoxTargets, DenseBoxes, Size

NORM = Norm(momentum=0.01, eps=1e-3)
"""BatchNorm of TensorFlow's wiring (norm_momentum 0.99)."""
BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
FOCAL_ALPHA = 0.25
PRIOR = 0.01
"""What the classifier first says of every class at every anchor; the many negatives would drown all else if not."""

Activation: TypeAlias = Literal["relu", "relu6"]
ClassLoss: TypeAlias = Literal["focal", "task_aligned"]
BoxLoss: TypeAlias = Literal["l1", "huber", "ciou", "giou"]


class RetinaNet(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts classes and boxes on every map of a pyramid with the same convolutions.

    The defaults are torchvision's; TensorFlow's gamma is 1.5, its max_negative_iou 0.5.

    Args:
        specs: the neck's; every map is used, in order, and all have the same channels.
        num_classes: without background.
        anchors: of all maps.
        num_convs: before each predictor.
        separable, norm, activation: of these; every map has its own norm, None leaves it out.
        class_loss: "focal" as published, or "task_aligned": anchors stand for boxes by what the network says of them,
            and scores learn how well boxes fit (`ops.matching.align`); box_loss is then "ciou" or "giou".
        gamma: the focal loss's exponent.
        box_loss: "l1" (torchvision) or "huber" (TensorFlow), on the encoded boxes; "ciou" or "giou" on the decoded.
        box_weights: of the encoding.
        box_weight: the box loss counts so much; TensorFlow's 50 is for the mean of a box's four numbers, which is 12.5
            for their sum.
        max_negative_iou: an anchor that overlaps every object less is background; between this and 0.5 it is ignored by
            the loss.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: GridAnchors, num_convs: int = 4,
        separable: bool = False, norm: Norm | None = None, activation: Activation = "relu",
        class_loss: ClassLoss = "focal", gamma: float = 2.0, box_loss: BoxLoss = "l1",
        box_weights: tuple[float, float, float, float] = BOX_WEIGHTS, box_weight: float = 1.0,
        max_negative_iou: float = 0.4,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        if len(specs) != len(anchors.sizes):
            raise ValueError(f"the pyramid has {len(specs)} maps ({', '.join(specs)}), but the anchors are for "
                             f"{len(anchors.sizes)}")
        widths, shapes = {spec.channels for spec in specs.values()}, set(anchors.num_per_cell)
        if len(widths) > 1 or len(shapes) > 1:
            raise ValueError("all maps share their predictors and need the same number of channels and of anchors a "
                             f"cell, got {sorted(widths)} channels and {sorted(shapes)} anchors")
        if class_loss == "task_aligned" and box_loss not in ("ciou", "giou"):
            raise ValueError('class_loss="task_aligned" compares decoded boxes: box_loss must be "ciou" or "giou"')
        if not 0 <= max_negative_iou <= 0.5:
            raise ValueError(f"max_negative_iou must lie in 0..0.5, got {max_negative_iou}")
        (channels,), (num_anchors,) = widths, shapes
        self.maps, self.stride = tuple(specs), next(iter(specs.values())).stride
        self.num_outputs = num_classes + 1
        self.anchors, self._anchors = anchors, CachedAnchors(anchors, stride=self.stride)
        self.class_loss, self.gamma, self.max_negative_iou = class_loss, gamma, max_negative_iou
        self.box_loss, self.box_weights, self.box_weight = box_loss, box_weights, box_weight
        self.classify, self.locate = (
            _Tower(channels, num_anchors * columns, num_maps=len(specs), num_convs=num_convs, separable=separable,
                   norm=norm, activation=activation)
            for columns in (self.num_outputs, 4))
        last = len(self.classify.predict) - 1
        self.class_layers = {f"classify.predict.{last}": 1}
        self._initialise(self.classify.predict[last], separable=separable)

    def forward(self, features: Features) -> AnchorRaw:
        """Maps by name to raw predictions; logits of K + 1 outputs, background first."""
        maps = [features[name] for name in self.maps]
        return AnchorRaw(deltas=self.locate(maps), logits=self.classify(maps))

    def loss(self, raw: AnchorRaw, targets: BoxTargets, size: Size) -> Losses:
        """Classification and localisation; the count is that of the matched anchors."""
        logits, deltas = raw.rows(self.num_outputs)
        anchors = self._anchors(raw.logits, size)
        if self.class_loss == "task_aligned":
            assert self.box_loss == "ciou" or self.box_loss == "giou"
            return losses.task_aligned_losses(
                logits, boxes.decode(deltas, anchors, self.box_weights), anchors, targets, size, first=1,
                kind=self.box_loss, box_weight=self.box_weight)
        matched_BN = matching.match(
            anchors, targets, size, positive=0.5, negative=self.max_negative_iou, keep_best=False, keep_ties=True)
        classification = losses.focal_loss(
            logits, matching.wanted_outputs(targets, matched_BN, first=1, negative=-1), alpha=FOCAL_ALPHA,
            gamma=self.gamma)
        localisation = losses.box_loss(
            deltas, anchors, targets, matched_BN, weights=self.box_weights, kind=self.box_loss)
        count = (matched_BN >= 0).sum()
        return {"class": Term(classification, count), "box": Term(self.box_weight * localisation, count)}

    def decode(self, raw: AnchorRaw, size: Size, *, static: bool = False) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities without background."""
        logits, deltas = raw.rows(self.num_outputs)
        found = boxes.decode(deltas, self._anchors(raw.logits, size, static=static), self.box_weights)
        return DenseBoxes(boxes.clip(found, size), logits.sigmoid()[..., 1:])

    def _initialise(self, classifier: nn.Module, *, separable: bool) -> None:
        """A std of 0.01 (torchvision), or Keras's values where convolutions are separable; and the prior."""
        if not separable:
            normal_weights(self, std=0.01)
        assert isinstance(classifier, nn.Conv2d)
        assert classifier.bias is not None
        nn.init.constant_(classifier.bias, -math.log((1 - PRIOR) / PRIOR))


class _Tower(nn.Module):
    """Convolutions that every map goes through, and the one that predicts."""

    def __init__(
        self, channels: int, out_channels: int, *, num_maps: int, num_convs: int, separable: bool, norm: Norm | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            SharedConv(_conv(channels, channels, separable=separable), channels, num_maps=num_maps, norm=norm,
                       activation=activation)
            for _ in range(num_convs))
        self.predict = _conv(channels, out_channels, separable=separable)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, channels, H, W] to predictions [B, out_channels, H, W]."""
        for conv in self.convs:
            maps = conv(maps)
        return tuple(self.predict(x) for x in maps)


def _conv(in_channels: int, out_channels: int, *, separable: bool) -> nn.Sequential:
    """3 x 3, in one layer or two; the last has the output channels and a bias."""
    if separable:
        return separable_conv(in_channels, out_channels)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))
