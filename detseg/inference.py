"""Networks made ready for inference: BatchNorm folded, and on a CPU fused for oneDNN.

Fused: convolution, bias and activation in one oneDNN call, with weights laid out once, which is what torch's own
compiler emits for x86 CPUs, without compiling. On SSDLite V3-Large at one thread the network took 0.71 of the folded
network's time, and Faster R-CNN's first fully connected layer, on 150 regions, 0.43. Not for export: the operators are
torch's CPU backend's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detseg.backbones.taps import TappedTrunk
from detseg.layers import ConvNormAct, SharedConv

_ONEDNN: dict[type[nn.Module], tuple[str, list[float], str]] = {
    nn.Identity: ("none", [], ""),
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.GELU: ("gelu", [], "none"),
}
"""oneDNN's name of an activation, its numbers and its algorithm."""


def can_fuse(device: torch.device) -> bool:
    """Whether this build of torch has the operators for this device."""
    return (
        device.type == "cpu" and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"))


def fold(network: nn.Module) -> None:
    """Moves every BatchNorm that can be into its convolution, in place; the network is in evaluation mode from then on,
    without gradients, and channels last."""
    network.eval().requires_grad_(requires_grad=False)
    for module in list(network.modules()):  # folding replaces modules
        if isinstance(module, ConvNormAct | SharedConv | TappedTrunk):
            module.fold()
    network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def fuse(network: nn.Module, images: Tensor) -> None:
    """Replaces the convolutions and fully connected layers of a folded float32 network on the CPU, in place; a tapped
    trunk stays as it is, and so do convolutions that a forward pass does not use.

    images: what the network takes, of the size it will mostly get: oneDNN lays weights out for the size of a map, and
    for another one may take twice the time (MobileNetV2: 65 ms for 28 folded, and 19 with the sizes known).
    """
    sizes: dict[nn.Module, list[int]] = {}
    hooks = [module.register_forward_pre_hook(partial(_note, sizes))
             for module in network.modules() if type(module) is nn.Conv2d]
    network(images)
    for hook in hooks:
        hook.remove()
    _replace(network, sizes)


def _note(sizes: dict[nn.Module, list[int]], module: nn.Module, given: tuple[Any, ...]) -> None:
    """Keeps the size of the first map of a convolution; of shared ones, the largest comes first."""
    sizes.setdefault(module, list(given[0].shape))


def _replace(network: nn.Module, sizes: Mapping[nn.Module, list[int]]) -> None:
    for name, child in list(network.named_children()):
        if isinstance(child, ConvNormAct):
            conv, act = child.conv, child.act
            if conv in sizes and isinstance(child.norm, nn.Identity) and type(act) in _ONEDNN:
                assert isinstance(conv, nn.Conv2d)
                child.conv, child.act = _FusedConv(conv, act, sizes[conv]), nn.Identity()
        elif type(child) is nn.Conv2d and child in sizes:
            setattr(network, name, _FusedConv(child, nn.Identity(), sizes[child]))
        elif type(child) is nn.Linear:
            setattr(network, name, _LaidOutLinear(child))
        elif not isinstance(child, TappedTrunk):
            _replace(child, sizes)


class _FusedConv(nn.Module):
    """A convolution with an activation behind it."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module, size: list[int]) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups = conv.groups
        self.attribute, self.scalars, self.algorithm = _ONEDNN[type(act)]
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), self.padding, self.stride, self.dilation, self.groups,
            size)  # type: ignore[call-arg]
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H', W']."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, self.attribute,
            self.scalars, self.algorithm)
        return out


class _LaidOutLinear(nn.Module):
    """A fully connected layer; the layout suits any number of rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out
