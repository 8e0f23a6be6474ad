"""FCN: a fully convolutional network's classifier (Long et al. 2015, arXiv 1411.4038), as torchvision builds it.

Of the paper it keeps the idea, a classifier of every cell enlarged to the image. The strides below 16 that the paper
added from earlier maps are gone; a dilated backbone takes their place, and earlier maps get auxiliary classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import Norm, fcn_classifier
from detseg.ops.losses import segmentation_losses
from detseg.structures import DenseLogits, LabelTargets, Size

NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of torchvision's head: PyTorch's defaults."""


class FCNRaw(NamedTuple):
    """The classifiers' outputs at the strides of their maps."""

    logits: Tensor
    """[B, K, h, w]."""
    auxiliary: tuple[Tensor, ...]
    """Each [B, K, h, w] of an earlier map; empty on copies made for inference."""


class FCN(Head[LabelTargets, FCNRaw, DenseLogits]):
    """Classifies the pixels of the backbone's last map by a 3 x 3 and a 1 x 1 convolution.

    specs: the backbone's; each map before the last gets an auxiliary classifier of the same kind, whose loss counts
    `auxiliary_weight` and which copies for inference do without. dropout: the share of features dropped before a
    classifier. class_weights, hardest: see `losses.segmentation_cross_entropy`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, dropout: float = 0.1,
        auxiliary_weight: float = 0.5, class_weights: Sequence[float] | None = None, hardest: float = 1.0,
        norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a segmenter tells at least two classes apart, got {num_classes}")
        *self.earlier_taps, self.tap = specs
        self.num_outputs = num_classes
        self.auxiliary_weight, self.class_weights, self.hardest = auxiliary_weight, class_weights, hardest
        self.classify = fcn_classifier(specs[self.tap].channels, num_classes, dropout=dropout, norm=norm)
        self.auxiliary = nn.ModuleList(
            fcn_classifier(specs[tap].channels, num_classes, dropout=dropout, norm=norm) for tap in self.earlier_taps)
        self.class_layers = {"classify.2": 1, **{f"auxiliary.{k}.2": 1 for k in range(len(self.auxiliary))}}

    def forward(self, features: Features) -> FCNRaw:
        """Maps by tap to logits."""
        # The classifiers are gone where copies were made for inference, their taps are not.
        earlier = zip(self.auxiliary, self.earlier_taps, strict=False)
        auxiliary = tuple(classify(features[tap]) for classify, tap in earlier)
        return FCNRaw(self.classify(features[self.tap]), auxiliary)

    def loss(self, raw: FCNRaw, targets: LabelTargets, size: Size) -> Losses:
        """Cross entropy at the labels' size; the count is that of the pixels that count."""
        return segmentation_losses(
            raw.logits, targets, class_weights=self.class_weights, hardest=self.hardest, auxiliary=raw.auxiliary,
            auxiliary_weight=self.auxiliary_weight)

    def decode(self, raw: FCNRaw, size: Size, *, static: bool = False) -> DenseLogits:
        """The logits, to be enlarged to the image."""
        return DenseLogits(raw.logits.float(), size)

    def drop_training_parts(self) -> None:
        """Takes out the auxiliary classifiers."""
        self.auxiliary = nn.ModuleList()
        self.class_layers = {"classify.2": 1}
