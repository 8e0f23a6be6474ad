"""The contract of every backbone, found by discovery, and the exact figures of the papers."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from detseg.backbones.contract import CHECKS, Broken
from detseg.backbones.mnasnet import mnasnet_a1, mnasnet_b1
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from detseg.backbones.mobilenet_v4 import (
    mobilenet_v4_conv_large,
    mobilenet_v4_conv_medium,
    mobilenet_v4_conv_small,
    mobilenet_v4_hybrid_large,
    mobilenet_v4_hybrid_medium,
)
from detseg.backbones.trunk import Trunk, zero_init_residual
from detseg.cost import count_macs, count_parameters
from detseg.interfaces import Backbone
from detseg.layers import ConvNormAct, MobileAttention, Norm
from detseg.weights import timm as timm_weights
from detseg.weights import torchvision as torchvision_weights

from . import discovery

BACKBONES = discovery.backbones()
LARGEST = tuple(name for name in BACKBONES if "v4" in name and name.endswith("_large"))
"""Each has a smaller one of its family beside it."""
TAILS = ("none", "detection", "segmentation")


def _all_taps(build: Callable[..., Backbone]) -> list[str]:
    with pytest.raises(ValueError, match="this network has") as problem:
        build(taps=("no such tap",))
    return str(problem.value).rpartition("has ")[2].split(", ")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("width", "output_stride", "tail"), [
    pytest.param(*case, marks=pytest.mark.slow if case[0] < 1 and case[1] != 16 else ())
    for case in itertools.product((0.5, 1.0), (32, 16, 8), TAILS)])
def test_measured_shapes_are_the_promised_ones(name: str, width: float, output_stride: int, tail: str) -> None:
    build = BACKBONES[name]
    options: dict[str, Any] = {"width": width, "output_stride": output_stride, "taps": _all_taps(build)}
    if "reduced_tail" in inspect.signature(build).parameters:
        options["reduced_tail"] = tail
    elif tail != "none":
        return
    with torch.device("meta"):
        network = _of_convolutions(build(**options).eval())
        features = network(torch.empty(2, 3, 96, 130))
    assert list(features) == list(network.specs)
    for tap, tensor in features.items():
        spec = network.specs[tap]
        assert tensor.shape == (2, spec.channels, math.ceil(96 / spec.stride), math.ceil(130 / spec.stride)), tap
        assert spec.stride <= output_stride
        stage = int(tap[1])
        assert spec.stride == min(2**stage, output_stride)


def _of_convolutions(network: Backbone) -> Backbone:
    """Without norms and activations, which leave every shape and take most of the time without numbers."""
    for parent in [*network.modules()]:
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.Hardsigmoid):
                setattr(parent, name, nn.Identity())
    return network


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in LARGEST else ()) for name in BACKBONES])
def test_nothing_is_built_behind_the_last_tap(name: str) -> None:
    build = BACKBONES[name]
    for tap in _all_taps(build):
        network = build(width=0.25, taps=(tap,)).train()
        loss = network(torch.randn(2, 3, 32, 64))[tap].square().mean()
        loss.backward()
        dead = [key for key, value in network.named_parameters() if value.grad is None]
        assert not dead, (tap, dead)


def _checks() -> list[Any]:
    """Every check of every output stride; by default the quick ones where every stride that can be is dilation. Which
    operators there are does not depend on the stride."""
    traced = ("export", "compile", "quantises")
    return [pytest.param(check, stride, name, marks=[pytest.mark.slow] if (
                check in traced or stride > 8 or (check == "dtypes" and name in LARGEST)) else [])
            for stride in (32, 16, 8) for check in CHECKS if check != "quantises" or stride == 32 for name in BACKBONES]


@pytest.mark.parametrize(("check", "output_stride", "name"), _checks())
def test_the_contract_is_kept(check: str, output_stride: int, name: str) -> None:
    """All that tools/check_backbone.py checks, with stochastic depth where there is any."""
    build = BACKBONES[name]
    drop = {"drop_path": 0.2} if "drop_path" in inspect.signature(build).parameters else {}
    network = build(width=0.25, output_stride=output_stride, **drop)
    if check == "quantises" and any(isinstance(module, MobileAttention) for module in network.modules()):
        # Attention has no 8-bit kernel in XNNPACK: the hybrids run with theirs in float. GELU has none either.
        with pytest.raises(Broken, match=r"no 8-bit kernel for .*aten\.softmax"):
            CHECKS[check](network)
    else:
        assert CHECKS[check](network)


@pytest.mark.parametrize(("name", "build"), [
    ("mobilenet_v2", mobilenet_v2), ("mobilenet_v3_large", mobilenet_v3_large),
    ("mobilenet_v3_small", mobilenet_v3_small)])
def test_the_first_block_of_a_stage_is_torchvisions(name: str, build: Callable[..., Trunk]) -> None:
    """Its segmentation and detection models tap these, marked `_is_cn`."""
    features = torchvision.models.get_model(name, weights=None).features
    theirs = [number for number, layer in enumerate(features) if getattr(layer, "_is_cn", False)]
    for output_stride in (32, 8):
        network = build(taps=("c2.first", "c3.first", "c4.first", "c5.first"), output_stride=output_stride)
        assert [block + 1 for block in sorted(network.taps)] == theirs


@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_with_a_skip_can_begin_as_the_identity(name: str) -> None:
    network = BACKBONES[name](width=0.25)
    assert isinstance(network, Trunk)
    if name.startswith("mobilenet_v1"):
        with pytest.raises(ValueError, match="no block of this backbone has a skip"):
            zero_init_residual(network)
        return
    passed = []
    for block in zero_init_residual(network).blocks:
        block.register_forward_hook(lambda block, images, parts: passed.append((block, images[0], parts.output)))
    network(torch.randn(2, 3, 64, 64))
    skips = [(before, after) for block, before, after in passed if getattr(block, "skip", False)]
    assert skips
    for before, after in skips:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-3)


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
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_mean"):
            nn.init.normal_(value, std=0.1)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2.0)
        elif name.endswith("gamma"):
            nn.init.uniform_(value, 0.2, 0.6)
        elif value.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.dim() == 1 and name.endswith("bias"):
            nn.init.normal_(value, std=0.1)


class _Reference(NamedTuple):
    """A published network: its library and name, the builder here, and the arguments of both."""

    library: str
    name: str
    build: Callable[..., Trunk]
    theirs: Mapping[str, Any] = MappingProxyType({})
    ours: Mapping[str, Any] = MappingProxyType({})


_TIMM_V3 = Norm(momentum=0.01, eps=1e-5)
_REFERENCES = (
    _Reference("torchvision", "mobilenet_v2", mobilenet_v2),
    _Reference("torchvision", "mobilenet_v2", mobilenet_v2, {"width_mult": 0.75}, {"width": 0.75}),
    _Reference("torchvision", "mobilenet_v2", mobilenet_v2, {"width_mult": 1.4}, {"width": 1.4}),
    _Reference("torchvision", "mobilenet_v3_large", mobilenet_v3_large),
    _Reference("torchvision", "mobilenet_v3_large", mobilenet_v3_large, {"width_mult": 0.75}, {"width": 0.75}),
    _Reference("torchvision", "mobilenet_v3_small", mobilenet_v3_small),
    _Reference("torchvision", "mobilenet_v3_small", mobilenet_v3_small, {"width_mult": 1.25}, {"width": 1.25}),
    _Reference("torchvision", "mnasnet0_5", mnasnet_b1, {}, {"width": 0.5}),
    _Reference("torchvision", "mnasnet1_0", mnasnet_b1),
    _Reference("torchvision", "mnasnet1_3", mnasnet_b1, {}, {"width": 1.3}),
    _Reference("timm", "mobilenetv1_100", mobilenet_v1),
    _Reference("timm", "mobilenetv1_125", mobilenet_v1, {}, {"width": 1.25}),
    _Reference("timm", "mobilenetv2_050", mobilenet_v2, {}, {"width": 0.5}),
    _Reference("timm", "mobilenetv2_140", mobilenet_v2, {}, {"width": 1.4}),
    _Reference("timm", "mobilenetv3_large_100", mobilenet_v3_large, {}, {"norm": _TIMM_V3}),
    _Reference("timm", "mobilenetv3_small_075", mobilenet_v3_small, {},
          {"norm": _TIMM_V3, "width": 0.75, "widths": "tensorflow"}),
    _Reference("timm", "tf_mobilenetv3_large_100", mobilenet_v3_large, {}, {"padding": "same"}),
    _Reference("timm", "tf_mobilenetv3_small_075", mobilenet_v3_small, {},
          {"padding": "same", "width": 0.75, "widths": "tensorflow"}),
    _Reference("timm", "tf_mobilenetv3_large_minimal_100", mobilenet_v3_large, {},
          {"padding": "same", "minimalistic": True}),
    _Reference("timm", "tf_mobilenetv3_small_minimal_100", mobilenet_v3_small, {},
          {"padding": "same", "minimalistic": True}),
    _Reference("timm", "semnasnet_100", mnasnet_a1),
    _Reference("timm", "semnasnet_050", mnasnet_a1, {}, {"width": 0.5}),
    _Reference("timm", "semnasnet_140", mnasnet_a1, {}, {"width": 1.4}),
    _Reference("timm", "mnasnet_100", mnasnet_b1),
    _Reference("timm", "mobilenetv4_conv_small", mobilenet_v4_conv_small),
    _Reference("timm", "mobilenetv4_conv_small_050", mobilenet_v4_conv_small, {}, {"width": 0.5}),
    _Reference("timm", "mobilenetv4_conv_medium", mobilenet_v4_conv_medium),
    _Reference("timm", "mobilenetv4_conv_large", mobilenet_v4_conv_large),
    _Reference("timm", "mobilenetv4_hybrid_medium", mobilenet_v4_hybrid_medium),
    _Reference("timm", "mobilenetv4_hybrid_large", mobilenet_v4_hybrid_large),
)


@pytest.mark.parametrize("reference", [
    pytest.param(one, id="-".join([one.name, *map(str, one.theirs.values())]),
                 marks=pytest.mark.slow if one.build.__name__ in LARGEST else ()) for one in _REFERENCES])
def test_every_tap_equals_the_published_network(reference: _Reference) -> None:
    """In double precision, so that what is compared is the network and not the order of additions."""
    if reference.library == "timm":
        theirs: Any = timm.create_model(reference.name, pretrained=False, **reference.theirs)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's mnasnet warns of its initialisation
            theirs = torchvision.models.get_model(reference.name, weights=None, **reference.theirs)
    _randomise_statistics(theirs)
    state = theirs.eval().double().state_dict()
    if reference.library == "timm":
        names = timm_weights.mobilenet_names(state)
    elif reference.name.startswith("mnasnet"):
        names = torchvision_weights.mnasnet_names(state)
    else:
        names = torchvision_weights.mobilenet_names(state)
    ours = reference.build(taps=_all_taps(reference.build), **reference.ours).eval().double()
    ours.load_state_dict({names[key]: value for key, value in state.items() if key in names})
    behind_the_trunk = ("classifier", "conv_head", "norm_head")
    assert all(key.startswith(behind_the_trunk) for key in state if key not in names)

    found: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _module, _inputs, output: found.append(output.clone()))
             for module in theirs.modules()]
    for size in ((64, 96), (65, 65)):
        images = torch.randn(1, 3, *size, dtype=torch.float64)
        found.clear()
        with torch.no_grad():
            theirs(images)
            features = ours(images)
        for tap, tensor in features.items():
            same = [float((other - tensor).abs().max()) for other in found if other.shape == tensor.shape]
            assert min(same, default=math.inf) <= 1e-9 * float(tensor.abs().max()), (tap, size)
    for hook in hooks:
        hook.remove()


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
        (mobilenet_v1, {}, 1024 * 1000 + 1000, 4_231_976, 568_740_352, 1024 * 1000),
        (mnasnet_a1, {}, 1280 * 1000 + 1000, 3_887_038, 311_579_072, 1280 * 1000),
        (mnasnet_b1, {}, 1280 * 1000 + 1000, 4_383_312, 314_415_872, 1280 * 1000),
        (mobilenet_v3_small, {"minimalistic": True}, 576 * 1024 + 1024 + 1024 * 1000 + 1000, 2_044_736, 52_288_448,
         576 * 1024 + 1024 * 1000),
    ],
)
def test_imagenet_costs_are_exact(
    build: Callable[..., Trunk], options: dict[str, Any], classifier: int, total: int, macs: int, classifier_macs: int
) -> None:
    network = build(taps=("c5",), **options)
    assert count_parameters(network) + classifier == total
    assert count_macs(network, torch.empty(1, 3, 224, 224)) + classifier_macs == macs


# Section 5: the model cards of torchvision's mnasnet.
@pytest.mark.parametrize(("width", "total", "gmacs"), [
    (0.5, 2_218_512, 0.104), (0.75, 3_170_208, 0.215), (1.0, 4_383_312, 0.314), (1.3, 6_282_256, 0.526)])
def test_mnasnet_costs_at_other_widths_are_exact(width: float, total: int, gmacs: float) -> None:
    network = mnasnet_b1(width=width, taps=("c5",))
    assert count_parameters(network) + 1280 * 1000 + 1000 == total
    assert round((count_macs(network, torch.empty(1, 3, 224, 224)) + 1280 * 1000) / 1e9, 3) == gmacs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width must lie between 0.05 and 8, got 0.0"),
        ({"width": 9}, "got 9"),
        ({"output_stride": 4}, "output_stride must be 32, 16 or 8, got 4"),
        ({"taps": ()}, "at least one tap is needed; this network has c1, "),
        ({"taps": ("c4", "c4")}, "taps must differ"),
        ({"taps": ("c4.depthwize",)}, "did you mean 'c4.depthwise'"),
        ({"reduced_tail": "half"}, 'reduced_tail must be "none", "detection" or "segmentation", got \'half\''),
    ],
)
@pytest.mark.parametrize("name", BACKBONES)
def test_bad_arguments_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    if not set(options) <= set(inspect.signature(BACKBONES[name]).parameters):
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        BACKBONES[name](**options)


@pytest.mark.parametrize(
    ("build", "size", "total"),
    [
        (mobilenet_v4_conv_small, 224, 3_774_024),
        (mobilenet_v4_conv_medium, 256, 9_715_512),
        (mobilenet_v4_conv_large, 384, 32_590_864),
        (mobilenet_v4_hybrid_medium, 256, 11_074_648),
        (mobilenet_v4_hybrid_large, 384, 37_764_624),
    ],
)
def test_v4_costs_are_exact(build: Callable[..., Trunk], size: int, total: int) -> None:
    """Released code, counted with the classifier: 1280 channels with BatchNorm and no bias, then 1000 classes."""
    published = {224: 0.186, 256: 1.080, 384: 6.376} | ({256: 1.271, 384: 7.712} if "hybrid" in build.__name__ else {})
    network = build(taps=("c5",))
    assert count_parameters(network) + 960 * 1280 + 2 * 1280 + 1281 * 1000 == total
    macs = count_macs(network, torch.empty(1, 3, size, size)) + 960 * 1280 + 1280 * 1000
    assert round(macs / 1e9, 3) == published[size]


def test_where_the_dilation_begins() -> None:
    def dilations(network: Trunk) -> list[int]:
        return [int(m.dilation[0]) for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    assert dilations(mobilenet_v3_large(output_stride=16))[-3:] == [1, 2, 2]
    assert dilations(mobilenet_v3_large(output_stride=16, dilate_first=True))[-3:] == [2, 2, 2]
    assert dilations(mobilenet_v2(output_stride=8))[-11:] == [1, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4][-11:]
