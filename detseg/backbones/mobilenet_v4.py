"""MobileNetV4 (Qin et al. 2024, arXiv 2404.10518): Conv-S, Conv-M, Conv-L, Hybrid-M, Hybrid-L.

The tables are those of the paper's appendix (Tables 11 to 15 of the final version), except Hybrid-M: the released code
differs from the printed table, and it is the code that the published parameters and weights belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from detseg.backbones.trunk import LastConv, ReducedTail, Row, Trunk, check_reduced_tail, check_width
from detseg.layers import (
    Activation,
    ConvNormAct,
    FusedBottleneck,
    MobileAttention,
    Norm,
    Padding,
    Part,
    Place,
    UniversalBottleneck,
    make_divisible,
)

TIMM_NORM = Norm(momentum=0.1, eps=1e-5)
"""BatchNorm of timm's mobilenetv4, whose ImageNet weights expect this epsilon; TensorFlow's has 0.001."""


@dataclass(frozen=True)
class _Fused:
    """A 3 x 3 convolution with stride 2 to `expansion` times the input, then 1 x 1."""

    expansion: float
    out: int
    activates_output: bool = False


@dataclass(frozen=True)
class _Universal:
    """Kernels before and behind the expansion (0: none), expansion ratio, outputs, stride."""

    start: int
    middle: int
    expansion: float
    out: int
    stride: int = 1


@dataclass(frozen=True)
class _Attention:
    """Heads, channels of a key, stride of keys and values."""

    num_heads: int
    key_channels: int
    kv_stride: int


_Line: TypeAlias = _Fused | _Universal | _Attention


def _extra(start: int, middle: int, expansion: float, out: int, stride: int = 1) -> _Universal:
    return _Universal(start, middle, expansion, out, stride)


def _inverted(middle: int, expansion: float, out: int) -> _Universal:
    return _Universal(0, middle, expansion, out)


def _convnext(start: int, expansion: float, out: int) -> _Universal:
    return _Universal(start, 0, expansion, out)


def _feedforward(expansion: float, out: int) -> _Universal:
    return _Universal(0, 0, expansion, out)


_CONV_SMALL: tuple[_Line, ...] = (
    _Fused(1, 32, activates_output=True),
    _Fused(3, 64, activates_output=True),
    _extra(5, 5, 3, 96, 2),
    *[_inverted(3, 2, 96)] * 4,
    _convnext(3, 4, 96),
    _extra(3, 3, 6, 128, 2),
    _extra(5, 5, 4, 128),
    _inverted(5, 4, 128),
    _inverted(5, 3, 128),
    *[_inverted(3, 4, 128)] * 2,
)

_CONV_MEDIUM: tuple[_Line, ...] = (
    _Fused(4, 48),
    _extra(3, 5, 4, 80, 2),
    _extra(3, 3, 2, 80),
    _extra(3, 5, 6, 160, 2),
    *[_extra(3, 3, 4, 160)] * 2,
    _extra(3, 5, 4, 160),
    _extra(3, 3, 4, 160),
    _convnext(3, 4, 160),
    _feedforward(2, 160),
    _convnext(3, 4, 160),
    _extra(5, 5, 6, 256, 2),
    _extra(5, 5, 4, 256),
    *[_extra(3, 5, 4, 256)] * 2,
    _feedforward(4, 256),
    _convnext(3, 4, 256),
    _extra(3, 5, 2, 256),
    _extra(5, 5, 4, 256),
    *[_feedforward(4, 256)] * 2,
    _convnext(5, 2, 256),
)

_CONV_LARGE: tuple[_Line, ...] = (
    _Fused(4, 48),
    _extra(3, 5, 4, 96, 2),
    _extra(3, 3, 4, 96),
    _extra(3, 5, 4, 192, 2),
    *[_extra(3, 3, 4, 192)] * 3,
    _extra(3, 5, 4, 192),
    *[_extra(5, 3, 4, 192)] * 5,
    _convnext(3, 4, 192),
    _extra(5, 5, 4, 512, 2),
    *[_extra(5, 5, 4, 512)] * 3,
    _convnext(5, 4, 512),
    _extra(5, 3, 4, 512),
    *[_convnext(5, 4, 512)] * 2,
    _extra(5, 3, 4, 512),
    _extra(5, 5, 4, 512),
    *[_convnext(5, 4, 512)] * 3,
)

_HYBRID_MEDIUM: tuple[_Line, ...] = (
    _Fused(4, 48),
    _extra(3, 5, 4, 80, 2),
    _extra(3, 3, 2, 80),
    _extra(3, 5, 6, 160, 2),
    _feedforward(2, 160),
    _extra(3, 3, 4, 160),
    _extra(3, 5, 4, 160),
    _Attention(4, 64, 2),
    _extra(3, 3, 4, 160),
    _Attention(4, 64, 2),
    _convnext(3, 4, 160),
    _Attention(4, 64, 2),
    _extra(3, 3, 4, 160),
    _Attention(4, 64, 2),
    _convnext(3, 4, 160),
    _extra(5, 5, 6, 256, 2),
    _extra(5, 5, 4, 256),
    *[_extra(3, 5, 4, 256)] * 2,
    _feedforward(2, 256),
    _extra(3, 5, 2, 256),
    _feedforward(2, 256),
    _feedforward(4, 256),
    _Attention(4, 64, 1),
    _convnext(3, 4, 256),
    _Attention(4, 64, 1),
    _extra(5, 5, 4, 256),
    _Attention(4, 64, 1),
    _convnext(5, 4, 256),
    _Attention(4, 64, 1),
    _convnext(5, 4, 256),
)

_HYBRID_LARGE: tuple[_Line, ...] = (
    _Fused(4, 48),
    _extra(3, 5, 4, 96, 2),
    _extra(3, 3, 4, 96),
    _extra(3, 5, 4, 192, 2),
    *[_extra(3, 3, 4, 192)] * 3,
    _extra(3, 5, 4, 192),
    *[_extra(5, 3, 4, 192)] * 2,
    *(_Attention(8, 48, 2), _extra(5, 3, 4, 192)) * 3,
    _Attention(8, 48, 2),
    _convnext(3, 4, 192),
    _extra(5, 5, 4, 512, 2),
    *[_extra(5, 5, 4, 512)] * 3,
    _convnext(5, 4, 512),
    _extra(5, 3, 4, 512),
    *[_convnext(5, 4, 512)] * 2,
    _extra(5, 3, 4, 512),
    _extra(5, 5, 4, 512),
    *(_Attention(8, 64, 1), _convnext(5, 4, 512)) * 4,
)

_LAST_CHANNELS = 960


def mobilenet_v4_conv_small(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric", drop_path: float = 0.0,
    dilate_first: bool = False,
) -> Trunk:
    """Conv-S; SSDLite taps "c4.expansion" (576 channels) and "c5" (960), FPNs "c3", "c4", "c5.bottleneck".

    width: multiplier of every layer; below 1 the stem keeps its 32 channels (timm's rule). c5 is the 960-channel
    convolution, c5.bottleneck the last block. reduced_tail: outputs of the stride-32 blocks and the last convolution
    halved; its two meanings coincide. drop_path: 0 in the paper (Conv-M, Hybrid-M 0.075, the large ones 0.35).
    Weights: timm's `mobilenetv4_conv_small`, and so on for the others, fit width 1.
    """
    return _mobilenet_v4(
        _CONV_SMALL, stem=32, activation="relu", layer_scale=False, width=width, taps=taps,
        output_stride=output_stride, reduced_tail=reduced_tail, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first)


def mobilenet_v4_conv_medium(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric", drop_path: float = 0.0,
    dilate_first: bool = False,
) -> Trunk:
    """Conv-M; SSDLite taps "c4.expansion" (960 channels) and "c5" (960). Arguments: see `mobilenet_v4_conv_small`."""
    return _mobilenet_v4(
        _CONV_MEDIUM, stem=32, activation="relu", layer_scale=False, width=width, taps=taps,
        output_stride=output_stride, reduced_tail=reduced_tail, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first)


def mobilenet_v4_conv_large(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric", drop_path: float = 0.0,
    dilate_first: bool = False,
) -> Trunk:
    """Conv-L; SSDLite taps "c4.expansion" (768 channels) and "c5" (960). Arguments: see `mobilenet_v4_conv_small`."""
    return _mobilenet_v4(
        _CONV_LARGE, stem=24, activation="relu", layer_scale=False, width=width, taps=taps,
        output_stride=output_stride, reduced_tail=reduced_tail, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first)


def mobilenet_v4_hybrid_medium(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric", drop_path: float = 0.0,
    dilate_first: bool = False,
) -> Trunk:
    """Hybrid-M; SSDLite taps "c4.expansion" (960 channels) and "c5" (960). Arguments: see `mobilenet_v4_conv_small`."""
    return _mobilenet_v4(
        _HYBRID_MEDIUM, stem=32, activation="relu", layer_scale=True, width=width, taps=taps,
        output_stride=output_stride, reduced_tail=reduced_tail, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first)


def mobilenet_v4_hybrid_large(
    *, width: float = 1.0, taps: Sequence[str] = ("c2", "c3", "c4", "c5"), output_stride: int = 32,
    reduced_tail: ReducedTail = "none", norm: Norm = TIMM_NORM, padding: Padding = "symmetric", drop_path: float = 0.0,
    dilate_first: bool = False,
) -> Trunk:
    """Hybrid-L, with GELU; SSDLite taps "c4.expansion" (768 channels) and "c5" (960). Arguments: see
    `mobilenet_v4_conv_small`."""
    return _mobilenet_v4(
        _HYBRID_LARGE, stem=24, activation="gelu", layer_scale=True, width=width, taps=taps,
        output_stride=output_stride, reduced_tail=reduced_tail, norm=norm, padding=padding, drop_path=drop_path,
        dilate_first=dilate_first)


@dataclass(frozen=True)
class _FusedRow(Row):
    expanded: int
    out: int
    activates_output: bool
    norm: Norm
    activation: Activation
    padding: Padding
    stride: int = 2

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        return {}

    def build(self, in_channels: int, place: Place) -> nn.Module:
        return FusedBottleneck(
            in_channels, self.out, expanded=self.expanded, place=place, norm=self.norm, activation=self.activation,
            activates_output=self.activates_output, padding=self.padding)


@dataclass(frozen=True)
class _UniversalRow(Row):
    start: int
    middle: int
    expanded: int
    out: int
    stride: int
    layer_scale: bool
    norm: Norm
    activation: Activation
    padding: Padding

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        inner: dict[Part, int] = {"expansion": self.expanded}
        if self.start or self.middle:
            inner["depthwise"] = self.expanded if self.middle else in_channels
        return inner

    def build(self, in_channels: int, place: Place) -> nn.Module:
        return UniversalBottleneck(
            in_channels, self.out, expanded=self.expanded, start=self.start, middle=self.middle, place=place,
            norm=self.norm, activation=self.activation, layer_scale=self.layer_scale, padding=self.padding)


@dataclass(frozen=True)
class _AttentionRow(Row):
    spec: _Attention
    out: int
    norm: Norm
    padding: Padding
    stride: int = 1

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        return {}

    def build(self, in_channels: int, place: Place) -> nn.Module:
        return MobileAttention(
            in_channels, num_heads=self.spec.num_heads, key_channels=self.spec.key_channels,
            kv_stride=self.spec.kv_stride, norm=self.norm, place=place, padding=self.padding)


def _mobilenet_v4(
    table: Sequence[_Line], *, stem: int, activation: Activation, layer_scale: bool, width: float, taps: Sequence[str],
    output_stride: int, reduced_tail: ReducedTail, norm: Norm, padding: Padding, drop_path: float, dilate_first: bool,
) -> Trunk:
    check_width(width)
    check_reduced_tail(reduced_tail)
    divider = 1 if reduced_tail == "none" else 2
    stem_channels = make_divisible(stem * max(1.0, width))
    rows: list[Row] = []
    in_channels, total_stride = stem_channels, 2
    for line in table:
        if isinstance(line, _Attention):
            rows.append(_AttentionRow(line, in_channels, norm, padding))
            continue
        total_stride *= 2 if isinstance(line, _Fused) else line.stride
        out = make_divisible(line.out / (divider if total_stride == 32 else 1) * width)
        if isinstance(line, _Fused):
            # Conv-S names the channels of its first convolutions (32 and 96), the others the ratio to their input.
            base = 32 * width if line.activates_output else in_channels
            rows.append(_FusedRow(
                make_divisible(base * line.expansion), out, line.activates_output, norm, activation, padding))
        else:
            rows.append(_UniversalRow(
                line.start, line.middle, make_divisible(in_channels * line.expansion), out, line.stride, layer_scale,
                norm, activation, padding))
        in_channels = out
    return Trunk(
        ConvNormAct(3, stem_channels, kernel=3, stride=2, norm=norm, activation=activation, padding=padding), rows,
        last_conv=LastConv(make_divisible(_LAST_CHANNELS / divider * width), norm, activation), taps=taps,
        output_stride=output_stride, drop_path=drop_path, dilate_first=dilate_first)
