"""SSD: boxes from full 3 x 3 convolutions on maps of falling size (Liu et al. 2016, arXiv 1512.02325).

On MobileNet as Table 5 of the MobileNetV2 paper costs it (Sandler et al. 2018, arXiv 1801.04381), beside SSDLite: the
backbone's last two maps and four smaller ones, each made by a 1 x 1 and a 3 x 3 convolution (TensorFlow's
multi_resolution_feature_maps with insert_1x1_conv). Classes and background share a softmax, as in SSD's paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses, Term
from detseg.layers import Norm, Padding, normal_weights, smaller_maps
from detseg.ops import boxes, losses, matching
from detseg.ops.anchors import AnchorRaw, CachedAnchors, CellAnchors, predict_maps
from detseg.structures import BoxTargets, DenseBoxes, Size

NORM = Norm(momentum=0.03, eps=1e-3)
"""BatchNorm of the made maps: decay 0.97 and epsilon 0.001 in TensorFlow's ssd_mobilenet_v2 of its second model zoo."""
EXTRA_CHANNELS = (512, 256, 256, 128)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class SSD(Head[BoxTargets, AnchorRaw, DenseBoxes]):
    """Predicts boxes on the backbone's maps and on smaller ones that it makes from the last.

    Args:
        specs: the backbone's; every map is used, in order, and `anchors.num_maps` says how many more are made.
        num_classes: without background.
        anchors: of all maps.
        box_weights: of the encoding.
        negatives_per_positive: of the negative anchors of an image those with the highest loss count, so many for each
            matched one.
        min_negatives: at least so many.
        extra_channels: outputs of the made maps; half of it inside.
        width: multiplies them, at least 16 are left (TensorFlow's depth multiplier).
        norm: of the made maps.
        padding: of the convolutions that make them; "same" for TensorFlow's weights.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, anchors: CellAnchors,
        box_weights: tuple[float, float, float, float] = BOX_WEIGHTS, negatives_per_positive: float = 3.0,
        min_negatives: int = 3, extra_channels: Sequence[int] = EXTRA_CHANNELS, width: float = 1.0, norm: Norm = NORM,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"a detector needs at least one class, got {num_classes}")
        anchors.check_maps(len(specs), len(extra_channels))
        self.taps = tuple(specs)
        self.num_outputs = num_classes + 1
        self.anchors, self._anchors, self.box_weights = anchors, CachedAnchors(anchors), box_weights
        self.negatives_per_positive, self.min_negatives = negatives_per_positive, min_negatives

        channels = [spec.channels for spec in specs.values()]
        self.extras, made = smaller_maps(
            channels[-1], extra_channels, norm=norm, separable=False, width=width, padding=padding)
        channels += made
        self.classify, self.locate = nn.ModuleList(), nn.ModuleList()
        for in_channels, num_anchors in zip(channels, anchors.num_per_cell, strict=True):
            self.classify.append(nn.Conv2d(in_channels, num_anchors * self.num_outputs, 3, padding=1))
            self.locate.append(nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1))
        self.class_layers = {f"classify.{k}": 1 for k in range(len(channels))}
        normal_weights(self, std=0.03)  # TensorFlow's; SSD's paper has Xavier's for its own network

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
        matched_BN = matching.match(anchors, targets, size, positive=0.5, negative=0.5, keep_best=True)
        classification = losses.hard_negative_cross_entropy(
            logits, matching.wanted_outputs(targets, matched_BN, first=1, negative=0),
            negatives_per_positive=self.negatives_per_positive, min_negatives=self.min_negatives)
        localisation = losses.box_loss(
            deltas, anchors, targets, matched_BN, weights=self.box_weights, kind="smooth_l1")
        count = (matched_BN >= 0).sum()
        return {"class": Term(classification, count), "box": Term(localisation, count)}

    def decode(self, raw: AnchorRaw, size: Size, *, static: bool = False) -> DenseBoxes:
        """Boxes inside the image, and the classes' probabilities without background."""
        logits, deltas = raw.rows(self.num_outputs)
        found = boxes.decode(deltas, self._anchors(raw.logits, size, static=static), self.box_weights)
        return DenseBoxes(boxes.clip(found, size), logits.softmax(-1)[..., 1:])
