"""Inverted bottlenecks computed in parts of their expanded channels: less memory, the same outputs.

Between two narrow maps, a bottleneck makes two wide ones, and treats each of their channels by itself. So some of the
channels can be expanded, convolved and projected at a time, and the projections added up: memory is then that of the
narrow maps and of one part. Source: Sandler et al. 2018, arXiv 1801.04381, section 5.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from detseg.backbones.trunk import Trunk
from detseg.choices import EXECUTIONS, PARTS, Execution
from detseg.layers import ConvNormAct, FusedBottleneck, InvertedResidual, Parts, SqueezeExcite, UniversalBottleneck

Bottleneck: TypeAlias = InvertedResidual | UniversalBottleneck | FusedBottleneck


class SplitBottleneck(nn.Module):
    """A folded block in parts. Behind a squeeze-excite gate, which needs the mean of every channel, the depthwise
    outputs of all parts wait for it; their expansions do not.

    Args:
        block: it has an output, and nothing else of it is tapped.
        number: of parts; fewer where it has fewer channels.
    """

    def __init__(self, block: Bottleneck, number: int) -> None:
        super().__init__()
        start, expand, depthwise, squeeze, scale, skip = _layers(block)
        assert isinstance(block.project, ConvNormAct)
        project = block.project
        self.start, self.squeeze, self.scale, self.skip = start, squeeze, scale, skip
        self.last = project.act
        channels = project.conv.in_channels
        assert isinstance(channels, int)
        self.parts = nn.ModuleList(
            _Part(expand, depthwise, project, int(kept[0]), int(kept[-1]) + 1)
            for kept in torch.arange(channels).tensor_split(min(number, channels)))

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the output alone."""
        started = x if self.start is None else self.start(x)
        first, *others = cast(Sequence[_Part], self.parts)
        if self.squeeze is None:
            output: Tensor = first(started)
            for part in others:
                output += part(started)
        else:
            inner = [part.inner(started) for part in (first, *others)]
            means = torch.cat([one.mean((2, 3), keepdim=True) for one in inner], 1)
            gates = torch.split(self.squeeze.gates(means), [one.shape[1] for one in inner], 1)
            output = first.project(inner[0] * gates[0])
            for part, one, gate in zip(others, inner[1:], gates[1:], strict=True):
                output += part.project(one * gate)
        output = self.scale(self.last(output))
        return Parts(None, None, x + output if self.skip else output)


class _Part(nn.Module):
    """Channels `first` to `end` of the expansion."""

    def __init__(
        self, expand: ConvNormAct | None, depthwise: ConvNormAct | None, project: ConvNormAct, first: int, end: int
    ) -> None:
        super().__init__()
        self.first, self.channels = first, end - first
        self.expand = None if expand is None else _outputs(expand, first, end)
        self.depthwise = None if depthwise is None else _outputs(depthwise, first, end)
        conv = project.conv
        assert isinstance(conv, nn.Conv2d)
        # The bias is added once.
        self.project = _conv(conv, conv.weight[:, first:end], conv.bias if first == 0 else None)

    def inner(self, started: Tensor) -> Tensor:
        """What the block's start gives to the depthwise output of these channels."""
        x = started.narrow(1, self.first, self.channels) if self.expand is None else self.expand(started)
        inner: Tensor = x if self.depthwise is None else self.depthwise(x)
        return inner

    def forward(self, started: Tensor) -> Tensor:
        """What these channels contribute to the projection."""
        contribution: Tensor = self.project(self.inner(started))
        return contribution


def split(network: nn.Module, parts: int) -> None:
    """Puts a `SplitBottleneck` in the place of each block that can be one, in place.

    Args:
        network: folded.
        parts: in how many each block is computed.

    ValueError as `check_splittable` raises it.
    """
    check_splittable(network, parts)
    for trunk, number, block in list(_blocks(network)):
        trunk.blocks[number] = SplitBottleneck(block, parts)


def number_of_parts(execution: Execution, parts: int | None) -> int | None:
    """Of each bottleneck; None: it stays whole. ValueError for another execution, and for parts without "split"."""
    if execution not in EXECUTIONS:
        raise ValueError(f'execution is "whole" or "split", got {execution!r}')
    if execution == "split":
        return PARTS if parts is None else parts
    if parts is not None:
        raise ValueError('parts are of bottlenecks that are split; add --execution split (execution="split")')
    return None


def check_splittable(network: nn.Module, parts: int) -> None:
    """ValueError for fewer than one part, and without blocks that can be split: MobileNetV1 has none, and those of
    another library's trunk are not known."""
    if parts < 1:
        raise ValueError(f"a bottleneck is computed in 1 part or more, got {parts}")
    if next(_blocks(network), None) is None:
        raise ValueError("the network has no inverted bottlenecks of detseg's own, which could be computed in parts")


def _blocks(network: nn.Module) -> Iterator[tuple[Trunk, int, Bottleneck]]:
    """Blocks that can be split: with an output, and nothing else of them is tapped."""
    for trunk in network.modules():
        if isinstance(trunk, Trunk):
            for number, block in enumerate(trunk.blocks):
                tapped = any(part != "output" for _, part in trunk.taps.get(number, ()))
                if isinstance(block, Bottleneck) and block.project is not None and not tapped:
                    yield trunk, number, block


def _layers(block: Bottleneck) -> tuple[
    ConvNormAct | None, ConvNormAct | None, ConvNormAct | None, SqueezeExcite | None, nn.Module, bool
]:
    """What comes before the expansion, the expansion, the depthwise convolution, the gate, what comes behind the
    projection, and whether the input is added."""
    if isinstance(block, InvertedResidual):
        return None, block.expand, block.depthwise, block.squeeze, nn.Identity(), block.skip
    if isinstance(block, UniversalBottleneck):
        return block.start, block.expand, block.middle, None, block.scale, block.skip
    return None, block.expand, None, None, nn.Identity(), False


def _outputs(layer: ConvNormAct, first: int, end: int) -> ConvNormAct:
    """The layer for some of its outputs."""
    conv = layer.conv
    assert isinstance(conv, nn.Conv2d), "blocks are split as they are folded"
    assert isinstance(layer.norm, nn.Identity), "blocks are split as they are folded"
    part = copy.deepcopy(layer)
    part.out_channels = end - first
    part.conv = _conv(conv, conv.weight[first:end], None if conv.bias is None else conv.bias[first:end],
                      depthwise=conv.groups > 1)
    return part


def _conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, depthwise: bool = False) -> nn.Conv2d:
    """The same with some of the weights."""
    out, inputs = weight.shape[0], weight.shape[0] if depthwise else weight.shape[1]
    part = nn.Conv2d(
        inputs, out, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        groups=out if depthwise else 1, bias=bias is not None, device="meta")
    part.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return part
