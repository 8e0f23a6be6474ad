"""The contract of every backbone, found by discovery, and the exact figures of the papers."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from detseg.backbones.trunk import Trunk
from detseg.interfaces import Backbone
from detseg.layers import ConvNormAct
from detseg.weights.torchvision import mobilenet_names

from . import discovery

BACKBONES = discovery.backbones()
TAILS = ("none", "detection", "segmentation")


def _all_taps(build: Callable[..., Backbone]) -> list[str]:
    with pytest.raises(ValueError, match="this network has") as problem:
        build(taps=("no such tap",))
    return str(problem.value).rpartition("has ")[2].split(", ")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("width", "output_stride", "tail"), list(itertools.product((0.5, 1.0), (32, 16, 8), TAILS)))
def test_measured_shapes_are_the_promised_ones(name: str, width: float, output_stride: int, tail: str) -> None:
    build = BACKBONES[name]
    options: dict[str, Any] = {"width": width, "output_stride": output_stride, "taps": _all_taps(build)}
    if "reduced_tail" in inspect.signature(build).parameters:
        options["reduced_tail"] = tail
    elif tail != "none":
        return
    with torch.device("meta"):
        network = build(**options).eval()
        features = network(torch.empty(2, 3, 96, 130))
    assert list(features) == list(network.specs)
    for tap, tensor in features.items():
        spec = network.specs[tap]
        assert tensor.shape == (2, spec.channels, math.ceil(96 / spec.stride), math.ceil(130 / spec.stride)), tap
        assert spec.stride <= output_stride
        stage = int(tap[1])
        assert spec.stride == min(2**stage, output_stride)


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_is_built_behind_the_last_tap(name: str) -> None:
    build = BACKBONES[name]
    for tap in _all_taps(build):
        network = build(taps=(tap,)).train()
        loss = network(torch.randn(2, 3, 64, 96))[tap].square().mean()
        loss.backward()
        dead = [key for key, value in network.named_parameters() if value.grad is None]
        assert not dead, (tap, dead)


@pytest.mark.parametrize("name", BACKBONES)
def test_exports_strictly_and_keeps_channels_last(name: str) -> None:
    network = BACKBONES[name](width=0.5).eval().to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, 64, 96).to(memory_format=torch.channels_last)
    features = network(images)
    for tap, tensor in features.items():
        assert tensor.is_contiguous(memory_format=torch.channels_last), tap
    exported = torch.export.export(network, (images,), strict=True).module()
    for tap, tensor in exported(images).items():
        torch.testing.assert_close(tensor, features[tap])


@pytest.mark.parametrize("name", BACKBONES)
def test_folding_gives_the_same(name: str) -> None:
    network = BACKBONES[name](width=0.5)
    _randomise_statistics(network)
    network.eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(images)
        for module in network.modules():
            if isinstance(module, ConvNormAct):
                module.fold()
        for tap, tensor in network(images).items():
            torch.testing.assert_close(tensor, expected[tap], rtol=1e-4, atol=1e-4 * float(expected[tap].abs().max()))


def _randomise_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize(
    ("peer", "build", "options"),
    [
        ("mobilenet_v2", mobilenet_v2, {}),
        ("mobilenet_v2", mobilenet_v2, {"width_mult": 0.75}),
        ("mobilenet_v2", mobilenet_v2, {"width_mult": 1.4}),
        ("mobilenet_v3_large", mobilenet_v3_large, {}),
        ("mobilenet_v3_large", mobilenet_v3_large, {"width_mult": 0.75}),
        ("mobilenet_v3_small", mobilenet_v3_small, {}),
        ("mobilenet_v3_small", mobilenet_v3_small, {"width_mult": 1.25}),
    ],
)
@pytest.mark.parametrize("size", [(224, 320), (321, 321)])
def test_features_equal_torchvision(
    peer: str, build: Callable[..., Trunk], options: dict[str, float], size: tuple[int, int]
) -> None:
    theirs: Any = torchvision.models.get_model(peer, weights=None, **options).eval()
    _randomise_statistics(theirs)
    ours = build(width=options.get("width_mult", 1.0), taps=("c1", "c2", "c3", "c4", "c4.expansion", "c5")).eval()
    state = theirs.state_dict()
    names = mobilenet_names(state)
    ours.load_state_dict({names[key]: value for key, value in state.items() if key in names})
    assert all(key.startswith("classifier") for key in state if key not in names)
    images, found = torch.randn(1, 3, *size), []
    with torch.no_grad():
        features, x = ours(images), images
        for layer in theirs.features:
            x = layer(x)
            found.append(x)
    for tap, tensor in features.items():
        if tap == "c4.expansion":
            continue
        same = [other for other in found if other.shape == tensor.shape]
        scale = float(tensor.abs().max())
        assert any(float((other - tensor).abs().max()) <= 1e-5 * scale for other in same), tap


# Whole ImageNet networks: the trunk here, and the classifiers' parameters from the papers' tables.
@pytest.mark.parametrize(
    ("build", "options", "classifier", "total", "macs", "classifier_macs"),
    [
        (mobilenet_v2, {}, 1280 * 1000 + 1000, 3_504_872, 300_774_272, 1280 * 1000),
        (mobilenet_v3_large, {}, 960 * 1280 + 1280 + 1280 * 1000 + 1000, 5_483_032, 216_589_760,
         960 * 1280 + 1280 * 1000),
        (mobilenet_v3_small, {}, 576 * 1024 + 1024 + 1024 * 1000 + 1000, 2_542_856, 56_510_400,
         576 * 1024 + 1024 * 1000),
        (mobilenet_v3_large, {"minimalistic": True}, 960 * 1280 + 1280 + 1280 * 1000 + 1000, 3_924_288, 209_136_704,
         960 * 1280 + 1280 * 1000),
        (mobilenet_v3_small, {"minimalistic": True}, 576 * 1024 + 1024 + 1024 * 1000 + 1000, 2_044_736, 52_288_448,
         576 * 1024 + 1024 * 1000),
    ],
)
def test_imagenet_costs_are_exact(
    build: Callable[..., Trunk], options: dict[str, Any], classifier: int, total: int, macs: int, classifier_macs: int
) -> None:
    from detseg.cost import count_macs, count_parameters

    network = build(taps=("c5",), **options)
    assert count_parameters(network) + classifier == total
    assert count_macs(network, torch.empty(1, 3, 224, 224)) + classifier_macs == macs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width must lie between 0.05 and 8, got 0.0"),
        ({"width": 9}, "got 9"),
        ({"output_stride": 4}, "output_stride must be 32, 16 or 8, got 4"),
        ({"taps": ()}, "at least one tap is needed; this network has c1, "),
        ({"taps": ("c4", "c4")}, "taps must differ"),
        ({"taps": ("c4.expansoin",)}, "did you mean 'c4.expansion'"),
        ({"reduced_tail": "half"}, 'reduced_tail must be "none", "detection" or "segmentation", got \'half\''),
    ],
)
@pytest.mark.parametrize("name", BACKBONES)
def test_bad_arguments_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    if not set(options) <= set(inspect.signature(BACKBONES[name]).parameters):
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        BACKBONES[name](**options)


def test_where_the_dilation_begins() -> None:
    def dilations(network: Trunk) -> list[int]:
        return [int(m.dilation[0]) for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    assert dilations(mobilenet_v3_large(output_stride=16))[-3:] == [1, 2, 2]
    assert dilations(mobilenet_v3_large(output_stride=16, dilate_first=True))[-3:] == [2, 2, 2]
    assert dilations(mobilenet_v2(output_stride=8))[-11:] == [1, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4][-11:]
