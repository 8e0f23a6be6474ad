"""R-ASPP: DeepLabV3's head without its dilated convolutions (Sandler et al. 2018, arXiv 1801.04381, section 6.3).

What stays of ASPP is a 1 x 1 convolution and the mean of the whole map. The MobileNetV3 paper names it (section 6.4)
and measures with it in rows 1, 2, 5 and 6 of its Table 7; the order and the layers are those of TensorFlow's DeepLab,
whose published MobileNetV2 for PASCAL VOC is exactly this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import ConvNormAct, Norm
from detseg.ops.losses import segmentation_losses
from detseg.structures import DenseLogits, LabelTargets, Size

NORM = Norm(momentum=0.1, eps=1e-5)
"""TensorFlow's epsilon; its average (decay 0.9997) has not forgotten the untrained network after some thousand
steps."""


class RASPPRaw(NamedTuple):
    """What the classifier says at the cells of the last map."""

    logits: Tensor
    """[B, K, h, w]."""


class RASPP(Head[LabelTargets, RASPPRaw, DenseLogits]):
    """Classifies each cell of the last map by its own features and those of the whole image.

    specs: one tap. filters: channels inside ("F" in Table 7 of the MobileNetV3 paper). dropout: before the classifier,
    in training. class_weights, hardest: of the loss, see `losses.segmentation_cross_entropy`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, filters: int = 256, dropout: float = 0.1,
        class_weights: Sequence[float] | None = None, hardest: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if len(specs) != 1:
            raise ValueError(f'R-ASPP takes one tap, such as "c5", got {", ".join(specs)}')
        ((self.tap, spec),) = specs.items()
        self.num_outputs = num_classes
        self.class_weights, self.hardest = class_weights, hardest

        self.pool = ConvNormAct(spec.channels, filters, kernel=1, norm=norm, activation="relu")
        self.reduce = ConvNormAct(spec.channels, filters, kernel=1, norm=norm, activation="relu")
        self.project = ConvNormAct(2 * filters, filters, kernel=1, norm=norm, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(filters, num_classes, 1)
        self.class_layers = {"classify": 1}

    def forward(self, features: Features) -> RASPPRaw:
        """The last map to scores at its cells."""
        x = features[self.tap]
        local = self.reduce(x)
        # Enlarged, and not expanded: runtimes for phones have no broadcast that lasts.
        everywhere = F.interpolate(self.pool(x.mean((2, 3), keepdim=True)), local.shape[2:], mode="bilinear")
        logits: Tensor = self.classify(self.dropout(self.project(torch.cat((everywhere, local), 1))))
        return RASPPRaw(logits)

    def loss(self, raw: RASPPRaw, targets: LabelTargets, size: Size) -> Losses:
        """Cross entropy at every pixel of the labels; the count is that of the pixels that count."""
        return segmentation_losses(
            raw.logits, targets, class_weights=self.class_weights, hardest=self.hardest, align_corners=True)

    def decode(self, raw: RASPPRaw, size: Size, *, static: bool = False) -> DenseLogits:
        """The logits, to be enlarged corner to corner."""
        return DenseLogits(raw.logits.float(), size, align_corners=True)
