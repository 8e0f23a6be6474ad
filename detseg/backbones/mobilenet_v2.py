"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detseg.backbones.trunk import Bottleneck, LastConv, ReducedTail, Trunk, check_reduced_tail, check_width
from detseg.layers import ConvNormAct, Norm, Padding, make_divisible

TORCHVISION_NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of torchvision's mobilenet_v2, whose ImageNet weights expect this epsilon."""


class _Stack(NamedTuple):
    expansion: int
    channels: int
    repeats: int
    stride: int


# Table 2, the bottleneck rows: t, c, n, s.
_TABLE = (
    _Stack(1, 16, 1, 1),
    _Stack(6, 24, 2, 2),
    _Stack(6, 32, 3, 2),
    _Stack(6, 64, 4, 2),
    _Stack(6, 96, 3, 1),
    _Stack(6, 160, 3, 2),
    _Stack(6, 320, 1, 1),
)
_STEM_CHANNELS, _LAST_CHANNELS = 32, 1280


def mobilenet_v2(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", scale_last: bool = False, norm: Norm = TORCHVISION_NORM,
    padding: Padding = "symmetric", drop_path: float = 0.0, dilate_first: bool = False,
) -> Trunk:
    """MobileNetV2 up to its last tap; SSDLite taps "c4.expansion" (576 channels) and "c5" (1280).

    width: multiplier of every layer; the last convolution keeps 1280 channels below 1 (the paper) unless
    `scale_last`, as TensorFlow's detection and segmentation models do. reduced_tail: outputs of the stride-32 blocks
    and the last convolution halved (Table 7 of the MobileNetV3 paper, "RF2"); its two meanings coincide here, because
    expansions follow from inputs. Weights: torchvision's `mobilenet_v2-*.pth` fits width 1.
    """
    check_width(width)
    check_reduced_tail(reduced_tail)
    divider = 1 if reduced_tail == "none" else 2
    rows, in_channels, stride_total = [], make_divisible(_STEM_CHANNELS * width), 2
    for stack in _TABLE:
        stride_total *= stack.stride
        out = make_divisible(stack.channels / (divider if stride_total == 32 else 1) * width)
        for number in range(stack.repeats):
            rows.append(Bottleneck(
                kernel=3, expanded=in_channels * stack.expansion, out=out, stride=stack.stride if number == 0 else 1,
                norm=norm, activation="relu6", padding=padding,
            ))
            in_channels = out
    last_width = width if scale_last else max(1.0, width)
    return Trunk(
        ConvNormAct(3, make_divisible(_STEM_CHANNELS * width), kernel=3, stride=2, norm=norm, activation="relu6",
                    padding=padding),
        rows,
        last_conv=LastConv(make_divisible(_LAST_CHANNELS / divider * last_width), norm, "relu6"),
        taps=taps, output_stride=output_stride, drop_path=drop_path, dilate_first=dilate_first,
    )
