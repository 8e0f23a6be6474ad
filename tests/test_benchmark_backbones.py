"""Our backbones beside timm's and torchvision's: the same networks, honest memory, what the command writes. No time is
judged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detseg.backbones import builders
from detseg.benchmark import backbones as backbone_benchmark
from detseg.benchmark.backbones import RATIOS, REFERENCES, Figures, Setup, as_json, means
from detseg.benchmark.synthetic import calibrate
from detseg.benchmark.tensor_memory import peak_memory
from detseg.commands.benchmark_backbones import main

LARGEST = ("mobilenet_v4_conv_large", "mobilenet_v4_hybrid_large")
"""Each has a smaller one of its family beside it."""
KEYS = {"size", "batch_size", "threads", "step_threads", "reference_channels_last", "torch", "means", "backbones"}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in LARGEST else ()) for name in REFERENCES])
def test_the_peer_is_the_same_network(name: str) -> None:
    """Weights are taken strictly; and it costs the same memory in training, tensor by tensor."""
    reference = REFERENCES[name]
    ours, theirs = backbone_benchmark._pair(builders()[name], reference)
    images = torch.randn(2, 3, 32, 64)
    calibrate(theirs, [images])
    backbone_benchmark._copy_weights(theirs, ours, reference)
    momenta = {module.momentum for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)}
    assert None not in momenta
    with torch.inference_mode():
        features = ours.eval()(images)
        assert list(features) == ["c2", "c3", "c4", reference.last_tap]
        assert backbone_benchmark._distance(features, theirs.eval()(images)) < 1e-3
        assert all(float(feature.abs().max()) > 1e-20 for feature in features.values()), "activations vanish"
    steps = [backbone_benchmark._step(network.train(), images) for network in (ours, theirs)]
    mine, other = (peak_memory(step) for step in steps)
    assert mine <= 1.001 * other


def test_backbones_of_the_paper_have_a_peer() -> None:
    assert REFERENCES.keys() == builders().keys()


def test_memory_by_hand() -> None:
    kilo = torch.zeros(256)
    assert kilo.nbytes == 1024

    def views_and_in_place() -> None:
        kilo.view(16, 16).add_(1)

    def one_after_the_other() -> None:
        for _ in range(5):
            (kilo + 1).sum()

    def together() -> None:
        held = [kilo * k for k in range(5)]
        del held

    assert peak_memory(views_and_in_place) == 0
    assert peak_memory(one_after_the_other) == 1024 + 4
    assert peak_memory(together) == 5 * 1024

    layer = nn.Linear(256, 256, bias=False)

    def backward() -> None:
        layer.weight.grad = None
        layer(kilo).exp().sum().backward()

    # The product, its exponential and their sum; then the gradients of all three, and the weight's 256 rows.
    assert 257 * 1024 < peak_memory(backward) < 263 * 1024
    assert peak_memory(backward) == peak_memory(backward)


def test_the_command_prints_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "figures.json"
    assert main(["mobilenet_v3_small", "mobilenet_v1", "--seconds", "0", "--threads", "1", "--size", "64",
                 "--batch-size", "2", "--channels-last", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS
    assert (written["size"], written["batch_size"], written["threads"], written["step_threads"]) == (64, 2, 1, 1)
    assert written["reference_channels_last"]
    small, v1 = written["backbones"]
    assert small.keys() == set(Figures._fields)
    assert [(each["backbone"], each["reference"]) for each in (small, v1)] == [
        ("mobilenet_v3_small", "torchvision mobilenet_v3_small"), ("mobilenet_v1", "timm mobilenetv1_100")]
    for each in (small, v1):
        assert each["difference"] < 1e-3
        assert all(each[name] > 0 for name in Figures._fields[2:-1])
        assert each["memory_ratio"] == each["memory_mib"] / each["reference_memory_mib"]
    assert written["means"] == {name: pytest.approx((small[name] + v1[name]) / 2) for name in RATIOS}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| backbone | against | forward, ms | ")
    assert lines[2].startswith(f"| `mobilenet_v3_small` | torchvision mobilenet_v3_small | {small['forward_ratio']:.2f}"
                               f" ({small['forward_ms']:.1f} / {small['reference_forward_ms']:.1f}) | ")
    assert lines[4].startswith(f"| mean |  | {written['means']['forward_ratio']:.2f} | ")
    assert "laid out channels-last as ours" in lines[-1]
    assert len(lines) == 10


def test_how_long_and_on_what_is_told() -> None:
    setup = Setup()
    assert (setup.size, setup.batch_size, setup.threads) == (320, 8, None)
    assert setup.step_threads == torch.get_num_threads()
    figures = Figures("a", "timm a", *(float(number) for number in range(1, 13)))
    assert means([figures, figures._replace(step_ratio=20.0)]) == {
        "forward_ratio": 8.0, "forward_module_ratio": 9.0, "step_ratio": 15.0, "memory_ratio": 11.0}
    told = backbone_benchmark.notes([figures, figures._replace(difference=20.0)], setup)
    assert "one image of 320 x 320, CPU threads: 1;" in told
    assert "laid out as it comes; features differ by 2.0e+01 of the largest number at most" in told
    assert as_json([figures], setup)["threads"] == 1


@pytest.mark.parametrize(("options", "message"), [
    (("--seconds", "-1"), "seconds must be at least 0, got -1.0"),
    (("--seconds", "nan"), "seconds must be at least 0, got nan"),
    (("--threads", "0"), "threads must be at least 1, got 0"),
    (("--size", "31"), "size must be at least 32, the coarsest stride, got 31"),
    (("--batch-size", "1"), "batch_size must be at least 2, got 1: in training, BatchNorm needs two values"),
    (("mobilenet_v5",), "there is no backbone 'mobilenet_v5'; did you mean mobilenet_v"),
])
def test_options_that_make_no_sense(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options]) == 2
    assert message in capsys.readouterr().err


def test_a_backbone_without_a_peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backbone_benchmark, "REFERENCES", {name: REFERENCES[name] for name in ("mobilenet_v2",)})
    assert main(["mobilenet_v1"]) == 2
    assert capsys.readouterr().err == ("error: no reference of mobilenet_v1 is known; those of mobilenet_v2 are in "
                                       "detseg/benchmark/backbones.py\n")
    assert list(backbone_benchmark.measurable(())) == ["mobilenet_v2"]


def test_without_timm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def find(name: str, *arguments: Any) -> None:
        assert name == "timm"

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert list(backbone_benchmark.measurable(["mobilenet_v2"])) == ["mobilenet_v2"]
    assert main(["mobilenet_v1"]) == 2
    assert capsys.readouterr().err == (
        "error: timm is not installed, and mobilenet_v1 is measured against it: pip install timm, or name backbones "
        "that torchvision has\n")
