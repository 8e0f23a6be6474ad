"""Convolution, bias and activation in one oneDNN call, with weights laid out once: inference on a CPU.

What torch's own compiler emits for x86 CPUs, without compiling: on SSDLite V3-Large at one thread the network took 0.71
of the folded network's time. Not for export: the operators are torch's CPU backend's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detseg.backbones.taps import TappedTrunk
from detseg.layers import ConvNormAct

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
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight"))


def fuse(network: nn.Module) -> None:
    """Replaces the convolutions of a folded float32 network on the CPU, in place; a tapped trunk stays as it is."""
    for child in network.children():
        if isinstance(child, ConvNormAct):
            conv, act = child.conv, child.act
            if isinstance(conv, nn.Conv2d) and isinstance(child.norm, nn.Identity) and type(act) in _ONEDNN:
                child.conv, child.act = _FusedConv(conv, act), nn.Identity()
        elif not isinstance(child, TappedTrunk):
            fuse(child)
    for name, child in list(network.named_children()):
        if type(child) is nn.Conv2d and not isinstance(network, ConvNormAct):
            setattr(network, name, _FusedConv(child, nn.Identity()))


class _FusedConv(nn.Module):
    """A convolution with an activation behind it."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.stride, self.padding, self.dilation = list(conv.stride), list(conv.padding), list(conv.dilation)
        self.groups = conv.groups
        self.attribute, self.scalars, self.algorithm = _ONEDNN[type(act)]
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), self.padding, self.stride, self.dilation, self.groups)
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H', W']."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, self.attribute,
            self.scalars, self.algorithm)
        return out
