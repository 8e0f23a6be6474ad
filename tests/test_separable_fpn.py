"""TensorFlow's pyramid of separable convolutions: step by step against plain operations, on maps of odd sizes."""

from __future__ import annotations

import re
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.inference import fold
from detseg.interfaces import FeatureSpec
from detseg.layers import Norm, separable_conv
from detseg.necks import SeparableFPN

NORM = Norm(momentum=0.01, eps=1e-3)
SPECS = {"c3": FeatureSpec(6, 8), "c4": FeatureSpec(10, 16), "c5.bottleneck": FeatureSpec(14, 32)}
SIZES = {"c3": (11, 18), "c4": (6, 9), "c5.bottleneck": (3, 5)}


def _neck(activation: Literal["relu", "relu6"] = "relu") -> SeparableFPN:
    neck = SeparableFPN(SPECS, channels=8, norm=NORM, activation=activation).eval()
    for module in neck.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return neck


def _separable(weights: dict[str, Tensor], name: str, x: Tensor, *, stride: int = 1) -> Tensor:
    depthwise = weights[f"{name}.0.weight"]
    x = F.conv2d(x, depthwise, stride=stride, padding=depthwise.shape[2] // 2, groups=x.shape[1])
    return F.conv2d(x, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"])


def _twice(x: Tensor, like: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : like.shape[2], : like.shape[3]]


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_it_is_tensorflows(activation: Literal["relu", "relu6"]) -> None:
    neck = _neck(activation)
    features = {name: torch.randn(2, SPECS[name].channels, *size) for name, size in SIZES.items()}
    with torch.no_grad():
        found = neck(features)
    weights = neck.state_dict()
    p5 = _separable(weights, "lateral.2", features["c5.bottleneck"])
    p4 = _separable(weights, "lateral.1", features["c4"])
    p4 = p4 + _twice(p5, p4)
    p3 = _separable(weights, "lateral.0", features["c3"])
    p3 = p3 + _twice(p4, p3)
    maps = [_separable(weights, f"smooth.{k}", x) for k, x in enumerate((p3, p4, p5))]
    maps.append(_separable(weights, "coarser.0", maps[2], stride=2))
    act = F.relu if activation == "relu" else F.relu6
    maps.append(_separable(weights, "coarser.1", act(maps[3]), stride=2))
    assert list(found) == ["p3", "p4", "p5", "p6", "p7"]
    for k, (x, given) in enumerate(zip(maps, found.values(), strict=True)):
        wanted = F.batch_norm(
            x, weights[f"norms.{k}.running_mean"], weights[f"norms.{k}.running_var"], weights[f"norms.{k}.weight"],
            weights[f"norms.{k}.bias"], eps=1e-3)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_specs_are_what_comes_out() -> None:
    backbone = mobilenet_v2(width=0.35, taps=("c3", "c4", "c5.bottleneck"))
    neck = SeparableFPN(backbone.specs, channels=24, norm=NORM)
    maps = neck(backbone(torch.zeros(2, 3, 70, 130)))
    assert list(maps) == list(neck.specs) == ["p3", "p4", "p5", "p6", "p7"]
    for name, spec in neck.specs.items():
        assert spec.channels == 24
        assert maps[name].shape == (2, 24, -(-70 // spec.stride), -(-130 // spec.stride))


def test_keras_starts_separable_convolutions_so() -> None:
    """Glorot's uniform numbers, with Keras's idea of a depthwise kernel's inputs and outputs; no bias to begin with."""
    conv = separable_conv(256, 128)
    depthwise, pointwise = conv
    assert isinstance(depthwise, nn.Conv2d)
    assert isinstance(pointwise, nn.Conv2d)
    for layer, limit in ((depthwise, (6 / (9 * 256 + 9)) ** 0.5), (pointwise, (6 / (256 + 128)) ** 0.5)):
        largest = float(layer.weight.detach().abs().max())
        assert 0.99 * limit < largest <= limit
    assert depthwise.bias is None
    assert pointwise.bias is not None
    assert not pointwise.bias.any()


@pytest.mark.parametrize(("specs", "num_maps", "message"), [
    ({"c3": FeatureSpec(6, 8), "c5": FeatureSpec(6, 32)}, 5,
     "a pyramid doubles the stride from map to map, got [8, 32]: choose other taps, or a backbone without dilation"),
    ({"c4": FeatureSpec(6, 16), "c5": FeatureSpec(6, 16)}, 5, "got [16, 16]"),
    (SPECS, 2, "a pyramid on 3 taps has as many maps or more, got num_maps=2"),
])
def test_bad_arguments_are_explained(specs: dict[str, FeatureSpec], num_maps: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SeparableFPN(specs, norm=NORM, num_maps=num_maps)


def test_as_many_maps_as_taps() -> None:
    neck = SeparableFPN(SPECS, channels=8, norm=NORM, num_maps=3)
    found = neck({name: torch.randn(2, SPECS[name].channels, *size) for name, size in SIZES.items()})
    assert list(found) == ["p3", "p4", "p5"]


def test_folded_it_gives_the_same() -> None:
    neck = _neck()
    torch.manual_seed(1)
    for norm in neck.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    features = {name: torch.randn(2, spec.channels, *SIZES[name]) for name, spec in SPECS.items()}
    with torch.no_grad():
        expected = neck(features)
        fold(neck)
        found = neck(features)
    assert not [module for module in neck.modules() if isinstance(module, nn.BatchNorm2d)]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)
