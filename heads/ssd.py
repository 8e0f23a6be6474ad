"""SSD: boxes from full 3 x 3 convolutions on maps of falling size (Liu et al. 2016, arXiv 1512.02325).

On MobileNet as Table 5 of the MobileNetV2 paper costs it (Sandler et al. 2018, arXiv 1801.04381), beside SSDLite: the
backbone's last two maps and four smaller ones, each made by a 1 x 1 and a 3 x 3 convolution (TensorFlow's
multi_resolution_feature_maps with insert_1x1_conv). Classes and background share a softmax, as in SSD's paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from detseg import boxes, losses, matching
from detseg.anchors import AnchorRaw, SSDAnchors, image_limits, predict_rows
from detseg.interfaces import BoxTargets, DenseBoxes, Features, FeatureSpec, Head, Losses, Size
from detseg.layers import ConvNormAct, Norm, normal_weights

NORM = Norm(momentum=0.03, eps=1e-3)
"""BatchNorm of the made maps: decay 0.97 and epsilon 0.001 in TensorFlow's ssd_mobilenet_v2 of its second model zoo."""
EXTRA_CHANNELS = (512, 256, 256, 128)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class SSD(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts boxes on the backbone's maps and on smaller ones that it makes from the last.

    specs: the backbone's; every map is used, in order, and `anchors.num_maps` says how many more are made.
    extra_channels: outputs of the made maps; half of it inside. width: multiplies them, at least 16 are left
    (TensorFlow's depth multiplier). negatives_per_positive: of the negative anchors of an image those with the highest
    loss count, so many for each matched one; min_negatives: at least so many.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: SSDAnchors,
        negatives_per_positive: float = 3.0, min_negatives: int = 3, extra_channels: Sequence[int] = EXTRA_CHANNELS,
        width: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        anchors.check_maps(len(specs), len(extra_channels))
        self.taps = tuple(specs)
        self.num_outputs = num_classes + 1
        self.anchors = anchors
        self.negatives_per_positive, self.min_negatives = negatives_per_positive, min_negatives

        channels = [spec.channels for spec in specs.values()]
        self.extras = nn.ModuleList()
        for wanted in extra_channels:
            out = max(16, int(wanted * width))
            self.extras.append(_smaller_map(channels[-1], out, norm=norm))
            channels.append(out)
        self.classify, self.locate = nn.ModuleList(), nn.ModuleList()
        for in_channels, num_anchors in zip(channels, anchors.num_per_cell, strict=True):
            self.classify.append(nn.Conv2d(in_channels, num_anchors * self.num_outputs, 3, padding=1))
            self.locate.append(nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1))
        self.class_layers = {f"classify.{k}": 1 for k in range(len(channels))}
        normal_weights(self, std=0.03)  # TensorFlow's; SSD's paper has Xavier's for its own network

    def forward(self, features: Features, size: Size) -> AnchorRaw:
        """Maps by tap to raw predictions for images of `size`; logits of K + 1 outputs, background first."""
        maps = [features[tap] for tap in self.taps]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        device = maps[0].device
        return AnchorRaw(
            deltas=predict_rows(self.locate, maps, columns=4),
            logits=predict_rows(self.classify, maps, columns=self.num_outputs),
            anchors=self.anchors([(x.shape[2], x.shape[3]) for x in maps], size, device=device),
            limits=image_limits(size, device=device),
        )

    def loss(self, raw: AnchorRaw, targets: BoxTargets) -> Losses:
        """Classification and localisation, to be divided by the number of matched anchors."""
        matched_BN = matching.match(
            raw.anchors, targets, limits=raw.limits, positive=0.5, negative=0.5, keep_best=True)
        classification = losses.hard_negative_cross_entropy(
            raw.logits.float(), matching.wanted_outputs(targets, matched_BN, first=1, negative=0),
            negatives_per_positive=self.negatives_per_positive, min_negatives=self.min_negatives)
        localisation = losses.box_loss(
            raw.deltas.float(), raw.anchors, targets, matched_BN, weights=BOX_WEIGHTS, kind="smooth_l1")
        return Losses({"class": classification, "box": localisation}, (matched_BN >= 0).sum())

    def decode(self, raw: AnchorRaw) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities without background."""
        decoded = boxes.decode(raw.deltas.float(), raw.anchors, BOX_WEIGHTS)
        inside = torch.minimum(decoded.clamp(min=0.0), raw.limits)
        return DenseBoxes(inside, raw.logits.float().softmax(-1)[..., 1:])


def _smaller_map(in_channels: int, out_channels: int, *, norm: Norm) -> nn.Sequential:
    """The next map at half the size: squeeze to half the outputs, then a full convolution with stride 2."""
    inner = out_channels // 2
    return nn.Sequential(
        ConvNormAct(in_channels, inner, kernel=1, norm=norm, activation="relu6"),
        ConvNormAct(inner, out_channels, kernel=3, stride=2, norm=norm, activation="relu6"),
    )
