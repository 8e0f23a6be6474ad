"""DeepLabV3: atrous spatial pyramid pooling (Chen et al. 2017, arXiv 1706.05587, section 3.3).

A pyramid looks at the last map in five ways: point by point, with three atrous 3 x 3 convolutions, and as a whole,
averaged. Two wirings are in the world, and this head is both. torchvision's (deeplabv3_mobilenet_v3_large): rates 12,
24 and 36, one more 3 x 3 convolution behind the pyramid, half of the features dropped in training, and an auxiliary
classifier on an earlier map. TensorFlow's, which the MobileNetV2 paper measured (Table 7): rates 6, 12 and 18 at
stride 16 and the double at stride 8, a tenth dropped, and the classifier right behind the pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import ConvNormAct, Norm, fcn_classifier
from detseg.ops.losses import segmentation_losses
from detseg.structures import DenseLogits, LabelTargets, Size

NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of torchvision's head, PyTorch's defaults; TensorFlow's has the same epsilon and a decay of 0.9997."""


class DeepLabV3Raw(NamedTuple):
    """The classifiers' outputs at the strides of their maps."""

    logits: Tensor
    """[B, K, h, w]."""
    auxiliary: tuple[Tensor, ...]
    """Each [B, K, h, w] of an earlier map; empty on copies made for inference."""


class DeepLabV3(Head[LabelTargets, DeepLabV3Raw, DenseLogits]):
    """Classifies the pixels of the backbone's last map through a pyramid of atrous convolutions.

    specs: the backbone's; each map before the last gets an auxiliary classifier (torchvision's FCN head), whose loss
    counts `auxiliary_weight` and which copies for inference do without. rates: the dilations of the 3 x 3 convolutions.
    channels: of every branch. refine: whether a 3 x 3 convolution lies between the pyramid and the classifier. dropout:
    the share of features dropped behind the pyramid. class_weights, hardest: see `losses.segmentation_cross_entropy`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, rates: Sequence[int] = (12, 24, 36),
        channels: int = 256, refine: bool = True, dropout: float = 0.5, auxiliary_weight: float = 0.5,
        class_weights: Sequence[float] | None = None, hardest: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a segmenter tells at least two classes apart, got {num_classes}")
        if not rates or min(rates) < 1:
            raise ValueError(f"rates are dilations of at least 1, and at least one of them, got {tuple(rates)}")
        *self.earlier_taps, self.tap = specs
        self.num_outputs = num_classes
        self.auxiliary_weight, self.class_weights, self.hardest = auxiliary_weight, class_weights, hardest

        in_channels = specs[self.tap].channels
        self.point = ConvNormAct(in_channels, channels, kernel=1, norm=norm, activation="relu")
        self.atrous = nn.ModuleList(
            ConvNormAct(in_channels, channels, kernel=3, dilation=rate, norm=norm, activation="relu") for rate in rates)
        self.pooled = ConvNormAct(in_channels, channels, kernel=1, norm=norm, activation="relu")
        self.project = ConvNormAct((len(rates) + 2) * channels, channels, kernel=1, norm=norm, activation="relu")
        self.dropout = nn.Dropout(dropout)
        self.refine: nn.Module = nn.Identity()
        if refine:
            self.refine = ConvNormAct(channels, channels, kernel=3, norm=norm, activation="relu")
        self.classify = nn.Conv2d(channels, num_classes, 1)
        self.auxiliary = nn.ModuleList(
            fcn_classifier(specs[tap].channels, num_classes, dropout=0.1, norm=norm) for tap in self.earlier_taps)
        self.class_layers = {"classify": 1, **{f"auxiliary.{k}.2": 1 for k in range(len(self.auxiliary))}}

    def forward(self, features: Features) -> DeepLabV3Raw:
        """Maps by tap to logits."""
        x = self.dropout(self.project(self._pyramid(features[self.tap])))
        # The classifiers are gone where copies were made for inference, their taps are not.
        earlier = zip(self.auxiliary, self.earlier_taps, strict=False)
        auxiliary = tuple(classify(features[tap]) for classify, tap in earlier)
        return DeepLabV3Raw(self.classify(self.refine(x)), auxiliary)

    def loss(self, raw: DeepLabV3Raw, targets: LabelTargets, size: Size) -> Losses:
        """Cross entropy at the labels' size; the count is that of the pixels that count."""
        return segmentation_losses(
            raw.logits, targets, class_weights=self.class_weights, hardest=self.hardest, auxiliary=raw.auxiliary,
            auxiliary_weight=self.auxiliary_weight)

    def decode(self, raw: DeepLabV3Raw, size: Size, *, static: bool = False) -> DenseLogits:
        """The logits, to be enlarged to the image."""
        return DenseLogits(raw.logits.float(), size)

    def drop_training_parts(self) -> None:
        """Takes out the auxiliary classifiers."""
        self.auxiliary = nn.ModuleList()
        self.class_layers = {"classify": 1}

    def _pyramid(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to the branches' features side by side."""
        if self.training and x.shape[0] == 1:  # len() would record the number of images
            raise ValueError(
                "DeepLabV3 cannot be trained on one image at a time: BatchNorm behind the pooling has one value of "
                "each channel for an image and needs at least two; raise batch_size, or lower accumulate")
        point = self.point(x)
        # Enlarging one cell bilinearly is repeating it; an expanded one would cost `cat` the channels_last layout.
        whole = self.pooled(x.mean((2, 3), keepdim=True)) + torch.zeros_like(point)
        return torch.cat([point, *(branch(x) for branch in self.atrous), whole], 1)
