"""The papers' blocks, one definition each.

A block returns a `Parts` bundle: its output, and the two inner activations that heads tap. A block cut short by
`until` builds nothing behind that part, so that a network ends where its last tap is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation: TypeAlias = Literal["relu", "relu6", "hardswish", "none"]
Part: TypeAlias = Literal["expansion", "depthwise", "output"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, never below it and never below 90 % of `channels` (MobileNetV2's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(frozen=True)
class Norm:
    """BatchNorm's two numbers, set explicitly everywhere. `momentum` is PyTorch's: the weight of the new batch."""

    momentum: float
    eps: float

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        """The layer for so many channels."""
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)


class ConvNormAct(nn.Module):
    """Convolution, BatchNorm and activation; padding keeps ceil(size / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int, norm: Norm, activation: Activation,
        stride: int = 1, dilation: int = 1, groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, padding=(kernel - 1) // 2 * dilation,
            dilation=dilation, groups=groups, bias=False,
        )
        self.norm: nn.Module = norm(out_channels)
        self.act: nn.Module = nn.Identity() if activation == "none" else _ACTIVATIONS[activation](inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out

    def fold(self) -> None:
        """Moves the BatchNorm into the convolution, for inference: same outputs up to rounding, one pass less."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


def depthwise_separable(
    in_channels: int, out_channels: int, *, norm: Norm, activation: Activation, kernel: int = 3
) -> nn.Sequential:
    """SSDLite's replacement of a predicting convolution: depthwise with norm and activation, then 1 x 1 with bias."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, kernel=kernel, norm=norm, activation=activation, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    )


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means (MobileNetV3 section 5.2: ReLU, then hard sigmoid)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        gate = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.expand(gate))


class Parts(NamedTuple):
    """What a block gives: the expanded activation, the depthwise output, the output; None where it has none."""

    expansion: Tensor | None
    depthwise: Tensor | None
    output: Tensor | None


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1 x 1, depthwise, (squeeze-excite), project 1 x 1; identity where shapes allow.

    Without expansion (`expanded == in_channels`) the first convolution is left out, as in all published networks.
    With a dilated tail `stride` is 1 and `dilation` spreads the depthwise kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expanded: int, kernel: int, stride: int, norm: Norm,
        activation: Activation, squeezed: int = 0, dilation: int = 1, skip: bool = True, until: Part = "output",
    ) -> None:
        super().__init__()
        self.expand: nn.Module | None = None
        if expanded != in_channels:
            self.expand = ConvNormAct(in_channels, expanded, kernel=1, norm=norm, activation=activation)
        self.depthwise: nn.Module | None = None
        self.squeeze: nn.Module | None = None
        self.project: nn.Module | None = None
        if until != "expansion":
            self.depthwise = ConvNormAct(
                expanded, expanded, kernel=kernel, norm=norm, activation=activation, stride=stride,
                dilation=dilation, groups=expanded,
            )
        if until == "output":
            self.squeeze = SqueezeExcite(expanded, squeezed) if squeezed else None
            self.project = ConvNormAct(expanded, out_channels, kernel=1, norm=norm, activation="none")
        self.skip = skip and stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the parts; expansion at the input's size, the others at ceil(size / stride)."""
        expansion = x if self.expand is None else self.expand(x)
        if self.depthwise is None:
            return Parts(expansion, None, None)
        depthwise = self.depthwise(expansion)
        if self.project is None:
            return Parts(expansion, depthwise, None)
        inner = depthwise if self.squeeze is None else self.squeeze(depthwise)
        output = self.project(inner)
        return Parts(expansion, depthwise, x + output if self.skip else output)


class Pointwise(nn.Module):
    """A network's last 1 x 1 convolution as a block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, kernel=1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to [B, out, H, W] as the only part."""
        return Parts(None, None, self.conv(x))
