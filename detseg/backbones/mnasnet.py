"""MnasNet-A1 and -B1 (Tan et al. 2019, arXiv 1807.11626), Figure 7; the numbers are those of the authors' code.

torchvision's `mnasnet1_0` is B1, timm's `semnasnet_100` is A1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from detseg.backbones.mobilenet_v1 import Separable
from detseg.backbones.trunk import Bottleneck, LastConv, ReducedTail, Row, Trunk, check_reduced_tail, check_width
from detseg.layers import ConvNormAct, Norm, Padding, make_divisible

NORM = Norm(momentum=0.01, eps=1e-5)
"""The authors' average decay of 0.99, with the epsilon that published PyTorch weights expect (the authors' is 0.001).
torchvision's own momentum is 0.0003, which a run of less than 10,000 steps never gets over."""


class _Stack(NamedTuple):
    repeats: int
    kernel: int
    expansion: int
    channels: int
    stride: int
    squeeze: bool


_A1 = (
    _Stack(2, 3, 6, 24, 2, False),
    _Stack(3, 5, 3, 40, 2, True),
    _Stack(4, 3, 6, 80, 2, False),
    _Stack(2, 3, 6, 112, 1, True),
    _Stack(3, 5, 6, 160, 2, True),
    _Stack(1, 3, 6, 320, 1, False),
)

_B1 = (
    _Stack(3, 3, 3, 24, 2, False),
    _Stack(3, 5, 3, 40, 2, False),
    _Stack(3, 5, 6, 80, 2, False),
    _Stack(2, 3, 6, 96, 1, False),
    _Stack(4, 5, 6, 192, 2, False),
    _Stack(1, 3, 6, 320, 1, False),
)

_STEM_CHANNELS, _FIRST_CHANNELS, _LAST_CHANNELS = 32, 16, 1280


def mnasnet_a1(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", scale_last: bool = False,
    squeeze_rounding: Literal["floor", "divisible"] = "floor", norm: Norm = NORM, padding: Padding = "symmetric",
    drop_path: float = 0.0, dilate_first: bool = False,
) -> Trunk:
    """MnasNet-A1, with squeeze-and-excite; SSDLite taps "c4.expansion" (672 channels) and "c5" (1280).

    squeeze_rounding: a gate's inner channels are a quarter of the block's input, rounded down as in the authors' code
    and timm's weights, or to a multiple of 8, which alone gives the parameters of the MobileNetV3 paper's Table 6.
    scale_last: whether the last convolution scales too, as in detection; classifiers keep 1280. reduced_tail: outputs
    of the stride-32 blocks and the last convolution halved; its two meanings coincide. drop_path: 0.2 in the paper.
    Weights: timm's `semnasnet_100` fits width 1.
    """
    return _mnasnet(
        _A1, width=width, taps=taps, output_stride=output_stride, reduced_tail=reduced_tail, scale_last=scale_last,
        squeeze_rounding=squeeze_rounding, norm=norm, padding=padding, drop_path=drop_path, dilate_first=dilate_first)


def mnasnet_b1(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", scale_last: bool = False, norm: Norm = NORM, padding: Padding = "symmetric",
    drop_path: float = 0.0, dilate_first: bool = False,
) -> Trunk:
    """MnasNet-B1, without squeeze-and-excite; SSDLite taps "c4.expansion" (576 channels) and "c5" (1280).

    The arguments are those of `mnasnet_a1`. Weights: torchvision's `mnasnet1_0` and its other widths.
    """
    return _mnasnet(
        _B1, width=width, taps=taps, output_stride=output_stride, reduced_tail=reduced_tail, scale_last=scale_last,
        squeeze_rounding="floor", norm=norm, padding=padding, drop_path=drop_path, dilate_first=dilate_first)


def _mnasnet(
    table: Sequence[_Stack], *, width: float, taps: Sequence[str], output_stride: int, reduced_tail: ReducedTail,
    scale_last: bool, squeeze_rounding: Literal["floor", "divisible"], norm: Norm, padding: Padding, drop_path: float,
    dilate_first: bool,
) -> Trunk:
    check_width(width)
    check_reduced_tail(reduced_tail)
    divider = 1 if reduced_tail == "none" else 2
    in_channels, total_stride = make_divisible(_FIRST_CHANNELS * width), 2
    rows: list[Row] = [Separable(in_channels, 1, norm, "relu", "none", padding)]
    for stack in table:
        total_stride *= stack.stride
        out = make_divisible(stack.channels / (divider if total_stride == 32 else 1) * width)
        for number in range(stack.repeats):
            quarter = in_channels / 4
            squeezed = max(1, int(quarter)) if squeeze_rounding == "floor" else make_divisible(quarter)
            rows.append(Bottleneck(
                kernel=stack.kernel, expanded=in_channels * stack.expansion, out=out,
                stride=stack.stride if number == 0 else 1, norm=norm, activation="relu",
                squeezed=squeezed if stack.squeeze else 0, gate="sigmoid", padding=padding,
            ))
            in_channels = out
    last_width = width if scale_last else 1.0
    stem = ConvNormAct(3, make_divisible(_STEM_CHANNELS * width), kernel=3, stride=2, norm=norm, activation="relu",
                       padding=padding)
    return Trunk(
        stem, rows, last_conv=LastConv(make_divisible(_LAST_CHANNELS / divider * last_width), norm, "relu"), taps=taps,
        output_stride=output_stride, drop_path=drop_path, dilate_first=dilate_first)
