"""LR-ASPP: a gated 1 x 1 convolution and one skip (Howard et al. 2019, arXiv 1905.02244, section 6.4 and Figure 10).

The defaults are the wiring that the paper's numbers belong to, that of TensorFlow's DeepLab (mobilenet_v3_large_seg):
the gate is computed from means over large windows, by a convolution with bias and a hard sigmoid; the low-level
features are a depthwise output at stride 8; maps are enlarged corner to corner. torchvision's
lraspp_mobilenet_v3_large is `pooling="global", gate="sigmoid", gate_bias=False, align_corners=False`, on the taps
"c3.first" and "c5" of a whole tail with `dilate_first`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from detseg.interfaces import Features, FeatureSpec, Head, Losses
from detseg.layers import ConvNormAct, Norm, window_means
from detseg.ops.losses import segmentation_losses
from detseg.structures import DenseLogits, LabelTargets, Size

NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of torchvision's head. TensorFlow's epsilon is the same; its average (decay 0.9997) has not forgotten the
untrained network after some thousand steps."""

Pooling: TypeAlias = Literal["windows", "global"]
Gate: TypeAlias = Literal["hardsigmoid", "sigmoid"]


class _Windows(NamedTuple):
    """Square windows and the steps between them, in cells of the map."""

    side: int
    stride: Size


# By output stride. 49 = ceil(769 / 16), 25 = ceil(769 / 32): the map of a training crop. The stride 4 x 5 is that of
# TensorFlow's published checkpoints. At stride 8 there are none; mmsegmentation and PaddleSeg kept the 49.
_WINDOWS = {8: _Windows(49, (16, 20)), 16: _Windows(49, (16, 20)), 32: _Windows(25, (4, 5))}


class LRASPPRaw(NamedTuple):
    """What the classifier says at the cells of the low-level map."""

    logits: Tensor
    """[B, K, h, w]."""


class LRASPP(Head[LabelTargets, LRASPPRaw, DenseLogits]):
    """Weighs the channels of the last map by what lies around, and adds what the low-level map says.

    specs: two taps, the low-level one and the last. filters: channels inside ("F" in the paper's Table 7). pooling:
    "windows" as in the paper, made smaller where a map is; "global" is one window over everything. gate, gate_bias: of
    the convolution behind it. align_corners: how maps and scores are enlarged. class_weights, hardest: of the loss, see
    `losses.segmentation_cross_entropy`.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], num_classes: int, *, filters: int = 128, pooling: Pooling = "windows",
        gate: Gate = "hardsigmoid", gate_bias: bool = True, align_corners: bool = True,
        class_weights: Sequence[float] | None = None, hardest: float = 1.0, norm: Norm = NORM,
    ) -> None:
        super().__init__()
        if len(specs) != 2:
            raise ValueError(f'LR-ASPP takes two taps, such as "c3.depthwise" and "c5", got {", ".join(specs)}')
        (self.low_tap, low), (self.high_tap, high) = specs.items()
        if low.stride > high.stride or high.stride not in _WINDOWS:
            raise ValueError(f"LR-ASPP takes its low-level tap first and then the last one, at stride 8, 16 or 32; got "
                             f"{self.low_tap} at stride {low.stride}, {self.high_tap} at stride {high.stride}")
        self.num_outputs = num_classes
        self.windows = _WINDOWS[high.stride] if pooling == "windows" else None
        self.align_corners, self.class_weights, self.hardest = align_corners, class_weights, hardest

        self.reduce = ConvNormAct(high.channels, filters, kernel=1, norm=norm, activation="relu")
        self.gate = nn.Conv2d(high.channels, filters, 1, bias=gate_bias)
        self.gate_act: nn.Module = nn.Hardsigmoid() if gate == "hardsigmoid" else nn.Sigmoid()
        self.low = nn.Conv2d(low.channels, num_classes, 1)
        self.high = nn.Conv2d(filters, num_classes, 1)
        self.class_layers = {"low": 1, "high": 1}

    def forward(self, features: Features) -> LRASPPRaw:
        """The two maps to scores at the cells of the low-level one."""
        low, high = features[self.low_tap], features[self.high_tap]
        gate = self.gate_act(self.gate(self._pooled(high)))
        x = self.reduce(high)
        x = self._enlarged(x * self._enlarged(gate, x.shape[2:]), low.shape[2:])
        return LRASPPRaw(self.low(low) + self.high(x))

    def loss(self, raw: LRASPPRaw, targets: LabelTargets, size: Size) -> Losses:
        """Cross entropy at every pixel of the labels; the count is that of the pixels that count."""
        return segmentation_losses(
            raw.logits, targets, class_weights=self.class_weights, hardest=self.hardest,
            align_corners=self.align_corners)

    def decode(self, raw: LRASPPRaw, size: Size, *, static: bool = False) -> DenseLogits:
        """The logits, to be enlarged to the image."""
        return DenseLogits(raw.logits.float(), size, align_corners=self.align_corners)

    def _pooled(self, x: Tensor) -> Tensor:
        """[B, C, rows, columns]."""
        return x.mean((2, 3), keepdim=True) if self.windows is None else window_means(x, *self.windows)

    def _enlarged(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Bilinear; a single cell stays what it is, because it has the same value everywhere."""
        if x.shape[2:] == (1, 1):
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
