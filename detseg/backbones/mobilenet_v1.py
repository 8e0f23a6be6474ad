"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861), Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from detseg.backbones.trunk import ReducedTail, Row, Trunk, check_reduced_tail, check_width
from detseg.layers import Activation, ConvNormAct, DepthwiseSeparable, Norm, Padding, Part, Place, make_divisible

TIMM_NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of timm's mobilenetv1, whose ImageNet weights expect this epsilon; TensorFlow's has 0.001."""

# Table 1: output channels and stride of each depthwise separable block.
_TABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)
_STEM_CHANNELS = 32


@dataclass(frozen=True)
class Separable(Row):
    """A depthwise separable block as a table row."""

    out: int
    stride: int
    norm: Norm
    activation: Activation
    last_activation: Activation
    padding: Padding

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        """The depthwise output; nothing is expanded."""
        return {"depthwise": in_channels}

    def build(self, in_channels: int, place: Place) -> nn.Module:
        """A DepthwiseSeparable."""
        return DepthwiseSeparable(
            in_channels, self.out, place=place, norm=self.norm, activation=self.activation,
            last_activation=self.last_activation, padding=self.padding)


def mobilenet_v1(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric",
    dilate_first: bool = False,
) -> Trunk:
    """MobileNetV1 up to its last tap; SSDLite taps "c4" (512 channels) and "c5" (1024). It has no expansions.

    reduced_tail: the two stride-32 blocks with half the channels; its two meanings coincide. norm: ReLU6 and BatchNorm
    as in timm's mobilenetv1_100, whose weights fit width 1 and expect images in -1..1.
    """
    check_width(width)
    check_reduced_tail(reduced_tail)
    rows, total_stride = [], 2
    for channels, stride in _TABLE:
        total_stride *= stride
        halved = channels // 2 if total_stride == 32 and reduced_tail != "none" else channels
        rows.append(Separable(make_divisible(halved * width), stride, norm, "relu6", "relu6", padding))
    stem = ConvNormAct(3, make_divisible(_STEM_CHANNELS * width), kernel=3, stride=2, norm=norm, activation="relu6",
                       padding=padding)
    return Trunk(stem, rows, taps=taps, output_stride=output_stride, dilate_first=dilate_first)
