"""Inverted bottlenecks in parts give what they give whole, in less memory."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from detseg.benchmark.tensor_memory import peak_memory
from detseg.commands.benchmark import main as benchmark
from detseg.export.artefact import open_artefact
from detseg.export.convert import Source, export
from detseg.export.format import Options
from detseg.export.formats import format_named
from detseg.inference import fold
from detseg.interfaces import Backbone
from detseg.model import Predictor
from detseg.split_execution import SplitBottleneck, split
from detseg.tasks.detection import Detection

from . import discovery, micro
from .test_backbones import _randomise_statistics

SPLITTABLE = sorted(set(discovery.backbones()) - {"mobilenet_v1"})


def folded(name: str, **settings: Any) -> Backbone:
    network = discovery.backbones()[name](**settings)
    _randomise_statistics(network)
    fold(network)
    return network


def blocks(network: nn.Module) -> list[SplitBottleneck]:
    return [module for module in network.modules() if isinstance(module, SplitBottleneck)]


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
@pytest.mark.parametrize("name", SPLITTABLE)
def test_every_backbone_gives_the_same(name: str, parts: int) -> None:
    network = folded(name, width=0.5)
    images = torch.randn(2, 3, 64, 97)
    with torch.inference_mode():
        expected = network(images)
        split(network, parts)
        found = network(images)
    assert blocks(network)
    assert {len(block.parts) for block in blocks(network)} == {parts}
    for tap, tensor in expected.items():
        torch.testing.assert_close(found[tap], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))


@pytest.mark.parametrize("settings", [
    {"taps": ("c4.expansion", "c5")}, {"taps": ("c5.depthwise",)}, {"padding": "same"}, {"output_stride": 8}],
    ids=["an expansion is tapped", "it ends in a block", "padding of TensorFlow", "dilated"])
def test_every_wiring_gives_the_same(settings: dict[str, object]) -> None:
    network = folded("mobilenet_v3_large", width=0.35, **settings)
    images = torch.randn(1, 3, 65, 96)
    with torch.inference_mode():
        expected = network(images)
        split(network, 3)
        found = network(images)
    for tap, tensor in expected.items():
        torch.testing.assert_close(found[tap], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max()))


def test_parts_are_the_channels_in_their_order() -> None:
    network = folded("mobilenet_v2", width=0.35)
    split(network, 5)
    sizes = [[part.project.in_channels for part in cast(Any, block.parts)] for block in blocks(network)]
    assert all(max(one) - min(one) <= 1 for one in sizes)
    split_finely = folded("mobilenet_v2", width=0.35)
    split(split_finely, 10_000)
    assert [len(block.parts) for block in blocks(split_finely)] == [sum(one) for one in sizes]


def test_less_memory_the_more_parts() -> None:
    memory = []
    for parts in (1, 2, 4):
        network = folded("mobilenet_v2")
        split(network, parts)
        images = torch.zeros(1, 3, 96, 96)
        with torch.inference_mode():
            memory.append(peak_memory(partial(network, images)))
    assert memory[0] > 1.3 * memory[1] > 1.3 * memory[2]


def test_what_cannot_be_split() -> None:
    for parts, name, message in ((2, "mobilenet_v1", "no inverted bottlenecks"), (0, "mobilenet_v2", "1 part or more")):
        with pytest.raises(ValueError, match=message):
            split(folded(name, width=0.5), parts)


def network() -> tuple[Predictor, Detection]:
    """A small SSDLite on MobileNetV3."""
    config = discovery.small_config(discovery.config_of_head("ssdlite"))
    predictor = config.build_model(discovery.OWN)
    micro.use(predictor, predictor.resize.size)
    task = config.experiment.task
    assert isinstance(task, Detection)
    return predictor, task


@pytest.mark.conversion
def test_a_file_in_parts_is_the_checkpoint(tmp_path: Path) -> None:
    predictor, task = network()
    source, kind = Source(predictor, task, "small"), format_named("onnx")
    images = micro.scenes(2, seed=3)
    whole = export(source, tmp_path / "whole.onnx", kind, Options(contract="raw"), images=images)
    split_in_3 = Options(contract="raw", execution="split", parts=3)
    parts = export(source, tmp_path / "parts.onnx", kind, split_in_3, images=images)
    assert (whole.manifest.parts, parts.manifest.parts) == (None, 3)
    assert parts.manifest.checkpoint == whole.manifest.checkpoint
    pixels = torch.randint(0, 256, (1, 3, *predictor.resize.size)).float()
    for name, tensor in open_artefact(parts.path).outputs(pixels).items():
        torch.testing.assert_close(tensor, open_artefact(whole.path).outputs(pixels)[name], rtol=1e-4, atol=1e-4)
    operators = [kind.operators(one.path, one.manifest.input.pack(pixels).numpy())  # type: ignore[misc]
                 for one in (whole, parts)]
    assert operators[1].total > operators[0].total + 20


@pytest.mark.parametrize("arguments", [
    pytest.param(["--artefact", "onnx"], marks=[pytest.mark.slow, pytest.mark.conversion], id="files too"),
    pytest.param([], id="eager")])
def test_the_benchmark_compares_them(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["ssdlite_v2", "--parts", "2", "--seconds", "0", "--json", str(tmp_path / "x.json"), *arguments,
               "--set", "model.width=0.35", "model.size=96"]
    assert benchmark(options) == 0, capsys.readouterr().err
    assert "what tensors made in the network hold at most" in " ".join(capsys.readouterr().out.split())
    rows = json.loads((tmp_path / "x.json").read_text("utf-8"))["rows"]
    assert [(row["runtime"], row["parts"]) for row in rows[:2]] == [("eager", None), ("eager", 2)]
    assert rows[1]["megabytes"] < 0.7 * rows[0]["megabytes"]
    assert len(rows) == (4 if arguments else 2)


@pytest.mark.parametrize(("arguments", "message"), [
    (["ssdlite_v1", "--parts", "2"], "no inverted bottlenecks"),
    (["ssdlite_v2", "--parts", "0"], "1 part or more, got 0"),
    (["ssdlite_v2", "--parts", "2", "--against", "torchvision"], "--against is not for --parts"),
    (["ssdlite_v2", "--parts", "2", "--artefact", "x.onnx"], "x.onnx"),
])
def test_what_the_benchmark_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark([*arguments, "--seconds", "0", "--size", "64", "64"]) == 2
    assert message in capsys.readouterr().err
