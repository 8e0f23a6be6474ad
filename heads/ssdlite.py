"""SSDLite: SSD with depthwise-separable predictors (Sandler et al. 2018, arXiv 1801.04381, section 6.2).

Two wirings are in the world, and this head is both. torchvision's (ssdlite320_mobilenet_v3_large): six anchors on
every map, softmax over the classes and background, SSD's multibox loss. The papers', from TensorFlow's object
detection API: three anchors on the first map, sigmoid scores, for MobileNetV3 the focal loss. Both predict K + 1
outputs a box, background first, as all published weights do; sigmoid scores leave the background unused. TensorFlow's
own weights need `TensorFlowAnchors` and padding "same" too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses, Term
from detseg.layers import Norm, Padding, depthwise_separable, normal_weights, smaller_maps
from detseg.ops import boxes, losses, matching
from detseg.ops.anchors import AnchorRaw, CachedAnchors, CellAnchors, predict_maps
from detseg.structures import BoxTargets, DenseBoxes, Size

NORM = Norm(momentum=0.03, eps=1e-3)
"""BatchNorm of both wirings: decay 0.97 in TensorFlow's V3 config, momentum 0.03 in torchvision."""
EXTRA_CHANNELS = (512, 256, 256, 128)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What SSD multiplies the encoded centre and the logarithm of the sides with."""
FOCAL_PRIOR = -4.6
"""First bias of the focal loss's classifier: a probability of 0.01 (class_prediction_bias_init)."""

ClassLoss: TypeAlias = Literal["multibox", "sigmoid", "focal", "task_aligned"]
BoxLoss: TypeAlias = Literal["smooth_l1", "ciou", "giou"]


class SSDLite(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts boxes on the backbone's last two maps and on smaller ones that it makes from the last.

    Args:
        specs: the backbone's; every map is used, in order, and `anchors.num_maps` says how many more are made.
        num_classes: without background.
        anchors: of all maps.
        class_loss: "multibox" is softmax cross entropy over positives and the hardest negatives, "sigmoid" the same
            with a sigmoid for each output (TensorFlow's V1 and V2), "focal" the sigmoid focal loss with alpha 0.75 and
            gamma 2 (its V3); scores are decoded accordingly. "task_aligned" also matches otherwise: anchors stand for
            boxes by what the network says of them, and scores learn how well boxes fit (`ops.matching.align`).
        box_loss: "smooth_l1" as published, or "ciou" or "giou".
        box_weights: of the encoding.
        negatives_per_positive: of "multibox" and "sigmoid".
        min_negatives: so many negatives of an image count there even without objects; TensorFlow takes 3, torchvision
            0.
        box_weight: the localisation loss counts so much; TensorFlow's V3 divides it by the box's four numbers.
        extra_channels: outputs of the made maps; half of it inside.
        width: multiplies them, at least 16 are left (TensorFlow's depth multiplier).
        norm: of all layers.
        padding: of the convolutions that make maps; "same" for TensorFlow's weights.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: CellAnchors,
        class_loss: ClassLoss = "multibox", box_loss: BoxLoss = "smooth_l1",
        box_weights: tuple[float, float, float, float] = BOX_WEIGHTS, negatives_per_positive: float = 3.0,
        min_negatives: int = 3, box_weight: float = 1.0, extra_channels: Sequence[int] = EXTRA_CHANNELS,
        width: float = 1.0, norm: Norm = NORM, padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        if class_loss == "task_aligned" and box_loss == "smooth_l1":
            raise ValueError('class_loss="task_aligned" compares decoded boxes: box_loss must be "ciou" or "giou"')
        anchors.check_maps(len(specs), len(extra_channels))
        self.taps = tuple(specs)
        self.num_outputs = num_classes + 1
        self.anchors, self._anchors = anchors, CachedAnchors(anchors)
        self.class_loss, self.box_loss, self.box_weights = class_loss, box_loss, box_weights
        self.negatives_per_positive, self.min_negatives = negatives_per_positive, min_negatives
        self.box_weight = box_weight

        channels = [spec.channels for spec in specs.values()]
        self.extras, made = smaller_maps(
            channels[-1], extra_channels, norm=norm, separable=True, width=width, padding=padding)
        channels += made
        self.classify, self.locate = nn.ModuleList(), nn.ModuleList()
        for in_channels, num_anchors in zip(channels, anchors.num_per_cell, strict=True):
            self.classify.append(depthwise_separable(
                in_channels, num_anchors * self.num_outputs, norm=norm, activation="relu6"))
            self.locate.append(depthwise_separable(in_channels, num_anchors * 4, norm=norm, activation="relu6"))
        self.class_layers = {f"classify.{k}.1": 1 for k in range(len(channels))}
        self._initialise()

    def forward(self, features: Features) -> AnchorRaw:
        """Maps by tap to raw predictions; logits of K + 1 outputs, background first."""
        maps = [features[tap] for tap in self.taps]
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return predict_maps(maps, locate=self.locate, classify=self.classify)

    def loss(self, raw: AnchorRaw, targets: BoxTargets, size: Size) -> Losses:
        """Classification and localisation; the count is that of the matched anchors."""
        logits, deltas = raw.rows(self.num_outputs)
        anchors = self._anchors(raw.logits, size)
        if self.class_loss == "task_aligned":
            assert self.box_loss != "smooth_l1"
            return losses.task_aligned_losses(
                logits, boxes.decode(deltas, anchors, self.box_weights), anchors, targets, size, first=1,
                kind=self.box_loss, box_weight=self.box_weight)
        matched_BN = matching.match(anchors, targets, size, positive=0.5, negative=0.5, keep_best=True)
        if self.class_loss == "focal":
            # TensorFlow's V3 config encodes background as zeros: a negative anchor wants no output.
            outputs_BN = matching.wanted_outputs(targets, matched_BN, first=1, negative=-1)
            classification = losses.focal_loss(logits, outputs_BN, alpha=0.75, gamma=2.0)
        else:
            outputs_BN = matching.wanted_outputs(targets, matched_BN, first=1, negative=0)
            classification = losses.hard_negative_cross_entropy(
                logits, outputs_BN, negatives_per_positive=self.negatives_per_positive,
                min_negatives=self.min_negatives, sigmoid=self.class_loss == "sigmoid")
        localisation = losses.box_loss(
            deltas, anchors, targets, matched_BN, weights=self.box_weights, kind=self.box_loss)
        count = (matched_BN >= 0).sum()
        return {"class": Term(classification, count), "box": Term(self.box_weight * localisation, count)}

    def decode(self, raw: AnchorRaw, size: Size, *, static: bool = False) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities without background."""
        logits, deltas = raw.rows(self.num_outputs)
        found = boxes.decode(deltas, self._anchors(raw.logits, size, static=static), self.box_weights)
        scores = logits.softmax(-1) if self.class_loss == "multibox" else logits.sigmoid()
        return DenseBoxes(boxes.clip(found, size), scores[..., 1:])

    def _initialise(self) -> None:
        """Normal weights of std 0.03 and no biases, as both wirings have it."""
        normal_weights(self, std=0.03)
        if self.class_loss in ("focal", "task_aligned"):
            for predictor in self.classify:
                *_, last = predictor.children()
                assert isinstance(last, nn.Conv2d)
                assert last.bias is not None
                nn.init.constant_(last.bias, FOCAL_PRIOR)
