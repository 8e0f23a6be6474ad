"""From a paper's table to a network: strides, dilation, taps, and nothing behind the last tap.

A table is a list of rows. A row knows its stride and how to build its block; the trunk decides what stride and
dilation it gets under an output stride, which of its parts are tapped, and where the network ends.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from detseg.interfaces import Backbone, Features, FeatureSpec
from detseg.layers import (
    Activation,
    ConvNormAct,
    InvertedResidual,
    LayerScale,
    Norm,
    Padding,
    Part,
    Place,
    Pointwise,
)

ReducedTail: TypeAlias = Literal["none", "detection", "segmentation"]
"""Whether the stride-32 blocks and the last convolution have half their channels, and how (MobileNetV3 section 6):
for detection the first expansion of the tail, which follows from its input, is kept; for segmentation it is halved
too."""


class Row(ABC):
    """One line of a paper's table."""

    stride: int
    """1 or 2."""

    out: int
    """Output channels."""

    @abstractmethod
    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        """Channels of each inner part that can be tapped; "expansion" only where it lies before the stride."""

    @abstractmethod
    def build(self, in_channels: int, place: Place) -> nn.Module:
        """The block; its forward gives `layers.Parts`."""


_STEM = -1
"""The stem's number among the blocks."""


class _Tap(NamedTuple):
    block: int
    part: Part
    spec: FeatureSpec


class Trunk(Backbone):
    """A stem at stride 2 followed by blocks, tapped by name (see interfaces.Backbone for the names).

    rows: the table after the stem. last_conv: the 1 x 1 convolution before pooling; it is then `c5`, and the last
    bottleneck's output stays reachable as `c5.bottleneck`. taps: in any order, at least one. output_stride: 32, 16 or
    8; below 32 the last strides become dilation. dilate_first: whether the block that loses its stride is dilated
    itself, as torchvision does; TensorFlow dilates only the blocks after it, which keeps what its kernel saw.
    drop_path: the last block's probability of stochastic depth; it grows linearly from 0 at the first.
    """

    def __init__(
        self, stem: ConvNormAct, rows: Sequence[Row], *, taps: Sequence[str], output_stride: int = 32,
        last_conv: Row | None = None, dilate_first: bool = False, drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if output_stride not in (32, 16, 8):
            raise ValueError(f"output_stride must be 32, 16 or 8, got {output_stride}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {drop_path}")
        placed = _place(rows, output_stride=output_stride, dilate_first=dilate_first)
        if last_conv is not None:
            placed.append(_Placed(last_conv, 1, 1, placed[-1].total_stride, placed[-1].stage))
        known = _name_taps(placed, in_channels=stem.out_channels, has_last_conv=last_conv is not None)
        self.taps = _choose(known, taps)
        self.specs = {name: known[name].spec for name in taps}

        order: tuple[Part, ...] = ("expansion", "depthwise", "output")
        end_block, end_part = max((known[name].block, order.index(known[name].part)) for name in taps)
        self.stem = stem
        self.blocks = nn.ModuleList()
        channels = stem.out_channels
        for number, (row, stride, dilation, _, _) in enumerate(placed[: end_block + 1]):
            until = order[end_part] if number == end_block else "output"
            self.blocks.append(row.build(channels, Place(stride, dilation, until, drop_path * number / len(rows))))
            channels = row.out

    def forward(self, images: Tensor) -> Features:
        """Normalised images float [B, 3, H, W] to one map per tap."""
        x = self.stem(images)
        found: Features = {name: x for name, _ in self.taps.get(_STEM, ())}
        for number, block in enumerate(self.blocks):
            parts = block(x)
            for name, part in self.taps.get(number, ()):
                found[name] = getattr(parts, part)
            x = parts.output
        return {name: found[name] for name in self.specs}


class _Placed(NamedTuple):
    row: Row
    stride: int
    dilation: int
    total_stride: int
    stage: int


def _place(rows: Sequence[Row], *, output_stride: int, dilate_first: bool) -> list[_Placed]:
    """Gives each row the stride and dilation it has under an output stride, and its stage."""
    placed = []
    total_stride, dilation, stage = 2, 1, 1
    for row in rows:
        stage += row.stride == 2
        if row.stride == 2 and total_stride == output_stride:
            own = dilation * 2 if dilate_first else dilation
            placed.append(_Placed(row, 1, own, total_stride, stage))
            dilation *= 2
        else:
            total_stride *= row.stride
            placed.append(_Placed(row, row.stride, dilation, total_stride, stage))
    return placed


def _name_taps(placed: Sequence[_Placed], *, in_channels: int, has_last_conv: bool) -> dict[str, _Tap]:
    """Every tap the network has."""
    taps = {"c1": _Tap(_STEM, "output", FeatureSpec(in_channels, 2))}
    bottlenecks = placed[:-1] if has_last_conv else placed
    stride_before, stage_before = 2, 1
    for number, (row, _, _, total_stride, stage) in enumerate(bottlenecks):
        inner = row.inner_channels(in_channels)
        if stage != stage_before and "expansion" in inner:
            taps[f"c{stage_before}.expansion"] = _Tap(
                number, "expansion", FeatureSpec(inner["expansion"], stride_before))
        if stage != stage_before:
            taps[f"c{stage}.first"] = _Tap(number, "output", FeatureSpec(row.out, total_stride))
        if "depthwise" in inner:
            taps[f"c{stage}.depthwise"] = _Tap(number, "depthwise", FeatureSpec(inner["depthwise"], total_stride))
        taps[f"c{stage}"] = _Tap(number, "output", FeatureSpec(row.out, total_stride))
        in_channels, stride_before, stage_before = row.out, total_stride, stage
    if has_last_conv:
        last = placed[-1]
        taps[f"c{last.stage}.bottleneck"] = taps[f"c{last.stage}"]
        taps[f"c{last.stage}"] = _Tap(
            len(placed) - 1, "output", FeatureSpec(last.row.out, last.total_stride))
    return taps


def _choose(known: dict[str, _Tap], wanted: Sequence[str]) -> dict[int, list[tuple[str, Part]]]:
    """The wanted taps by block; a ValueError lists those that exist."""
    if not wanted:
        raise ValueError(f"at least one tap is needed; this network has {', '.join(sorted(known))}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"taps must differ, got {', '.join(wanted)}")
    chosen: dict[int, list[tuple[str, Part]]] = {}
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"no tap {name!r}{hint}; this network has {', '.join(sorted(known))}")
        chosen.setdefault(known[name].block, []).append((name, known[name].part))
    return chosen


def zero_init_residual(backbone: Trunk) -> Trunk:
    """Makes each block with a skip begin as the identity, in place: the last BatchNorm of its residual branch starts
    with weights of 0 (Goyal et al. 2017, arXiv 1706.02677, section 5.1).

    For networks that learn from scratch; published weights replace it. Branches with layer scale begin small as they
    are. ValueError where no block has a skip.
    """
    blocks = [block for block in backbone.blocks if getattr(block, "skip", False)]
    if not blocks:
        raise ValueError("no block of this backbone has a skip, so that none can begin as the identity")
    for block in blocks:
        project, scale = block.project, getattr(block, "scale", None)
        if isinstance(project, ConvNormAct) and not isinstance(scale, LayerScale):
            assert isinstance(project.norm, nn.BatchNorm2d), "it is not folded yet"
            nn.init.zeros_(project.norm.weight)
    return backbone


@dataclass(frozen=True)
class Bottleneck(Row):
    """An inverted residual as a table row; `expanded` and `squeezed` are channels, `squeezed` 0 means no gate."""

    kernel: int
    expanded: int
    out: int
    stride: int
    norm: Norm
    activation: Activation
    squeezed: int = 0
    gate: Literal["hardsigmoid", "sigmoid"] = "hardsigmoid"
    padding: Padding = "symmetric"

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        """Both inner parts, or the depthwise alone where the block does not expand."""
        depthwise: dict[Part, int] = {"depthwise": self.expanded}
        return depthwise if self.expanded == in_channels else {"expansion": self.expanded, **depthwise}

    def build(self, in_channels: int, place: Place) -> nn.Module:
        """An InvertedResidual."""
        return InvertedResidual(
            in_channels, self.out, expanded=self.expanded, kernel=self.kernel, place=place, norm=self.norm,
            activation=self.activation, squeezed=self.squeezed, gate=self.gate, padding=self.padding,
        )


@dataclass(frozen=True)
class LastConv(Row):
    """The 1 x 1 convolution before pooling as a table row."""

    out: int
    norm: Norm
    activation: Activation
    stride: int = 1

    def inner_channels(self, in_channels: int) -> dict[Part, int]:
        """None: it is one layer."""
        return {}

    def build(self, in_channels: int, place: Place) -> nn.Module:
        """A Pointwise."""
        return Pointwise(in_channels, self.out, norm=self.norm, activation=self.activation)


def check_reduced_tail(tail: ReducedTail) -> None:
    """A ValueError unless it is one of the three."""
    if tail not in ("none", "detection", "segmentation"):
        raise ValueError(f'reduced_tail must be "none", "detection" or "segmentation", got {tail!r}')


def check_width(width: float) -> None:
    """A ValueError where a width multiplier leaves no sensible network."""
    if not 0.05 <= width <= 8:
        raise ValueError(f"width must lie between 0.05 and 8, got {width}")
