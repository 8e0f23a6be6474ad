"""Classifier: a class for the whole image from the mean over the last map, what backbones are pre-trained with.

With `hidden` it is MobileNetV3's (Howard et al. 2019, arXiv 1905.02244, Tables 1 and 2, and Figure 5): the last stage
pools first and widens after, where it costs next to nothing; 1280 channels for Large and 1024 for Small, a hard swish
and no BatchNorm, as in torchvision's mobilenet_v3 and TensorFlow's. Without, it is MobileNetV1's and V2's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.ops.losses import classification_losses
from detseg.structures import ClassScores, ClassTargets, Size


class ClassifierRaw(NamedTuple):
    """What the last layer says."""

    logits: Tensor
    """[B, K]."""


class Classifier(Head[ClassTargets, ClassifierRaw, ClassScores]):
    """Classifies images by the mean of the backbone's last map.

    Args:
        specs: the backbone's; the last tap is read.
        num_classes: at least two.
        hidden: channels of a layer before the last one, with a hard swish; 0 has none.
        dropout: the share of features dropped before the last layer. The article's "dropout of 0.8" keeps 0.8.
        label_smoothing: of the loss, see `losses.classification_losses`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, hidden: int = 0, dropout: float = 0.2,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"a classifier tells at least two classes apart, got {num_classes}")
        if hidden < 0:
            raise ValueError(f"hidden is a number of channels, or 0 for no such layer, got {hidden}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is a share of the probability, at least 0 and below 1, got "
                             f"{label_smoothing}")
        *_, self.tap = specs
        self.num_outputs = num_classes
        self.label_smoothing = label_smoothing
        channels = specs[self.tap].channels
        self.hidden = nn.Linear(channels, hidden) if hidden else None
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(hidden or channels, num_classes)
        self.class_layers = {"classify": 1}
        for layer in (self.hidden, self.classify):  # as in torchvision; torch's own grows with fewer channels
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Features) -> ClassifierRaw:
        """The last map to logits."""
        x = features[self.tap].mean((2, 3))
        if self.hidden is not None:
            x = F.hardswish(self.hidden(x))
        return ClassifierRaw(self.classify(self.dropout(x)))

    def loss(self, raw: ClassifierRaw, targets: ClassTargets, size: Size) -> Losses:
        """Cross entropy; the count is that of the images whose class is known."""
        return classification_losses(raw.logits, targets.labels, label_smoothing=self.label_smoothing)

    def decode(self, raw: ClassifierRaw, size: Size, *, static: bool = False) -> ClassScores:
        """Softmax."""
        return ClassScores(raw.logits.float().softmax(1))
