"""MobileNetV3-Large, -Small and the minimalistic versions (Howard et al. 2019, arXiv 1905.02244), Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from detseg.backbones.trunk import Bottleneck, LastConv, ReducedTail, Trunk, check_reduced_tail, check_width
from detseg.layers import Activation, ConvNormAct, Norm, Padding, make_divisible

TORCHVISION_NORM = Norm(momentum=0.01, eps=1e-3)
"""BatchNorm of torchvision's mobilenet_v3, as in the paper (average decay 0.99)."""

Widths: TypeAlias = Literal["torchvision", "tensorflow"]


class _Line(NamedTuple):
    kernel: int
    expanded: int
    out: int
    squeeze: bool
    activation: Activation
    stride: int


_RE: Activation = "relu"
_HS: Activation = "hardswish"

_LARGE = (
    _Line(3, 16, 16, False, _RE, 1),
    _Line(3, 64, 24, False, _RE, 2),
    _Line(3, 72, 24, False, _RE, 1),
    _Line(5, 72, 40, True, _RE, 2),
    _Line(5, 120, 40, True, _RE, 1),
    _Line(5, 120, 40, True, _RE, 1),
    _Line(3, 240, 80, False, _HS, 2),
    _Line(3, 200, 80, False, _HS, 1),
    _Line(3, 184, 80, False, _HS, 1),
    _Line(3, 184, 80, False, _HS, 1),
    _Line(3, 480, 112, True, _HS, 1),
    _Line(3, 672, 112, True, _HS, 1),
    _Line(5, 672, 160, True, _HS, 2),
    _Line(5, 960, 160, True, _HS, 1),
    _Line(5, 960, 160, True, _HS, 1),
)

_SMALL = (
    _Line(3, 16, 16, True, _RE, 2),
    _Line(3, 72, 24, False, _RE, 2),
    _Line(3, 88, 24, False, _RE, 1),
    _Line(5, 96, 40, True, _HS, 2),
    _Line(5, 240, 40, True, _HS, 1),
    _Line(5, 240, 40, True, _HS, 1),
    _Line(5, 120, 48, True, _HS, 1),
    _Line(5, 144, 48, True, _HS, 1),
    _Line(5, 288, 96, True, _HS, 2),
    _Line(5, 576, 96, True, _HS, 1),
    _Line(5, 576, 96, True, _HS, 1),
)

_STEM_CHANNELS, _TAIL_BLOCKS, _LAST_EXPANSION = 16, 3, 6


def mobilenet_v3_large(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", minimalistic: bool = False, widths: Widths = "torchvision",
    norm: Norm = TORCHVISION_NORM, padding: Padding = "symmetric", drop_path: float = 0.0, dilate_first: bool = False,
) -> Trunk:
    """MobileNetV3-Large up to its last tap; SSDLite taps "c4.expansion" (672 channels) and "c5" (960, reduced 480).

    reduced_tail: the stride-32 blocks and the last convolution with half the channels. "detection" keeps the first
    expansion, which follows from the input (672); "segmentation" halves it too (336): the paper's two tables count
    different networks. minimalistic: no squeeze-excite, no hard swish, 3 x 3 kernels only. widths: how other widths
    than 1 round; "torchvision" scales the table's expansions, "tensorflow" (and timm) expands the scaled input.
    Weights: torchvision's `mobilenet_v3_large-*.pth` fits width 1, full tail.
    """
    return _mobilenet_v3(
        _LARGE, width=width, taps=taps, output_stride=output_stride, reduced_tail=reduced_tail,
        minimalistic=minimalistic, widths=widths, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first,
    )


def mobilenet_v3_small(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", minimalistic: bool = False, widths: Widths = "torchvision",
    norm: Norm = TORCHVISION_NORM, padding: Padding = "symmetric", drop_path: float = 0.0, dilate_first: bool = False,
) -> Trunk:
    """MobileNetV3-Small up to its last tap; SSDLite taps "c4.expansion" (288 channels) and "c5" (576, reduced 288).

    The arguments are those of `mobilenet_v3_large`. The paper's table ticks squeeze-excite for the last convolution;
    no official code has it, nor has this. Weights: torchvision's `mobilenet_v3_small-*.pth` fits width 1, full tail.
    """
    return _mobilenet_v3(
        _SMALL, width=width, taps=taps, output_stride=output_stride, reduced_tail=reduced_tail,
        minimalistic=minimalistic, widths=widths, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first,
    )


def _mobilenet_v3(
    table: Sequence[_Line], *, width: float, taps: Sequence[str], output_stride: int, reduced_tail: ReducedTail,
    minimalistic: bool, widths: Widths, norm: Norm, padding: Padding, drop_path: float, dilate_first: bool,
) -> Trunk:
    check_width(width)
    check_reduced_tail(reduced_tail)
    rows: list[Bottleneck] = []
    in_channels, table_input = make_divisible(_STEM_CHANNELS * width), _STEM_CHANNELS
    for number, line in enumerate(table):
        in_tail = reduced_tail != "none" and number >= len(table) - _TAIL_BLOCKS
        first_in_tail = number == len(table) - _TAIL_BLOCKS
        halve_expansion = in_tail and not (first_in_tail and reduced_tail == "detection")
        if widths == "tensorflow" and not (first_in_tail and halve_expansion):
            expanded = make_divisible(in_channels * line.expanded / table_input)
        else:
            expanded = make_divisible(line.expanded // (2 if halve_expansion else 1) * width)
        rows.append(Bottleneck(
            kernel=3 if minimalistic else line.kernel,
            expanded=expanded,
            out=make_divisible(line.out // (2 if in_tail else 1) * width),
            stride=line.stride,
            norm=norm,
            activation=_RE if minimalistic else line.activation,
            squeezed=make_divisible(expanded / 4) if line.squeeze and not minimalistic else 0,
            padding=padding,
        ))
        in_channels, table_input = rows[-1].out, line.out
    activation = _RE if minimalistic else _HS
    stem_channels = make_divisible(_STEM_CHANNELS * width)
    return Trunk(
        ConvNormAct(3, stem_channels, kernel=3, stride=2, norm=norm, activation=activation, padding=padding),
        rows,
        last_conv=LastConv(_LAST_EXPANSION * rows[-1].out, norm, activation),
        taps=taps, output_stride=output_stride, drop_path=drop_path, dilate_first=dilate_first,
    )
