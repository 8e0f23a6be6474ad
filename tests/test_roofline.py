"""The roofline model: costs of single layers by hand, what it must give at both ends, crossings, the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large

from detseg import config
from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.benchmark.roofline import (
    FITTED,
    MOST,
    RIDGE_POINTS,
    Network,
    Ranking,
    Roofline,
    bound,
    crossings,
    network,
    networks,
    predicted,
)
from detseg.choices import PRECISIONS
from detseg.config_files import built_in_configs
from detseg.cost import NetworkCost, Operator, count_macs, count_tensorflow_macs, network_cost
from detseg.report.charts import Panel, write_chart

from .commands import run


def _layer(module: nn.Module, *shape: int) -> Operator:
    (found,) = network_cost(module, torch.zeros(shape)).operators
    return found


def test_a_convolution_by_hand() -> None:
    """3 x 3, 8 to 16 channels, stride 2, 12 x 20 to 6 x 10."""
    layer = _layer(nn.Conv2d(8, 16, 3, stride=2, padding=1), 1, 8, 12, 20)
    assert layer == Operator("", "conv 3x3", 6 * 10 * 16 * 8 * 9, 16 * 8 * 9, 16, 8 * 12 * 20, 16 * 6 * 10)
    activations = 8 * 12 * 20 + 16 * 6 * 10
    assert layer.bytes("fp32") == 4 * (16 * 8 * 9 + 16 + activations)
    assert layer.bytes("fp16") == 2 * (16 * 8 * 9 + 16 + activations)
    assert layer.bytes("int8") == 16 * 8 * 9 + 4 * 16 + activations
    assert layer.intensity("int8") == 69_120 / (1_152 + 64 + 2_880)


def test_depthwise_grouped_and_linear_by_hand() -> None:
    assert _layer(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), 1, 8, 6, 10) == Operator(
        "", "depthwise 5x5", 8 * 25 * 60, 8 * 25, 0, 8 * 60, 8 * 60)
    assert _layer(nn.Conv2d(8, 4, (1, 3), groups=2, bias=False), 1, 8, 6, 10).kind == "grouped conv 1x3"
    assert _layer(nn.Linear(32, 10), 3, 32) == Operator("", "linear", 3 * 32 * 10, 32 * 10, 10, 3 * 32, 3 * 10)
    assert _layer(nn.Linear(32, 10, bias=False), 2, 3, 32) == Operator("", "linear", 1920, 320, 0, 192, 60)


class Attention(nn.Module):
    """A product of activations, behind a layer that is called twice, and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(self.project(x), self.project(x).transpose(1, 2)) + 1.0


def test_products_of_activations_have_no_weights_and_shared_ones_are_kept_once() -> None:
    cost = network_cost(Attention(), torch.zeros(1, 6, 4))
    assert [(each.layer, each.kind, each.macs, each.weights) for each in cost.operators] == [
        ("project", "linear", 96, 16), ("project", "linear", 96, 16), ("", "matmul", 144, 0), ("", "add", 0, 0)]
    assert cost.operators[2].inputs == 2 * 24
    assert (cost.weights, cost.biases, cost.macs) == (16, 0, 336)
    assert (cost.weight_bytes("fp32"), cost.weight_bytes("int8")) == (64, 16)


class Bottleneck(nn.Module):
    """Expands four times, works in place, projects; with its input added."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.expand, self.project = nn.Conv2d(4, 16, 1, bias=False), nn.Conv2d(16, 4, 1, bias=False)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.hardswish(F.relu_(self.expand(x))))
        return x + y if self.skip else y


def test_peak_activations_by_hand() -> None:
    """Per pixel: 4 in and 16 expanded, 4 out. The input is needed until it is added, and the sum lies over it."""
    image = torch.zeros(1, 4, 5, 5)
    without, with_skip = (network_cost(Bottleneck(skip=skip), image) for skip in (False, True))
    assert (without.peak_activations, without.peak_layer) == (25 * (4 + 16), "expand")
    assert (with_skip.peak_activations, with_skip.peak_layer) == (25 * (4 + 16 + 4), "project")
    assert (with_skip.peak_bytes("fp32"), with_skip.peak_bytes("int8")) == (2400, 600)


class Tapped(nn.Module):
    """What the caller gets is there to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.third = nn.Conv2d(2, 20, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tap = self.first(x)
        return {"tap": tap, "end": self.third(self.second(tap).flatten(2).view(1, 2, 4, 4))}


def test_results_and_views_in_the_peak() -> None:
    cost = network_cost(Tapped(), torch.zeros(1, 3, 4, 4))
    assert [each.kind for each in cost.operators] == ["conv 1x1"] * 3, "a view is no operator"
    assert (cost.peak_activations, cost.peak_layer) == (16 * (8 + 2 + 20), "third")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite_v3_small", "lraspp_v3_small"])
def test_an_exported_program_costs_the_same(name: str) -> None:
    """It has the same operators in the same order, so the same is needed at the same time."""
    loaded = config.load(built_in_configs()[name])
    model, image = loaded.build_model(loaded.experiment.classes).folded(), torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        program = torch.export.export(model, (image,), strict=False)
    own, exported = network_cost(model, image), network_cost(program.module(check_guards=False), image)
    assert [each._replace(layer="") for each in own.operators] == [
        each._replace(layer="") for each in exported.operators]
    assert own._replace(operators=(), peak_layer="") == exported._replace(operators=(), peak_layer="")


class Swish(nn.Module):
    """An h-swish, a gate, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(F.relu(self.conv(x)))
        return y * F.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True)))


def test_tensorflow_multiply_adds_by_hand() -> None:
    conv, gate = 2 * 20 * 8 * 3 * 9, 2 * 8 * 8
    hardswish, mean, bias, hardsigmoid, product = 3 * 160, 160, 8, 2 * 8, 160
    module, image = Swish(), torch.zeros(1, 3, 4, 5)
    assert count_tensorflow_macs(module, image) == (
        conv + gate + hardswish + mean + bias + hardsigmoid + product) // 2
    assert count_macs(module, image) == (conv + gate) // 2
    assert module.conv.weight.device.type == "cpu"


@pytest.mark.parametrize("name", ["ssdlite_v3_small", "retinanet_v4_hybrid_medium", "lraspp_v2_camvid"])
def test_operators_add_up_to_the_count(name: str) -> None:
    loaded = config.load(built_in_configs()[name], ["model.width=0.5"])
    model = loaded.build_model(loaded.experiment.classes).folded()
    image = torch.zeros(1, 3, 64, 96)
    cost = network_cost(model, image)
    assert cost.macs == count_macs(model, image)
    assert not any(each.kind == "native_batch_norm" and "stem" in each.layer for each in cost.operators)
    names = {module for module, _ in model.named_modules()}
    assert {each.layer for each in cost.operators} <= names


def _operators(*macs_and_numbers: tuple[int, int]) -> tuple[Operator, ...]:
    return tuple(Operator(f"{k}", "conv 1x1", macs, 0, 0, 0, numbers)
                 for k, (macs, numbers) in enumerate(macs_and_numbers))


def test_both_ends_of_the_sweep() -> None:
    """At 0 multiply-adds alone count, far out bytes alone; between them never less than either."""
    (one,) = networks([Path("mobilenet_v3_small")], size=(64, 64))
    for precision in PRECISIONS:
        moved = sum(layer.bytes(precision) for layer in one.layers())
        assert predicted(one.layers(), 0, precision) == one.cost.macs
        assert predicted(one.layers(), 1e6, precision) == pytest.approx(1e6 * moved)
        for ridge in RIDGE_POINTS:
            assert predicted(one.layers(), ridge, precision) >= max(one.cost.macs, ridge * moved)
    unfused = one.layers(unfused=True)
    assert len(unfused) > len(one.layers())
    assert predicted(unfused, 0, "int8") == one.cost.macs
    assert predicted(unfused, 100, "int8") > predicted(one.layers(), 100, "int8")


def test_a_crossing_by_hand() -> None:
    """100 MACs and 10 bytes, against 60 MACs and 20 bytes: 60 up to 3, then 20 x; 100 up to 10: equal at 5."""
    many_macs, many_bytes = _operators((100, 10)), _operators((60, 20))
    assert crossings(many_macs, many_bytes, "int8") == [5.0]
    assert crossings(many_bytes, many_macs, "int8") == [5.0]
    assert crossings(many_macs, many_bytes, "fp32") == [1.25], "four bytes a number"
    assert crossings(many_macs, many_bytes, "int8", most=4.0) == []
    assert crossings(many_macs, many_macs, "int8") == []
    assert [bound(many_bytes[0], ridge, "int8") for ridge in (0, 3, 3.01)] == ["compute", "compute", "memory"]


def test_networks_that_are_equal_for_a_while_cross_where_they_meet() -> None:
    """30 + 30 MACs of 1 and 3 bytes, against 60 of 4: the same until the second layer is memory bound, ..."""
    one, other = _operators((30, 1), (30, 3)), _operators((60, 4))
    assert predicted(one, 5, "int8") == predicted(other, 5, "int8") == 60
    assert predicted(one, 12, "int8") == 30 + 36 > predicted(other, 12, "int8") == 60
    assert predicted(one, 40, "int8") == predicted(other, 40, "int8") == 160
    assert crossings(one, other, "int8") == [], "... and one is never faster"


def _named(name: str, *macs_and_numbers: tuple[int, int]) -> Network:
    return Network(name, (32, 32), NetworkCost(_operators(*macs_and_numbers), 0, 0, 0, ""))


def test_rankings_by_hand() -> None:
    roofline = Roofline((_named("many_macs", (100, 10)), _named("many_bytes", (60, 20))), ("int8",))
    assert roofline.rankings("int8") == [
        Ranking(0.0, 5.0, ("many_bytes", "many_macs")), Ranking(5.0, MOST, ("many_macs", "many_bytes"))]
    assert roofline.changes("int8") == [("many_macs", "many_bytes", [5.0])]
    notes = roofline.notes()
    assert "int8, fastest first from 0.0 to 5.0 MAC/byte: many_bytes, many_macs" in notes
    assert "int8: many_macs and many_bytes change their order at 5.0 MAC/byte" in notes


class Classifier(nn.Module):
    """A backbone as its paper has it: with a mean and a layer for 1,000 classes."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.backbone = mobilenet_v1(width=width, taps=("c5",))
        self.classify = nn.Linear(self.backbone.specs["c5"].channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.classify(self.backbone(images)["c5"].mean((2, 3)))
        return found


def _classifier(build: Callable[[], nn.Module], size: int) -> Network:
    with torch.device("meta"):
        return network("", build().eval(), (size, size))


def test_the_paper_on_whom_which_hardware_favours() -> None:
    """Section 3 of MobileNetV4's paper, on its Figures 2 and 3: with low ridge points V3-Large x 1.5 is fast, "even at
    the cost of increased memory complexity"; with high ones V1 x 1.5, whose multiply-adds "do not meaningfully slow
    down the model"."""
    v1, v3 = (_classifier(build, 224).layers() for build in (
        lambda: Classifier(1.5), lambda: mobilenet_v3_large(width_mult=1.5)))
    assert predicted(v3, 0, "int8") < predicted(v1, 0, "int8") / 2
    assert predicted(v3, MOST, "int8") > predicted(v1, MOST, "int8")
    assert len(crossings(v1, v3, "int8")) == 1
    # "Memory-intensive and low-MAC fully-connected layers are bottlenecked on memory bandwidth."
    last = v3[-1]
    assert (last.kind, bound(last, FITTED["Pixel 6 CPU"], "int8")) == ("linear", "memory")
    assert last.intensity("int8") < 1


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""
    values = np.array([one, other])[:, :, None]
    ranks = (values < values.swapaxes(1, 2)).sum(1) + (values == values.swapaxes(1, 2)).sum(1) / 2
    return float(np.corrcoef(ranks)[0, 1])


@pytest.mark.slow
def test_measured_latencies_of_the_paper_in_the_order_that_is_predicted() -> None:
    """Tables 6 and 16: ranks of int8 latencies on four devices, whose ridge points the authors fitted, of the eleven
    networks that torchvision and timm have. They give 0.96 to 0.97 over networks that they do not name."""
    measured: dict[Callable[[], nn.Module], tuple[int, float, float, float, float]] = {
        lambda: mobilenet_v2(width_mult=0.5): (224, 2.4, 1.8, 2.9, 0.7),
        lambda: mobilenet_v3_large(width_mult=0.5): (224, 2.4, 2.0, 3.5, 0.8),
        mobilenet_v2: (224, 5.0, 4.1, 3.9, 0.7),
        lambda: timm.create_model("mobilenetv4_conv_small"): (224, 2.4, 1.8, 2.4, 0.7),
        lambda: timm.create_model("mobilenetv1_100"): (224, 6.1, 4.6, 3.2, 0.8),
        lambda: mobilenet_v2(width_mult=1.5): (224, 9.3, 7.3, 5.6, 0.9),
        lambda: mobilenet_v2(width_mult=2.0): (224, 13.9, 10.6, 6.9, 1.1),
        lambda: timm.create_model("mobilenetv4_conv_medium"): (256, 11.4, 8.6, 7.3, 1.1),
        lambda: timm.create_model("mobilenetv4_hybrid_medium"): (256, 14.3, 10.8, nan, 1.5),
        lambda: timm.create_model("mobilenetv4_conv_large"): (384, 59.9, 43.0, 20.8, 2.4),
        lambda: timm.create_model("mobilenetv4_hybrid_large"): (384, 87.6, 61.8, nan, 3.8),
    }
    layers = [_classifier(build, size).layers() for build, (size, *_) in measured.items()]
    found = {}
    for column, device in enumerate(("Pixel 6 CPU", "Galaxy S23 CPU", "Pixel 4 DSP", "Pixel 8 EdgeTPU")):
        times = [row[1 + column] for row in measured.values()]
        known = [row for row, time in enumerate(times) if time == time]
        found[device] = tuple(
            round(_rank_correlation([times[row] for row in known],
                                    [predicted(layers[row], ridge, "int8") for row in known]), 2)
            for ridge in (FITTED[device], 0.0))
    assert found == {"Pixel 6 CPU": (0.98, 0.99), "Galaxy S23 CPU": (0.96, 0.97), "Pixel 4 DSP": (0.85, 0.83),
                     "Pixel 8 EdgeTPU": (0.87, 0.92)}


def test_any_module_can_be_compared() -> None:
    found = network("mine", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (10, 12))
    assert (found.cost.macs, [layer.layer for layer in found.layers()]) == (8 * 10 * 3 * 9 * 8, ["0"])


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "new" / "x.json", tmp_path / "new" / "x.png"
    code, out, _ = run("benchmark", "ssdlite_v3_small", "mobilenet_v1@0.5", "--roofline", "--precision", "int8", "fp32",
                       "--ridge", "30", "--layers", "2", "--size", "96", "128", "--json", str(file), "--picture",
                       str(picture), capsys=capsys)
    assert code == 0
    written = json.loads(file.read_text())
    first, second = written["networks"]
    assert (first["name"], second["name"], second["input_size"]) == ("ssdlite_v3_small", "mobilenet_v1@0.5", [96, 128])
    assert first["predicted"]["int8"][0] == first["macs"] == sum(layer["macs"] for layer in first["layers"])
    ratio = second["predicted"]["fp32"][-1] / first["predicted"]["fp32"][-1]
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("mobilenet_v1@0.5 ")]
    assert [row[-1] for row in rows][1] == f"{ratio:.2f}"
    assert len(rows) == 2, "one for each precision"
    for text in ("ssdlite_v3_small: the 2 heaviest of 88 layers at 30 MAC/byte, int8", "input: 128 x 96",
                 "layers are compute bound, and take", f"picture: {picture}"):
        assert text in out
    heaviest = max(first["layers"], key=lambda layer: max(layer["macs"], 30 * layer["int8"]["bytes"]))
    assert heaviest["layer"] in out
    assert heaviest["int8"]["bound"] == ("compute" if heaviest["int8"]["intensity"] >= 30 else "memory")
    drawn = np.asarray(Image.open(picture).convert("RGB"))
    assert drawn.shape == (2 * 506, 2 * 770, 3)
    assert (drawn[0, 0] == 255).all(), "the background is white"
    assert (drawn < 255).any(axis=2).mean() > 0.01


def test_a_second_stage_is_counted_for_its_regions() -> None:
    found = networks([Path("fasterrcnn_v3_large_320_fpn")], size=(96, 96), regions=7)[0]
    assert found.regions == 7
    of_stage = [layer for layer in found.layers() if layer.layer.startswith("head.second_stage.")]
    assert sum(layer.macs for layer in of_stage) == 7 * 14_359_552
    assert "second stage for 7 regions" in Roofline((found,)).notes()
    assert found.cost.weight_bytes("fp32") > 4 * sum(layer.weights for layer in of_stage)


@pytest.mark.parametrize(("arguments", "message"), [
    (["ssdlite_v2", "ssdlite_v1"], "one config is measured at a time, got 2; --roofline compares several"),
    (["ssdlite_v2", "--ridge", "30"], "--ridge is for predictions; add --roofline"),
    (["ssdlite_v2", "--unfused"], "--unfused is for predictions; add --roofline"),
    (["ssdlite_v2", "--roofline", "--artefact", "onnx"],
     "--artefact is for measuring, and --roofline predicts from counts alone; leave one out"),
    (["ssdlite_v2", "--roofline", "--seconds", "3"], "--seconds is for measuring"),
    (["ssdlite_v2", "--roofline", "--engine", "onnxruntime"], "--engine is for measuring"),
    (["ssdlite_v2", "--roofline", "--layers", "3"], "--layers lists layers at a ridge point; name one with --ridge"),
    (["mobilenet_v1", "--roofline", "--ridge", "-1"], "a ridge point is at least 0 MAC/byte, got -1.0"),
    (["mobilenet_v1", "--roofline", "--ridge", "nan"], "a ridge point is at least 0 MAC/byte, got nan"),
    (["mobilenet_v1", "--roofline", "--ridge", "1", "--layers", "0"], "layers must be at least 1, got 0"),
    (["mobilenet_v1", "--roofline", "--regions", "0"], "regions must be at least 1, got 0"),
    (["mobilenet_v1", "--roofline", "--regions", "5"], "--regions is for a second stage, and mobilenet_v1 has none"),
    (["mobilenet_v1", "mobilenet_v1", "--roofline"], "mobilenet_v1 is named twice"),
    (["mobilenet_v1@9", "--roofline"], "mobilenet_v1@9: width must lie between 0.05 and 8, got 9.0"),
    (["mobilenet_v1@wide", "--roofline"], "mobilenet_v1@wide: could not convert string to float: 'wide'"),
    (["mobilenet_v1@0.5", "--roofline", "--set", "model.width=2"], "stands behind an @, as in mobilenet_v1@"),
    (["mobilenet_v6", "--roofline"], "nor is it one of the backbones mnasnet_a1"),
    (["mobilenet_v1", "--roofline", "--picture", "x.bmp"], "a .png, .svg or .pdf file, got x.bmp; name it x.png"),
    (["mobilenet_v1", "--roofline", "--size", "8", "8"], "each at least 32, got (8, 8)"),
])
def test_what_makes_no_sense(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run("benchmark", *arguments, capsys=capsys)
    assert code == 2
    assert message in errors


def test_configs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    copied = tmp_path / "ssdlite_v3_small.py"
    copied.write_text(built_in_configs()["ssdlite_v3_small"].read_text("utf-8"), "utf-8")
    found = networks([Path("ssdlite_v3_small"), copied], ["model.size=64"])
    assert [one.name for one in found] == [str(built_in_configs()["ssdlite_v3_small"]), str(copied)]


def test_a_chart_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    panel = Panel(title="t", x_label="x", y_label="y", x=[0.0, 500.0], lines={"a": [1.0, 2.0]}, marks={"m": 30.0})
    write_chart(tmp_path / "x.svg", [[panel]])
    assert "<svg" in (tmp_path / "x.svg").read_text("utf-8")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match="the chart was not written"):
        write_chart(tmp_path / "folder.png", [[panel]])
    assert not list(tmp_path.glob(".*"))
