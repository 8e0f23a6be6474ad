"""The check of backbones: own ones pass, and each promise that is broken is named by its own line."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detseg.backbones.contract import CHECKS, Broken, Finding, build_backbone, check_backbone
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.interfaces import Backbone, Features, FeatureSpec
from detseg.layers import ConvNormAct, MobileAttention, Norm, Place


class Good(Backbone):
    """Two convolutions; the broken ones below change one thing each."""

    momentum: float | None = 0.1

    def __init__(self) -> None:
        super().__init__()
        norm = Norm(momentum=0.1, eps=1e-3)
        self.first = ConvNormAct(3, 8, kernel=3, stride=2, norm=norm, activation="relu6")
        self.second = ConvNormAct(8, 12, kernel=3, stride=2, norm=norm, activation="none")
        self.specs = {"c1": FeatureSpec(8, 2), "c2": FeatureSpec(12, 4)}

    def forward(self, images: Tensor) -> Features:
        first = self.first(images)
        return {"c1": first, "c2": self.second(first)}


def norm_of(backbone: Good) -> nn.BatchNorm2d:
    norm = backbone.second.norm
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


class NoTaps(Good):
    def __init__(self) -> None:
        super().__init__()
        self.specs = {}


class NoChannels(Good):
    def __init__(self) -> None:
        super().__init__()
        self.specs["c2"] = FeatureSpec(0, 4)


class StrideThree(Good):
    def __init__(self) -> None:
        super().__init__()
        self.specs["c2"] = FeatureSpec(12, 3)


class OtherNames(Good):
    def forward(self, images: Tensor) -> Features:
        return {"c1": self.first(images)}


class OtherShape(Good):
    """Without padding an odd size has a cell less."""

    def __init__(self) -> None:
        super().__init__()
        self.second.conv = nn.Conv2d(8, 12, 2, stride=2)


class Dead(Good):
    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(12, 4, 1)


class Infinite(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": (features["c2"] * 0).sqrt()}


class Frozen(Good):
    """Allowed: what is meant not to learn need not."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(requires_grad=False)


class Casting(Good):
    def forward(self, images: Tensor) -> Features:
        return {name: feature.float() for name, feature in super().forward(images).items()}


class Overflowing(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": features["c2"] / torch.zeros_like(features["c2"])}


class AlwaysRandom(Good):
    def forward(self, images: Tensor) -> Features:
        return super().forward(images + 0.1 * torch.rand_like(images))


class OfTheBatch(Good):
    def forward(self, images: Tensor) -> Features:
        return super().forward(images - images.mean())


class Counting(Good):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Features:
        self.seen += 1
        return super().forward(images)


class StillStatistics(Good):
    def __init__(self) -> None:
        super().__init__()
        norm_of(self).momentum = 0.0


class Reordering(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": features["c2"].contiguous()}


class Bound(Good):
    """Its copy still calls the original's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [lambda images: Good.forward(self, images)]

    def forward(self, images: Tensor) -> Features:
        return self.calls[0](images)


class Shared(Good):
    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        copied = Shared()
        copied.first = self.first
        return copied


class Branching(Good):
    def forward(self, images: Tensor) -> Features:
        if images.sum() > 0:
            images = -images
        return super().forward(images)


class Breaking(Good):
    """A graph break: strict export and a whole graph are both impossible."""

    def forward(self, images: Tensor) -> Features:
        torch._dynamo.graph_break()
        return super().forward(images)


class NoStatistics(Good):
    def __init__(self) -> None:
        super().__init__()
        self.second.norm = nn.BatchNorm2d(12, track_running_stats=False)


class NoMomentum(Good):
    def __init__(self) -> None:
        super().__init__()
        norm_of(self).momentum = None


class Slow(Good):
    def __init__(self) -> None:
        super().__init__()
        norm_of(self).momentum = 0.0003


class Mixed(Good):
    def __init__(self) -> None:
        super().__init__()
        norm_of(self).eps = 1e-5


class Einsum(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": torch.einsum("bchw,bchw->bhw", features["c2"], features["c2"])[:, None]}


class Softmax(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": features["c2"].softmax(1)}


class Attending(Good):
    """As MobileNetV4's hybrids, which are known to keep their attention in float."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MobileAttention(
            12, num_heads=2, key_channels=4, kv_stride=1, norm=Norm(momentum=0.1, eps=1e-3), place=Place())

    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {**features, "c2": self.attention(features["c2"]).output}


class Sigmoids(Good):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return {name: feature * torch.sigmoid(nn.functional.hardswish(feature)) for name, feature in features.items()}


def test_own_backbones_keep_every_promise() -> None:
    for finding in check_backbone(mobilenet_v1(width=0.25, taps=("c2", "c3"))):
        assert finding.kept, str(finding)


def test_a_finding_is_a_line() -> None:
    assert str(Finding("copy", True, "same")) == "copy: ok (same)"
    assert str(Finding("copy", False, "not the same")) == "copy: FAILED: not the same"


def test_what_was_measured_is_told() -> None:
    told = {finding.check: finding.text for finding in check_backbone(Good())}
    assert list(told) == list(CHECKS)
    assert told["specs"] == "c1: 8 at stride 2, c2: 12 at stride 4"
    assert told["shapes"] == "at 96 x 160, 128 x 64, 97 x 131, 65 x 190"
    assert told["gradients"] == "reach 6 parameters"
    assert told["dtypes"] == "float32, float64; bfloat16 under autocast to bfloat16"
    # Of two BatchNorms the mean, the variance and the number of batches.
    assert told["modes"] == "evaluation repeats itself; training moves 6 buffers"
    assert told["copy"] == "12 tensors of its own, same maps"
    assert told["export"] == "strict, 5 operators, same maps"
    assert told["batch norms"] == "2 of momentum 0.1 and eps 0.001"
    assert told["quantises"] == "8-bit kernels for all operators"
    assert CHECKS["gradients"](Frozen()) == "reach 3 parameters, 3 are frozen"
    assert CHECKS["quantises"](Sigmoids()) == "8-bit kernels for all but aten.hardswish 2 x, aten.sigmoid 2 x"


@pytest.mark.parametrize(("check", "build", "message"), [
    ("specs", NoTaps, "specs is empty; a backbone has at least one tap"),
    ("specs", NoChannels, "c2 has 0 channels"),
    ("specs", StrideThree, "c2 has stride 3, which is no power of two"),
    ("shapes", OtherNames, "forward gives c1, specs promise c1, c2"),
    ("shapes", OtherShape, "c2 at 97 x 131 is [2, 12, 24, 33], promised [2, 12, 25, 33]; c2 at 65 x 190 is "
                           "[2, 12, 16, 47], promised [2, 12, 17, 48]"),
    ("gradients", Dead, "2 of 8 parameters get no gradient: third.weight, third.bias"),
    ("gradients", Infinite, "6 of 6 parameters get a gradient that is not finite: first.conv.weight, "),
    ("dtypes", Casting, "c1 is torch.float32 where images and parameters are torch.float64"),
    ("dtypes", Overflowing, "c2 is torch.bfloat16, 23040 of 23040 numbers not finite, under autocast to bfloat16"),
    ("modes", AlwaysRandom, "c1 differs by "),
    ("modes", OfTheBatch, "when another image is beside it in evaluation"),
    ("modes", Counting, "1 buffers change in evaluation: seen"),
    ("modes", StillStatistics, "1 BatchNorm statistics do not move in training: second.norm"),
    ("channels last", Reordering, "c2: the maps of channels-last images have strides (11520, 960, 40, 1)"),
    ("copy", Bound, "c1 of a deep copy, once the original is zeroed, differs by "),
    ("copy", Shared, "6 of 12 tensors are shared with the copy: first.conv.weight, first.norm.weight, "
                     "first.norm.bias and 3 more"),
    ("batch norms", NoStatistics, "second.norm keeps no running statistics"),
    ("batch norms", NoMomentum, "second.norm has momentum None, the mean of all batches since the first"),
    ("batch norms", Slow, "second.norm has momentum 0.0003; after 1000 steps its statistics are 74% those of the "
                          "beginning. It lies between 0.001 and 1"),
    ("batch norms", Mixed, "BatchNorms differ: 1 of momentum 0.1 and eps 0.001, 1 of momentum 0.1 and eps 1e-05"),
    ("quantises", Einsum, " (1 x, in Einsum)"),
    ("quantises", Softmax, "no 8-bit kernel for aten.softmax (1 x, in Softmax)"),
    ("quantises", Attending, "no 8-bit kernel for aten.bmm (2 x, in attention); aten.softmax (1 x, in attention)"),
])
def test_a_broken_promise_is_named(check: str, build: Callable[[], Backbone], message: str) -> None:
    with pytest.raises(Broken, match=re.escape(message)):
        CHECKS[check](build())


@pytest.mark.parametrize(("check", "build", "message"), [
    ("export", Branching, "Unsupported: "),
    ("compile", Breaking, "Unsupported: "),
])
def test_what_a_check_raises_is_a_finding(check: str, build: Callable[[], Backbone], message: str) -> None:
    """And the other checks go on; a copy is used up, not the backbone."""
    backbone = build()
    before = copy.deepcopy(backbone.state_dict())
    findings = {finding.check: finding for finding in check_backbone(backbone)}
    assert not findings[check].kept
    assert findings[check].text.startswith(message)
    assert "\n" not in findings[check].text
    assert findings["gradients"].kept
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training


OWN_FILE = '''
import torch
from torch import nn
from neighbour import CHANNELS
from detseg.backbones.taps import tapped

def tiny(*, channels: int = CHANNELS, kind: str = "plain", dead: bool = False):
    trunk = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    backbone = tapped(trunk, {"c1": "2"}, size=(64, 64))
    if dead:
        backbone.extra = nn.Conv2d(1, 1, 1)
    return backbone

def needy(width):
    pass

def nothing():
    return nn.Identity()

def failing(*, width: float = 1.0):
    raise RuntimeError("out of luck")
'''


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of a user's, next to another that it imports, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "neighbour.py").write_text("CHANNELS = 4\n")
    (tmp_path / "own.py").write_text(OWN_FILE)
    (tmp_path / "wrong.py").write_text("import torch\nundefined\n")
    for name in ("own", "neighbour", "wrong"):
        monkeypatch.delitem(importlib.import_module("sys").modules, name, raising=False)
    return "own.py"


def main(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The tool's exit code, output and errors."""
    try:
        code = int(importlib.import_module("detseg.commands.check_backbone").main(arguments))
    except SystemExit as exit_:
        code = int(str(exit_.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(own_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = main(["own.py:tiny", "--set", "channels=6"], capsys)
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    # 6 x 3 x 3 x 3 weights and 6 biases, and twice 6 of the BatchNorm.
    assert lines[0] == "own.py:tiny: TappedTrunk with 180 parameters"
    assert lines[1] == "  specs: ok (c1: 6 at stride 2)"
    assert len(lines) == len(CHECKS) + 2
    assert lines[-1] == "broken: nothing"

    code, out, errors = main(["own:tiny", "--set", "dead=true"], capsys)
    assert (code, errors) == (1, "")
    assert "  gradients: FAILED: 2 of 6 parameters get no gradient: extra.weight, extra.bias\n" in out
    assert out.endswith("broken: gradients\n")


@pytest.mark.parametrize(("arguments", "message"), [
    (["tiny"], 'error: a builder is named as "module:function" or "path/to/file.py:function", got \'tiny\''),
    (["nowhere.py:tiny"], "error: there is no file nowhere.py"),
    (["no_such_module:tiny"], "error: the module no_such_module cannot be imported: ModuleNotFoundError: No module"),
    (["wrong.py:tiny"], "error: wrong.py, line 2: NameError: name 'undefined' is not defined"),
    (["own.py:tinny"], "error: own.py has no function 'tinny'; did you mean tiny?"),
    (["own.py:needy"], "error: own.py:needy needs width; give them defaults, or name a function without arguments"),
    (["own.py:nothing"], "error: own.py:nothing gives a Identity; a backbone derives from detseg.interfaces.Backbone"),
    (["own.py:failing"], "error: own.py:failing: RuntimeError: out of luck"),
    (["own.py:tiny", "--set", "chanels=3"], "error: there is no setting 'chanels'; did you mean channels?"),
    (["own.py:tiny", "--set", "channels"], "error: --set takes name=value, got 'channels'"),
    (["own.py:tiny", "--set", "channels=few"], "error: channels takes a whole number, got 'few'"),
    (["own.py:tiny", "--set", "kind=other"], "error: kind is not a number; --set changes numbers, true/false and none "
                                             "only: name a function that calls own.py:tiny with it"),
    ([], "the following arguments are required: module:function"),
])
def test_a_wrong_command_line_is_explained(
    arguments: list[str], message: str, own_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = main(arguments, capsys)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_builders_are_found_in_modules() -> None:
    backbone = build_backbone("detseg.backbones.mobilenet_v1:mobilenet_v1", ["width=0.25"])
    assert backbone.specs == mobilenet_v1(width=0.25).specs
    with pytest.raises(ValueError, match=re.escape("mobilenet_v1:mobilenet_v1: width must lie between 0.05 and 8")):
        build_backbone("detseg.backbones.mobilenet_v1:mobilenet_v1", ["width=99"])
