"""Any trunk, cut: the same features and names as the trunk's own, nothing behind the last tap, mistakes explained."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from detseg.backbones.contract import CHECKS
from detseg.backbones.mobilenet_v3 import mobilenet_v3_small
from detseg.backbones.taps import TappedTrunk, tapped
from detseg.interfaces import Features, FeatureSpec
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.resize import Stretch
from detseg.structures import BoxTargets, Classes
from heads.ssdlite import SSDLite

SIZE = (96, 160)


class _Own(nn.Module):
    """With all that goes wrong: a skip, an activation in place, parameters, buffers and constants of its own, dropout,
    an argument with a default, a branch on values inside a block, and a classifier for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, 3, 1, 1), 0.5))
        self.mean: Tensor
        self.ramp: Tensor
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
        self.register_buffer("ramp", torch.linspace(0, 1, 3).view(1, 3, 1, 1), persistent=False)
        self.offset = torch.tensor(0.25)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8, momentum=0.05))
        self.act = nn.ReLU(inplace=True)
        self.block = _Block()
        self.dropout = nn.Dropout2d(0.5)
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.unused = nn.Linear(3, 3)
        self.classifier = nn.Linear(12 * 7 * 7, 10)

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        x = (x - self.mean + self.ramp + self.offset) * self.gain * scale
        if mask is not None:
            x = x * mask
        x = self.act(self.stem(x))
        x = x + self.dropout(self.block(x))
        x = self.last(x)
        if float(x.detach().mean()) > 1e9:
            x = x / 2
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2:
            x = x * 1
        return F.gelu(self.conv(x))


class _Case:
    """A trunk, its taps, what they are by hand, and the state that is left out."""

    def __init__(
        self, build: Callable[[], nn.Module], taps: Mapping[str, str], specs: Mapping[str, FeatureSpec],
        behind: tuple[str, ...],
    ) -> None:
        self.taps, self.specs, self.behind = taps, specs, behind
        self.trunk = functools.cache(build)
        self.cut = functools.cache(lambda: tapped(self.trunk(), taps, size=SIZE))

    def build(self) -> tuple[nn.Module, TappedTrunk]:
        """Copies of the trunk and of the backbone cut from it."""
        return copy.deepcopy(self.trunk()), copy.deepcopy(self.cut())


CASES = {
    "timm": _Case(
        lambda: timm.create_model("mobilenetv3_small_050", drop_path_rate=0.3),
        {"c4.expansion": "blocks.4.0.bn1", "c5": "blocks.5", "c3": "blocks.2"},
        {"c4.expansion": FeatureSpec(144, 16), "c5": FeatureSpec(288, 32), "c3": FeatureSpec(24, 16)},
        ("conv_head.", "norm_head.", "classifier."),
    ),
    "torchvision": _Case(
        lambda: torchvision.models.resnet18(weights=None),
        {"c3": "layer2", "before the sum": "layer3.1.bn2"},
        {"c3": FeatureSpec(128, 8), "before the sum": FeatureSpec(256, 16)},
        ("layer4.", "fc."),
    ),
    "own": _Case(
        _Own, {"stem": "stem", "block": "block", "c2": "last"},
        {"stem": FeatureSpec(8, 2), "block": FeatureSpec(8, 2), "c2": FeatureSpec(12, 4)},
        ("unused.", "classifier."),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _hooked(module: nn.Module, case: _Case, images: Tensor) -> Features:
    """What the tapped modules give in the whole trunk."""
    found: Features = {}
    for name, path in case.taps.items():
        def note(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            found[name] = output.clone()

        module.get_submodule(path).register_forward_hook(note)
    try:
        module(images)
    except RuntimeError:
        assert isinstance(module, _Own)  # its classifier
    return {name: found[name] for name in case.taps}


def _randomise_statistics(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)


@each_case
def test_specs_and_names(case: _Case) -> None:
    trunk, backbone = case.build()
    assert backbone.specs == case.specs
    assert list(backbone.specs) == list(case.taps)
    expected = {name: value for name, value in trunk.state_dict().items() if not name.startswith(case.behind)}
    assert len(expected) < len(trunk.state_dict())
    state = backbone.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert {name for name, _ in backbone.named_parameters()} <= {name for name, _ in trunk.named_parameters()}
    backbone.load_state_dict(expected)


@each_case
@pytest.mark.parametrize("training", [False, True])
def test_features_are_the_trunks(case: _Case, training: bool) -> None:
    """Also after random draws, and of sizes it was not measured at."""
    trunk, backbone = case.build()
    _randomise_statistics(trunk)
    backbone.load_state_dict({name: trunk.state_dict()[name] for name in backbone.state_dict()})
    trunk.train(training)
    backbone.train(training)
    images = torch.randn(3, 3, 130, 98)
    torch.manual_seed(7)
    expected = _hooked(trunk, case, images)
    torch.manual_seed(7)
    features = backbone(images)
    assert list(features) == list(case.taps)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name])


@each_case
def test_a_training_step_is_the_trunks(case: _Case) -> None:
    trunk, backbone = case.build()
    assert backbone.training
    images = torch.randn(3, 3, *SIZE)
    networks: list[tuple[nn.Module, Callable[[], Features]]] = [
        (trunk, lambda: _hooked(trunk, case, images)), (backbone, lambda: backbone(images))]
    for network, features in networks:
        torch.manual_seed(7)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        torch.stack([feature.square().mean() for feature in features().values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    theirs = trunk.state_dict()
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, theirs[name])


@pytest.mark.parametrize("check", ["shapes", "gradients", "modes", "channels last", "copy", "export"])
def test_the_contract(check: str) -> None:
    CHECKS[check](CASES["timm"].build()[1])


@pytest.mark.parametrize("check", ["gradients", "copy", "export", "compile"])
def test_the_contract_of_a_trunk_with_everything(check: str) -> None:
    CHECKS[check](CASES["own"].build()[1])


def test_it_leaves_the_trunk_and_random_numbers_alone() -> None:
    trunk = timm.create_model("mobilenetv3_small_050").train()
    trunk.blocks[0].eval()
    before = copy.deepcopy(trunk.state_dict())
    modes = [module.training for module in trunk.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    backbone = tapped(trunk, {"c5": "blocks.5"}, size=SIZE)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert [module.training for module in trunk.modules()] == modes
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert not tapped(trunk.eval(), {"c5": "blocks.5"}, size=SIZE).training


def test_what_a_layer_does_in_place_is_not_seen() -> None:
    """The tap is what the module gives, also where an activation overwrites it: only then is it copied."""
    trunk = torchvision.models.resnet18(weights=None).eval()
    backbone = tapped(trunk, {"raw": "bn1", "c2": "layer1"}, size=SIZE)
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        raw = backbone(images)["raw"]
        torch.testing.assert_close(raw, trunk.bn1(trunk.conv1(images)))
    assert float(raw.min()) < 0


def test_timms_own_features_are_the_same() -> None:
    theirs = timm.create_model("mobilenetv4_conv_small_050", features_only=True, out_indices=(2, 3, 4)).eval()
    trunk = timm.create_model("mobilenetv4_conv_small_050").eval()
    trunk.load_state_dict(theirs.state_dict(), strict=False)
    backbone = tapped(trunk, {"c3": "blocks.1", "c4": "blocks.2", "c5": "blocks.4"}, size=SIZE)
    images = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        expected = theirs(images)
        for feature, other, stride in zip(backbone(images).values(), expected, (8, 16, 32), strict=True):
            torch.testing.assert_close(feature, other)
            assert feature.shape[2:] == (-(-97 // stride), -(-131 // stride))


def test_it_is_our_network_under_other_names() -> None:
    """torchvision's trunk tapped where ours is: the same specs, and the same number of parameters."""
    trunk = torchvision.models.mobilenet_v3_small(weights=None)
    backbone = tapped(trunk, {"c4.expansion": "features.9.block.0", "c5": "features.12"}, size=SIZE)
    ours = mobilenet_v3_small(taps=("c4.expansion", "c5"))
    assert backbone.specs == ours.specs
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in ours.parameters())


@each_case
def test_folding_gives_the_same(case: _Case) -> None:
    _, backbone = case.build()
    _randomise_statistics(backbone)
    backbone.eval().requires_grad_(requires_grad=False)
    images = torch.randn(1, 3, *SIZE)
    expected = backbone(images)
    backbone.fold()
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == (case is CASES["own"])
    for name, feature in backbone(images).items():
        torch.testing.assert_close(feature, expected[name], rtol=0, atol=1e-5 * float(expected[name].abs().max()))


class _Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        normalised: Tensor = super().forward(input)
        return normalised * 2


def test_only_what_can_be_folded_is() -> None:
    """Not where the convolution is a tap itself, is used twice, or its BatchNorm does more than normalise."""

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv3, self.norm3 = nn.Conv2d(4, 4, 3, padding=1), _Doubling(4)
            self.conv4, self.norm4 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(self.conv1(x))
            y = self.conv2(x)
            x = self.norm3(self.conv3(y + self.norm2(y)))
            twice: Tensor = self.norm4(self.conv4(self.norm4(self.conv4(x))))
            return twice

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            last: Tensor = self.last(self.norm(self.conv(self.trunk(x))))
            return last

    backbone = tapped(Whole(), {"conv": "conv", "last": "last"}, size=SIZE)
    _randomise_statistics(backbone)
    backbone.eval().requires_grad_(requires_grad=False)
    images = torch.randn(1, 3, *SIZE)
    expected = backbone(images)
    backbone.fold()
    left = {name for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == {"trunk.norm2", "trunk.norm3", "trunk.norm4", "norm"}
    torch.testing.assert_close(backbone(images), expected)


def test_a_trunk_that_cannot_be_recorded_whole_keeps_its_batch_norms() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            normalised: Tensor = self.norm(self.conv(x if float(x.sum()) > 0 else -x))
            return normalised

    backbone = tapped(nn.Sequential(Branching(), nn.Conv2d(4, 4, 1)), {"a": "0"}, size=SIZE).eval()
    backbone.fold()
    assert isinstance(backbone.get_submodule("0.norm"), nn.BatchNorm2d)


def test_it_trains_and_folds_in_a_predictor() -> None:
    trunk = timm.create_model("mobilenetv3_small_050")
    backbone = tapped(trunk, {"c4.expansion": "blocks.4.0.bn1", "c5": "blocks.5"}, size=SIZE)
    classes = Classes(names=("nut", "bolt"), source_ids=(1, 2))
    head = SSDLite(backbone.specs, 2, anchors=SSDAnchors(), width=0.25)
    model = Predictor(backbone, head, classes=classes, resize=Stretch(SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    targets = BoxTargets(torch.tensor([[[10.0, 20.0, 60.0, 80.0]], [[0.0, 0.0, 0.0, 0.0]]]),
                         torch.tensor([[1], [-1]]), torch.zeros(2, 1, dtype=torch.bool))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    losses = head.loss(model(images), targets, SIZE)
    torch.autograd.backward(torch.stack([term.sum for term in losses.values()]).sum())
    assert all(parameter.grad is not None for parameter in model.parameters())
    _randomise_statistics(model)
    model.eval()
    with torch.no_grad():
        expected, folded = model(images).logits, model.folded()(images).logits
    for mine, other in zip(folded, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_it_can_be_built_without_numbers() -> None:
    with torch.device("meta"):
        backbone = tapped(torchvision.models.resnet18(weights=None), {"c5": "layer4"})
        assert backbone(torch.empty(2, 3, 65, 97))["c5"].shape == (2, 512, 3, 4)
    assert backbone.specs == {"c5": FeatureSpec(512, 32)}


class _Functional(nn.Module):
    """Asks for its mode itself, around the tap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.5, training=self.training)
        second: Tensor = self.second(x)
        return second


class _Branch(_Functional):
    """Decides by values, around the tap."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if float(x.detach().mean()) > 0:
            x = -x
        second: Tensor = self.second(x)
        return second


class _Twice(_Functional):
    def forward(self, x: Tensor) -> Tensor:
        second: Tensor = self.second(self.second(self.first(x)))
        return second


class _Pair(nn.Module):
    """Its features do not come alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(self.first(x))


class _ChannelsBehind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _Sideways(_Functional):
    """Calls no module."""

    def forward(self, x: Tensor) -> Tensor:
        second: Tensor = self.second(self.first.forward(x))
        return second


@pytest.mark.parametrize(("module", "taps", "message"), [
    (_Functional(), {}, 'at least one tap is needed, as in {"c4": "blocks.4"'),
    (_Functional(), {"c4": "secand"}, "tap 'c4': _Functional has no module 'secand'; the nearest are second, first"),
    (_Functional(), {"c4": ""}, "tap 'c4': _Functional has no module ''; the nearest are "),
    (_Functional(), {"c4": "second"}, "tap 'c4' cannot be cut: recorded in evaluation, 'second' gives something else "
                                      "than in the whole trunk in training. Perhaps a module around it asks for its "
                                      "mode itself"),
    (_Branch(), {"c4": "second"}, "the forward of _Branch cannot be recorded: "),
    (nn.Sequential(_Branch()), {"c4": "0.second"}, "the forward of _Branch ('0') cannot be recorded: "),
    (nn.Sequential(_Branch()), {"c4": "0.second"}, "tap a module further out, which then runs whole"),
    (_Twice(), {"c4": "second"}, "tap 'c4': the module 'second' runs 2 times in a forward, it must run once"),
    (_Sideways(), {"c4": "first"}, "tap 'c4': the module 'first' runs 0 times in a forward"),
    (nn.Sequential(_Pair()), {"c4": "0"}, "tap 'c4' (module '0') gives a tuple; a feature is one tensor [B, C, H, W]"),
    (nn.Sequential(nn.Flatten()), {"c4": "0"}, "gives a tensor [1, 46080]; a feature is one tensor"),
    (nn.Sequential(_ChannelsBehind()), {"c4": "0"}, "gives [C, H, W] = [96, 160, 3] for 96 x 160 pixels and "
                                                    "[160, 192, 3] for 160 x 192 pixels; the number of channels"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(2)), {"c4": "0"}, "[3, 2, 2] for 160 x 192 pixels; a feature has ceil(size / "
                                                          "stride) cells, with a stride of 1, 2, 4"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, stride=3)), {"c4": "0"}, "[4, 32, 53] for 96 x 160 pixels"),
    (nn.Sequential(nn.Linear(160, 8)), {"c4": "0"}, "Sequential does not run on images [1, 3, 160, 192]; it must take "
                                                    "this size and others:\nRuntimeError: "),
])
def test_what_cannot_be_cut_is_explained(module: nn.Module, taps: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tapped(module, taps, size=SIZE)


def test_a_block_that_decides_by_values_runs_whole() -> None:
    trunk = nn.Sequential(_Branch(), nn.Conv2d(4, 4, 1)).eval()
    images = torch.randn(1, 3, *SIZE)
    for sign in (1, -1):
        torch.testing.assert_close(tapped(trunk, {"a": "1"}, size=SIZE)(sign * images)["a"], trunk(sign * images))
