"""Feature pyramids: maps of every scale with the meaning of the coarsest (Lin et al. 2017, arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FeaturePyramidNetwork

from detseg.interfaces import Features, FeatureSpec, Neck
from detseg.layers import Norm, separable_conv

Coarser: TypeAlias = Literal["none", "pool", "convolutions"]


def pyramid_name(tap: str) -> str:
    """What a pyramid calls the map that it makes of a tap: "p4" of "c4"."""
    return f"p{tap.removeprefix('c')}"


class FPN(Neck):
    """torchvision's feature pyramid: 1 x 1, add what is coarser, 3 x 3, all with bias and without norm.

    specs: the backbone's, from fine to coarse. coarser: what is made beyond the last map: "pool" one more by taking
    every other cell (Faster R-CNN), "convolutions" two by 3 x 3 with stride 2, the first of them from the pyramid's
    last map and the second behind a ReLU (RetinaNet; torchvision's LastLevelP6P7).
    """

    def __init__(self, specs: Mapping[str, FeatureSpec], *, channels: int = 256, coarser: Coarser = "none") -> None:
        super().__init__()
        if coarser not in ("none", "pool", "convolutions"):
            raise ValueError(f'coarser must be "none", "pool" or "convolutions", got {coarser!r}')
        self.taps = tuple(specs)
        self.coarser = coarser
        self.pyramid = FeaturePyramidNetwork([spec.channels for spec in specs.values()], channels)
        self.specs = {pyramid_name(tap): FeatureSpec(channels, spec.stride) for tap, spec in specs.items()}
        stride = list(specs.values())[-1].stride
        more = {"none": 0, "pool": 1, "convolutions": 2}[coarser]
        self.coarser_names = tuple(f"p{(stride * 2 ** k).bit_length() - 1}" for k in range(1, more + 1))
        self.specs |= {name: FeatureSpec(channels, stride * 2 ** k)
                       for k, name in enumerate(self.coarser_names, start=1)}
        self.convolutions = nn.ModuleList()
        if coarser == "convolutions":
            for _ in self.coarser_names:
                conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
                nn.init.kaiming_uniform_(conv.weight, a=1)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
                self.convolutions.append(conv)

    def forward(self, features: Features) -> Features:
        """Maps by tap to maps by pyramid name."""
        found: dict[str, Tensor] = self.pyramid({pyramid_name(tap): features[tap] for tap in self.taps})
        last = found[pyramid_name(self.taps[-1])]
        if self.coarser == "pool":
            found[self.coarser_names[0]] = F.max_pool2d(last, 1, stride=2)
        for k, (name, conv) in enumerate(zip(self.coarser_names, self.convolutions, strict=False)):
            last = conv(last if k == 0 else F.relu(last))
            found[name] = last
        return found


class SeparableFPN(Neck):
    """TensorFlow's pyramid for mobile RetinaNets (official/vision/modeling/decoders/fpn.py, use_separable_conv).

    All convolutions are separable, the 1 x 1 ones too; coarser maps come from 3 x 3 with stride 2, all but the first of
    them behind the activation; in the end each map has a BatchNorm. Named by stride: "p3" is the map of stride 8.

    specs: the backbone's, from fine to coarse, each at twice the stride of the one before. num_maps: of the pyramid.
    """

    def __init__(
        self, specs: Mapping[str, FeatureSpec], *, norm: Norm, channels: int = 256, num_maps: int = 5,
        activation: Literal["relu", "relu6"] = "relu",
    ) -> None:
        super().__init__()
        strides = [spec.stride for spec in specs.values()]
        if strides != [strides[0] * 2 ** k for k in range(len(strides))]:
            raise ValueError(f"a pyramid doubles the stride from map to map, got {strides}: choose other taps, or a "
                             "backbone without dilation")
        if num_maps < len(strides):
            raise ValueError(f"a pyramid on {len(strides)} taps has as many maps or more, got num_maps={num_maps}")
        self.taps = tuple(specs)
        self.act = nn.ReLU() if activation == "relu" else nn.ReLU6()
        self.specs = {f"p{(strides[0] * 2 ** k).bit_length() - 1}": FeatureSpec(channels, strides[0] * 2 ** k)
                      for k in range(num_maps)}
        self.lateral = nn.ModuleList(separable_conv(spec.channels, channels, kernel=1) for spec in specs.values())
        self.smooth = nn.ModuleList(separable_conv(channels, channels) for _ in strides)
        self.coarser = nn.ModuleList(
            separable_conv(channels, channels, stride=2) for _ in range(num_maps - len(strides)))
        self.norms = nn.ModuleList(norm(channels) for _ in range(num_maps))

    def forward(self, features: Features) -> Features:
        """Maps by tap to maps by pyramid name."""
        merged = [lateral(features[tap]) for lateral, tap in zip(self.lateral, self.taps, strict=True)]
        for k in reversed(range(len(merged) - 1)):
            merged[k] = merged[k] + F.interpolate(merged[k + 1], merged[k].shape[2:], mode="nearest")
        maps = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        for number, coarser in enumerate(self.coarser):
            maps.append(coarser(maps[-1] if number == 0 else self.act(maps[-1])))
        return {name: norm(x) for name, norm, x in zip(self.specs, self.norms, maps, strict=True)}

    def fold(self) -> None:
        """Moves each BatchNorm into the convolution before it, for inference; one whose convolution makes a coarser map
        too becomes a depthwise convolution of 1 x 1."""
        layers = [*self.smooth, *self.coarser]
        also_coarser = range(len(self.smooth) - 1, len(layers) - 1)
        for k, (layer, norm) in enumerate(zip(layers, self.norms, strict=True)):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            assert isinstance(layer, nn.Sequential)
            if k in also_coarser:
                self.norms[k] = _as_convolution(norm)
            else:
                conv = layer[-1]
                assert isinstance(conv, nn.Conv2d)
                layer[-1] = fuse_conv_bn_eval(conv, norm)
                self.norms[k] = nn.Identity()


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """What a BatchNorm does in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach()
    conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, device="meta")
    conv.weight = nn.Parameter(scale.view(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter((norm.bias - norm.running_mean * scale).detach(), requires_grad=False)
    return conv
