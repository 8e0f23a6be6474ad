"""SSDLite: SSD with depthwise-separable predictors (Sandler et al. 2018, arXiv 1801.04381, section 6.2).

Two wirings are in the world, and this head is both. torchvision's (ssdlite320_mobilenet_v3_large): six anchors on
every map, softmax over the classes and background, SSD's multibox loss. The papers', from TensorFlow's object
detection API: three anchors on the first map, sigmoid scores, for MobileNetV3 the focal loss. Both predict K + 1
outputs a box, background first, as all published weights do; sigmoid scores leave the background unused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import nn

from detseg import boxes, losses, matching
from detseg.anchors import AnchorRaw, SSDAnchors, image_limits, predict_rows
from detseg.interfaces import BoxTargets, DenseBoxes, Features, FeatureSpec, Head, Losses, Size
from detseg.layers import ConvNormAct, Norm, depthwise_separable, normal_weights

NORM = Norm(momentum=0.03, eps=1e-3)
"""BatchNorm of both wirings: decay 0.97 in TensorFlow's V3 config, momentum 0.03 in torchvision."""
EXTRA_CHANNELS = (512, 256, 256, 128)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
FOCAL_PRIOR = -4.6
"""First bias of the focal loss's classifier: a probability of 0.01 (class_prediction_bias_init)."""

ClassLoss: TypeAlias = Literal["multibox", "focal"]
BoxLoss: TypeAlias = Literal["smooth_l1", "ciou"]


class SSDLite(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts boxes on the backbone's last two maps and on smaller ones that it makes from the last.

    specs: the backbone's; every map is used, in order, and `anchors.num_maps` says how many more are made.
    extra_channels: outputs of the made maps; half of it inside. width: multiplies them, at least 16 are left
    (TensorFlow's depth multiplier). class_loss: "multibox" is softmax cross entropy over positives and the hardest
    negatives, "focal" the sigmoid focal loss with alpha 0.75 and gamma 2. box_loss: "smooth_l1" as published, or
    "ciou". min_negatives: what an image without objects teaches in "multibox"; TensorFlow takes 3, torchvision 0.
    box_weight: the localisation loss counts so much; TensorFlow's V3 divides it by the box's four numbers.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: SSDAnchors,
        class_loss: ClassLoss = "multibox", box_loss: BoxLoss = "smooth_l1", negatives_per_positive: float = 3.0,
        min_negatives: int = 3, box_weight: float = 1.0, extra_channels: Sequence[int] = EXTRA_CHANNELS,
        width: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        anchors.check_maps(len(specs), len(extra_channels))
        self.taps = tuple(specs)
        self.num_outputs = num_classes + 1
        self.anchors, self.class_loss, self.box_loss = anchors, class_loss, box_loss
        self.negatives_per_positive, self.min_negatives = negatives_per_positive, min_negatives
        self.box_weight = box_weight

        channels = [spec.channels for spec in specs.values()]
        self.extras = nn.ModuleList()
        for wanted in extra_channels:
            out = max(16, int(wanted * width))
            self.extras.append(_smaller_map(channels[-1], out, norm=norm))
            channels.append(out)
        self.classify, self.locate = nn.ModuleList(), nn.ModuleList()
        for in_channels, num_anchors in zip(channels, anchors.num_per_cell, strict=True):
            self.classify.append(depthwise_separable(
                in_channels, num_anchors * self.num_outputs, norm=norm, activation="relu6"))
            self.locate.append(depthwise_separable(in_channels, num_anchors * 4, norm=norm, activation="relu6"))
        self.class_layers = {f"classify.{k}.1": 1 for k in range(len(channels))}
        self._initialise()

    def forward(self, features: Features, size: Size) -> AnchorRaw:
        """Maps by tap to raw predictions for images of `size`."""
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
        # TensorFlow's V3 config encodes background as zeros: with the focal loss a negative anchor wants no output.
        background = -1 if self.class_loss == "focal" else 0
        outputs_BN = matching.wanted_outputs(targets, matched_BN, first=1, negative=background)
        logits = raw.logits.float()
        if self.class_loss == "focal":
            classification = losses.focal_loss(logits, outputs_BN, alpha=0.75, gamma=2.0)
        else:
            classification = losses.hard_negative_cross_entropy(
                logits, outputs_BN, negatives_per_positive=self.negatives_per_positive,
                min_negatives=self.min_negatives)
        localisation = losses.box_loss(
            raw.deltas.float(), raw.anchors, targets, matched_BN, weights=BOX_WEIGHTS, kind=self.box_loss)
        return Losses({"class": classification, "box": self.box_weight * localisation}, (matched_BN >= 0).sum())

    def decode(self, raw: AnchorRaw) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities without background."""
        decoded = boxes.decode(raw.deltas.float(), raw.anchors, BOX_WEIGHTS)
        inside = torch.minimum(decoded.clamp(min=0.0), raw.limits)
        logits = raw.logits.float()
        scores = logits.sigmoid() if self.class_loss == "focal" else logits.softmax(-1)
        return DenseBoxes(inside, scores[..., 1:])

    def _initialise(self) -> None:
        """Normal weights of deviation 0.03 and no biases, as both wirings have it."""
        normal_weights(self, std=0.03)
        if self.class_loss == "focal":
            for predictor in self.classify:
                *_, last = predictor.children()
                assert isinstance(last, nn.Conv2d)
                assert last.bias is not None
                nn.init.constant_(last.bias, FOCAL_PRIOR)


def _smaller_map(in_channels: int, out_channels: int, *, norm: Norm) -> nn.Sequential:
    """The next map at half the size: squeeze to half the outputs, depthwise with stride 2, widen."""
    inner = out_channels // 2
    return nn.Sequential(
        ConvNormAct(in_channels, inner, kernel=1, norm=norm, activation="relu6"),
        ConvNormAct(inner, inner, kernel=3, stride=2, groups=inner, norm=norm, activation="relu6"),
        ConvNormAct(inner, out_channels, kernel=1, norm=norm, activation="relu6"),
    )
