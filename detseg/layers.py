"""The papers' blocks, one definition each.

A block returns a `Parts` bundle: its output, and the two inner activations that heads tap. A block cut short by
`until` builds nothing behind that part, so that a network ends where its last tap is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import StochasticDepth

Activation: TypeAlias = Literal["relu", "relu6", "hardswish", "gelu", "none"]
Part: TypeAlias = Literal["expansion", "depthwise", "output"]
Padding: TypeAlias = Literal["symmetric", "same"]
"""Where a convolution with stride pads. "symmetric" is PyTorch's habit, the same on all sides; "same" is TensorFlow's,
which pads an even size by one more at the end, and shifts what a network sees by half a cell. Weights know one."""

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": nn.GELU,
    "none": nn.Identity,
}


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
        stride: int = 1, dilation: int = 1, groups: int = 1, padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        # With stride 1 and an odd kernel the two paddings are one.
        self.same = _Same(kernel, stride, dilation) if padding == "same" and stride > 1 else None
        self.conv: nn.Module = nn.Conv2d(
            in_channels, out_channels, kernel, stride=stride, dilation=dilation, groups=groups, bias=False,
            padding=(kernel - 1) // 2 * dilation if self.same is None else 0,
        )
        self.norm: nn.Module = norm(out_channels)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        if self.same is not None:
            x = _pad_same(x, self.same)
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out

    def fold(self) -> None:
        """Moves the BatchNorm into the convolution, for inference: same outputs up to rounding, one pass less."""
        if isinstance(self.norm, nn.BatchNorm2d) and isinstance(self.conv, nn.Conv2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class _Same(NamedTuple):
    """A convolution that pads TensorFlow's way."""

    kernel: int
    stride: int
    dilation: int


def _pad_same(x: Tensor, conv: _Same) -> Tensor:
    """Zeros around x so that the convolution without padding gives ceil(size / stride), the odd one at the end."""
    kernel, stride, dilation = conv
    before_after = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        before_after += [total // 2, total - total // 2]
    return F.pad(x, before_after)


def depthwise_separable(
    in_channels: int, out_channels: int, *, norm: Norm, activation: Activation, kernel: int = 3
) -> nn.Sequential:
    """SSDLite's replacement of a predicting convolution: depthwise with norm and activation, then 1 x 1 with bias."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, kernel=kernel, norm=norm, activation=activation, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    )


def smaller_maps(
    in_channels: int, out_channels: Sequence[int], *, norm: Norm, separable: bool, width: float = 1.0,
    padding: Padding = "symmetric",
) -> tuple[nn.ModuleList, list[int]]:
    """What makes SSD's maps from the backbone's last, each at half the size of the one before; and their channels.

    A 1 x 1 convolution to half of the outputs and a 3 x 3 with stride 2, which is depthwise with a 1 x 1 behind it
    where `separable` (TensorFlow's multi_resolution_feature_maps). width: multiplies the outputs; at least 16 are left.
    """
    maps, made = nn.ModuleList(), [max(16, int(wanted * width)) for wanted in out_channels]
    for out in made:
        inner = out // 2
        layers = [ConvNormAct(in_channels, inner, kernel=1, norm=norm, activation="relu6")]
        if separable:
            layers += [
                ConvNormAct(inner, inner, kernel=3, stride=2, groups=inner, norm=norm, activation="relu6",
                            padding=padding),
                ConvNormAct(inner, out, kernel=1, norm=norm, activation="relu6")]
        else:
            layers.append(ConvNormAct(inner, out, kernel=3, stride=2, norm=norm, activation="relu6", padding=padding))
        maps.append(nn.Sequential(*layers))
        in_channels = out
    return maps, made


def normal_weights(module: nn.Module, *, std: float) -> None:
    """Initialises all convolutions in `module`: normal weights of this std, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def separable_conv(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Keras's SeparableConv2D: depthwise, then 1 x 1 with bias and nothing between, and Keras's initial values.

    Gives ceil(size / stride). With kernel 1 the depthwise part is a factor for each channel.
    """
    depthwise = nn.Conv2d(
        in_channels, in_channels, kernel, stride=stride, padding=(kernel - 1) // 2, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, out_channels, 1)
    for conv in (depthwise, pointwise):
        nn.init.xavier_uniform_(conv.weight)
    assert pointwise.bias is not None
    nn.init.zeros_(pointwise.bias)
    return nn.Sequential(depthwise, pointwise)


def fcn_classifier(in_channels: int, num_classes: int, *, dropout: float, norm: Norm) -> nn.Sequential:
    """torchvision's classifier of pixels: a 3 x 3 convolution to a quarter of the channels, dropout, 1 x 1."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels // 4, kernel=3, norm=norm, activation="relu"),
        nn.Dropout(dropout),
        nn.Conv2d(in_channels // 4, num_classes, 1),
    )


def window_means(x: Tensor, side: int, stride: tuple[int, int]) -> Tensor:
    """Means over square windows, [B, C, rows, columns]; windows are made smaller where the map is."""
    height, width = x.shape[2:]
    if side >= height and side >= width:
        return x.mean((2, 3), keepdim=True)
    return F.avg_pool2d(x, (min(side, height), min(side, width)), stride)


class SharedConv(nn.Module):
    """One convolution for several maps, then each map's own BatchNorm, if there is one, and an activation.

    conv: layers of which the last has `channels` outputs and may have a bias, as in TensorFlow's RetinaNet.
    """

    def __init__(
        self, conv: nn.Sequential, channels: int, *, num_maps: int, norm: Norm | None, activation: Activation
    ) -> None:
        super().__init__()
        self.conv = conv
        self.blocks = nn.ModuleList()
        for _ in range(num_maps):
            if norm is None:
                self.blocks.append(_ACTIVATIONS[activation]())
                continue
            block = ConvNormAct(channels, channels, kernel=1, norm=norm, activation=activation)
            block.conv = nn.Identity()  # until it is folded
            self.blocks.append(block)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each map [B, in, H, W] to what `conv` makes of it, normalised and activated."""
        return [block(self.conv(x)) for block, x in zip(self.blocks, maps, strict=True)]

    def fold(self) -> None:
        """Moves each map's BatchNorm into a copy of the convolution's last layer, for inference: more weights, same
        outputs up to rounding, one pass less."""
        blocks = [block for block in self.blocks
                  if isinstance(block, ConvNormAct) and isinstance(block.conv, nn.Identity)]
        if blocks:
            *rest, last = self.conv
            self.conv = nn.Sequential(*rest)
            for block in blocks:
                block.conv = copy.deepcopy(last)
                block.fold()


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means: reduce, ReLU, expand, gate.

    gate: "hardsigmoid" (MobileNetV3, section 5.2) or "sigmoid" (MnasNet).
    """

    def __init__(self, channels: int, squeezed: int, *, gate: Literal["hardsigmoid", "sigmoid"]) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate: nn.Module = nn.Hardsigmoid() if gate == "hardsigmoid" else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return x * self.gates(x.mean((2, 3), keepdim=True))

    def gates(self, means: Tensor) -> Tensor:
        """[B, C, 1, 1] to the factor of each channel."""
        gates: Tensor = self.gate(self.expand(F.relu(self.reduce(means))))
        return gates


class Parts(NamedTuple):
    """What a block gives: the expanded activation, the depthwise output, the output; None where it has none."""

    expansion: Tensor | None
    depthwise: Tensor | None
    output: Tensor | None


class Place(NamedTuple):
    """What a block gets from its place in a network."""

    stride: int = 1
    """1 where a dilated tail takes the stride away."""
    dilation: int = 1
    """Of the depthwise kernels."""
    until: Part = "output"
    """The last part that is needed; what lies behind it is not built."""
    drop_path: float = 0.0
    """The probability of skipping the block for an image in training (stochastic depth, Huang et al. 2016)."""


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1 x 1, depthwise, (squeeze-excite), project 1 x 1; identity where shapes allow.

    Without expansion (`expanded == in_channels`) the first convolution is left out, as in all published networks.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expanded: int, kernel: int, place: Place, norm: Norm,
        activation: Activation, squeezed: int = 0, gate: Literal["hardsigmoid", "sigmoid"] = "hardsigmoid",
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.expand: ConvNormAct | None = None
        if expanded != in_channels:
            self.expand = ConvNormAct(in_channels, expanded, kernel=1, norm=norm, activation=activation)
        self.depthwise: ConvNormAct | None = None
        self.squeeze: SqueezeExcite | None = None
        self.project: ConvNormAct | None = None
        if place.until != "expansion":
            self.depthwise = ConvNormAct(
                expanded, expanded, kernel=kernel, norm=norm, activation=activation, stride=place.stride,
                dilation=place.dilation, groups=expanded, padding=padding,
            )
        if place.until == "output":
            self.squeeze = SqueezeExcite(expanded, squeezed, gate=gate) if squeezed else None
            self.project = ConvNormAct(expanded, out_channels, kernel=1, norm=norm, activation="none")
        self.skip = place.stride == 1 and in_channels == out_channels
        self.drop_path = StochasticDepth(place.drop_path, "row")

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the parts; expansion at the input's size, the others at ceil(size / stride)."""
        expansion = x if self.expand is None else self.expand(x)
        if self.depthwise is None:
            return Parts(expansion, None, None)
        depthwise = self.depthwise(expansion)
        if self.project is None:
            return Parts(expansion, depthwise, None)
        output = self.project(depthwise if self.squeeze is None else self.squeeze(depthwise))
        return Parts(expansion, depthwise, x + self.drop_path(output) if self.skip else output)


class DepthwiseSeparable(nn.Module):
    """MobileNetV1's block: depthwise, then 1 x 1, each with norm and activation; also MnasNet's first, whose 1 x 1 has
    no activation."""

    def __init__(
        self, in_channels: int, out_channels: int, *, place: Place, norm: Norm, activation: Activation,
        last_activation: Activation, padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels, in_channels, kernel=3, norm=norm, activation=activation, stride=place.stride,
            dilation=place.dilation, groups=in_channels, padding=padding,
        )
        self.project: nn.Module | None = None
        if place.until == "output":
            self.project = ConvNormAct(in_channels, out_channels, kernel=1, norm=norm, activation=last_activation)

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the depthwise output and the output at ceil(size / stride)."""
        depthwise = self.depthwise(x)
        return Parts(None, depthwise, None if self.project is None else self.project(depthwise))


class FusedBottleneck(nn.Module):
    """MobileNetV4's FusedIB: one k x k convolution that expands, and takes the stride, then project 1 x 1.

    activates_output: Conv-S has a plain pair of convolutions in its place, with an activation behind the second.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expanded: int, place: Place, norm: Norm, activation: Activation,
        activates_output: bool, padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.expand = ConvNormAct(
            in_channels, expanded, kernel=3, norm=norm, activation=activation, stride=place.stride,
            dilation=place.dilation, padding=padding,
        )
        self.project = ConvNormAct(
            expanded, out_channels, kernel=1, norm=norm, activation=activation if activates_output else "none")

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the output; the expansion lies behind the stride, so it is no tap."""
        return Parts(None, None, self.project(self.expand(x)))


class LayerScale(nn.Module):
    """A learned factor for each channel, small at first (Touvron et al. 2021)."""

    def __init__(self, channels: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return x * self.gamma.view(1, -1, 1, 1)


class UniversalBottleneck(nn.Module):
    """MobileNetV4's universal inverted bottleneck (section 3): up to two depthwise convolutions around the expansion.

    start, middle: kernels of the depthwise convolutions before and behind the expansion, 0 for none. Both: ExtraDW;
    the middle alone: inverted bottleneck; the start alone: ConvNext-like; none: feed-forward. The stride sits on the
    middle one, and on the start where there is no middle. The start has no activation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expanded: int, start: int, middle: int, place: Place, norm: Norm,
        activation: Activation, layer_scale: bool = False, padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.start: ConvNormAct | None = None
        if start:
            self.start = ConvNormAct(
                in_channels, in_channels, kernel=start, norm=norm, activation="none", groups=in_channels,
                stride=1 if middle else place.stride, dilation=place.dilation, padding=padding,
            )
        self.expand: ConvNormAct | None = None
        self.middle: ConvNormAct | None = None
        self.project: ConvNormAct | None = None
        if place.until != "depthwise" or middle:
            self.expand = ConvNormAct(in_channels, expanded, kernel=1, norm=norm, activation=activation)
        if middle and place.until != "expansion":
            self.middle = ConvNormAct(
                expanded, expanded, kernel=middle, norm=norm, activation=activation, groups=expanded,
                stride=place.stride, dilation=place.dilation, padding=padding,
            )
        if place.until == "output":
            self.project = ConvNormAct(expanded, out_channels, kernel=1, norm=norm, activation="none")
        self.scale: nn.Module = LayerScale(out_channels) if layer_scale and self.project is not None else nn.Identity()
        self.skip = place.stride == 1 and in_channels == out_channels
        self.drop_path = StochasticDepth(place.drop_path, "row")

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to the parts; the depthwise is the middle one, or the start where there is no middle."""
        started = x if self.start is None else self.start(x)
        if self.expand is None:
            return Parts(None, started, None)
        expansion = self.expand(started)
        depthwise = expansion if self.middle is None else self.middle(expansion)
        named = started if self.middle is None else depthwise
        if self.project is None:
            return Parts(expansion, named, None)
        output = self.scale(self.project(depthwise))
        return Parts(expansion, named, x + self.drop_path(output) if self.skip else output)


class MobileAttention(nn.Module):
    """MobileNetV4's mobile multi-query attention (section 4): all heads share one key and one value.

    kv_stride: keys and values come from a map made smaller by a depthwise convolution (asymmetric spatial
    downsampling); queries keep every position.
    """

    def __init__(
        self, channels: int, *, num_heads: int, key_channels: int, kv_stride: int, norm: Norm, place: Place,
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        self.num_heads, self.key_channels = num_heads, key_channels
        self.norm = norm(channels)
        self.query = nn.Conv2d(channels, num_heads * key_channels, 1, bias=False)
        self.smaller_key: nn.Module = nn.Identity()
        self.smaller_value: nn.Module = nn.Identity()
        if kv_stride > 1:
            self.smaller_key, self.smaller_value = (
                ConvNormAct(channels, channels, kernel=3, stride=kv_stride, groups=channels, norm=norm,
                            activation="none", padding=padding)
                for _ in range(2))
        self.key = nn.Conv2d(channels, key_channels, 1, bias=False)
        self.value = nn.Conv2d(channels, key_channels, 1, bias=False)
        self.output = nn.Conv2d(num_heads * key_channels, channels, 1, bias=False)
        self.scale = LayerScale(channels)
        self.drop_path = StochasticDepth(place.drop_path, "row")
        for projection in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, x: Tensor) -> Parts:
        """[B, C, H, W] to the same, as the output."""
        num_images, _, height, width = x.shape
        inner = self.norm(x)
        # One key and value serve all heads, so that the heads are but more queries.
        query = self.query(inner).reshape(num_images, self.num_heads, self.key_channels, -1).transpose(2, 3)
        query = query.reshape(num_images, -1, self.key_channels) * self.key_channels**-0.5
        key = self.key(self.smaller_key(inner)).flatten(2)
        value = self.value(self.smaller_value(inner)).flatten(2).transpose(1, 2)
        # Two products and a softmax instead of scaled_dot_product_attention: phones' runtimes take them as they are.
        mixed = torch.bmm(torch.bmm(query, key).softmax(2), value)
        mixed = mixed.reshape(num_images, self.num_heads, -1, self.key_channels).transpose(2, 3)
        output = self.scale(self.output(mixed.reshape(num_images, -1, height, width)))
        return Parts(None, None, x + self.drop_path(output))


class Pointwise(nn.Module):
    """A network's last 1 x 1 convolution as a block."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, kernel=1, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Parts:
        """[B, in, H, W] to [B, out, H, W] as the only part."""
        return Parts(None, None, self.conv(x))
