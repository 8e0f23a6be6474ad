"""OpenMMLab's LR-ASPP, which is not the paper's: two skips at half and at a quarter of the image's size.

mmsegmentation's LRASPPHead, after fastseg (github.com/ekzhang/fastseg). As in the paper (Howard et al. 2019, arXiv
1905.02244, section 6.4) a 1 x 1 convolution is gated by means over large windows; then the map is enlarged in steps,
and at each the earlier map's features are put beside it and mixed in by another 1 x 1 convolution. There is one
classifier, at stride 2. `heads/lraspp.py` is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import ConvNormAct, Norm, window_means
from detseg.ops.losses import segmentation_losses
from detseg.structures import DenseLogits, LabelTargets, Size

NORM = Norm(momentum=0.1, eps=1e-3)
"""BatchNorm of OpenMMLab's config, in backbone and head."""
WINDOW, WINDOW_STRIDE = 49, (16, 20)
"""Cells of the last map; for the paper it has stride 16, for OpenMMLab 8. OpenMMLab refuses smaller maps, here the
window shrinks."""


class OpenMMLabLRASPPRaw(NamedTuple):
    """What the classifier says at the cells of the first map."""

    logits: Tensor
    """[B, K, h, w]."""


class OpenMMLabLRASPP(Head[LabelTargets, OpenMMLabLRASPPRaw, DenseLogits]):
    """Weighs the channels of the last map by what lies around, and mixes in the earlier maps one by one.

    specs: the earlier maps from fine to coarse, then the last one. filters: channels inside. skip_channels: of each
    earlier map's features. dropout: the share of feature maps dropped before the classifier. class_weights, hardest: of
    the loss, see `losses.segmentation_cross_entropy`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, filters: int = 128,
        skip_channels: Sequence[int] = (32, 64), dropout: float = 0.1, class_weights: Sequence[float] | None = None,
        hardest: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a segmenter tells at least two classes apart, got {num_classes}")
        *earlier, last = specs.values()
        strides = [spec.stride for spec in specs.values()]
        if len(earlier) != len(skip_channels) or strides != sorted(strides):
            raise ValueError(
                f"OpenMMLab's LR-ASPP takes a tap for each of its {len(skip_channels)} skip_channels, from fine to "
                f'coarse, and then the last one, such as "c1", "c2" and "c5"; got '
                f"{', '.join(f'{name} at stride {spec.stride}' for name, spec in specs.items())}")
        self.taps = tuple(specs)
        self.num_outputs = num_classes
        self.class_weights, self.hardest = class_weights, hardest

        self.reduce = ConvNormAct(last.channels, filters, kernel=1, norm=norm, activation="relu")
        self.gate = nn.Conv2d(last.channels, filters, 1, bias=False)
        self.mix = nn.Conv2d(filters, filters, 1)
        self.skips = nn.ModuleList(
            nn.Conv2d(spec.channels, channels, 1, bias=False)
            for spec, channels in zip(earlier, skip_channels, strict=True))
        self.merges = nn.ModuleList(
            ConvNormAct(filters + channels, filters, kernel=1, norm=norm, activation="relu")
            for channels in skip_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(filters, num_classes, 1)
        self.class_layers = {"classify": 1}

    def forward(self, features: Features) -> OpenMMLabLRASPPRaw:
        """The maps to scores at the cells of the first one."""
        *earlier, last = (features[tap] for tap in self.taps)
        gate = self.gate(window_means(last, WINDOW, WINDOW_STRIDE)).sigmoid()
        if gate.shape[2:] != (1, 1):  # a single cell has the same value everywhere
            gate = _enlarged(gate, last.shape[2:])
        x = self.mix(self.reduce(last) * gate)
        for skip, merge, finer in reversed(list(zip(self.skips, self.merges, earlier, strict=True))):
            x = merge(torch.cat((_enlarged(x, finer.shape[2:]), skip(finer)), 1))
        return OpenMMLabLRASPPRaw(self.classify(self.dropout(x)))

    def loss(self, raw: OpenMMLabLRASPPRaw, targets: LabelTargets, size: Size) -> Losses:
        """Cross entropy at every pixel of the labels; the count is that of the pixels that count."""
        return segmentation_losses(
            raw.logits, targets, class_weights=self.class_weights, hardest=self.hardest)

    def decode(self, raw: OpenMMLabLRASPPRaw, size: Size, *, static: bool = False) -> DenseLogits:
        """The logits, to be enlarged to the image."""
        return DenseLogits(raw.logits.float(), size)


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)
