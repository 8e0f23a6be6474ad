"""The benchmark: exact counts, what it writes, and that what it times does what it says. No time is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from detseg import benchmark, config
from detseg.benchmark import IMAGE_SIZE, TORCHVISION, Counts, Setup, Times, counts
from detseg.config import Config
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.train import _backward
from tools.benchmark import main

from .conftest import ROOT

CONFIGS = ROOT / "configs"
SMALL = str(CONFIGS / "ssdlite_v3_small.py")
LARGE = str(CONFIGS / "ssdlite_v3_large.py")
SIDE_KEYS = {*Counts._fields, *Times._fields, "train_images_per_s"}
KEYS = SIDE_KEYS | {"config", "input_size", "image_size", "threads", "train_threads", "batch_size", "torch"}


def _small() -> tuple[Config, Predictor]:
    loaded = config.load(Path(SMALL), ["model.size=96"])
    torch.manual_seed(0)
    return loaded, loaded.build_model(loaded.experiment.classes)


@pytest.mark.parametrize(("name", "parameters", "macs"), [
    ("ssdlite_v3_large", 3_440_060, 583_171_904),
    ("ssdlite_v2", 4_337_013, 788_830_144),
    ("ssdlite_v3_small", 1_785_743, 162_303_424),
])
def test_counts_are_the_published_ones(name: str, parameters: int, macs: int) -> None:
    loaded = config.load(CONFIGS / f"{name}.py")
    assert counts(loaded.build_model(loaded.experiment.classes)) == (parameters, macs)


def test_the_command_prints_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "figures.json"
    assert main([SMALL, "--seconds", "0", "--threads", "1", "--batch-size", "2", "--json", str(file),
                 "--set", "model.size=96", "model.width=0.5"]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS
    assert written["config"] == "ssdlite_v3_small"
    assert (written["input_size"], written["image_size"]) == ([96, 96], list(IMAGE_SIZE))
    assert (written["threads"], written["train_threads"], written["batch_size"]) == (1, 1, 2)
    assert written["parameters"] < 1_785_743
    assert written["train_images_per_s"] == pytest.approx(2000 / written["train_step_ms"])
    assert all(written[name] > 0 for name in Times._fields)
    printed = capsys.readouterr().out
    for text in (f"{written['parameters']:,}", f"{written['macs']:,}", f"{written['latency_ms']:,.1f}",
                 "prediction: 1 thread, a decoded image of 640 x 480; 1% of all scores are above 0.001, 10% where",
                 "training: 1 thread, batch 2 at 96 x 96"):
        assert text in printed
    assert "torchvision" not in printed


@pytest.mark.slow
def test_torchvision_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main([LARGE, "--against", "torchvision", "--seconds", "0", "--batch-size", "2", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS | {"against"}
    assert (written["threads"], written["train_threads"]) == (1, torch.get_num_threads())
    against = written["against"]
    assert against.keys() == SIDE_KEYS | {"name", "ratios", "equal"}
    assert against["name"] == "torchvision ssdlite320_mobilenet_v3_large"
    assert against["ratios"].keys() == set(Times._fields)
    assert all((against[name], written[name]) == (value, value)
               for name, value in {"parameters": 3_440_060, "macs": 583_171_904}.items())
    equal = against["equal"]
    assert (equal["images"], equal["detections"]) == (8, 2 * 8 * 300)
    assert equal["unmatched"] <= 4
    assert equal["max_score_difference"] < 1e-4
    assert 0 < equal["loss_difference"] < 1e-4, "the training steps compute the same, and not with the same code"
    printed = capsys.readouterr().out
    assert "results equal: of 4800 detections on 8 images" in printed
    assert f"{against['ratios']['latency_ms']:.2f}" in printed


def test_a_config_that_torchvision_has_not_or_not_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([SMALL, "--against", "torchvision"]) == 2
    assert capsys.readouterr().err == ("error: torchvision has no model of ssdlite_v3_small to compare with; it has "
                                       f"one of {', '.join(TORCHVISION)}\n")
    for change in ("model.width=0.5", "model.size=256", "model.reduced_tail=false"):
        assert main([LARGE, "--against", "torchvision", "--set", change]) == 2
        told = capsys.readouterr().err
        assert "torchvision's ssdlite320_mobilenet_v3_large has one width, one tail, one input size" in told
        assert "leave out --set model.*" in told
    assert all((CONFIGS / f"{name}.py").is_file() for name in TORCHVISION)


@pytest.mark.parametrize(("option", "message"), [
    (("--seconds", "-1"), "seconds must be at least 0, got -1.0"),
    (("--seconds", "nan"), "seconds must be at least 0, got nan"),
    (("--threads", "0"), "threads must be at least 1, got 0"),
    (("--batch-size", "1"), "batch_size must be at least 2, got 1: in training, BatchNorm needs two values"),
])
def test_options_that_make_no_sense(
    option: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SMALL, *option]) == 2
    assert message in capsys.readouterr().err


def test_threads_of_training_are_all_unless_given() -> None:
    assert (Setup().latency_threads, Setup().train_threads) == (1, torch.get_num_threads())
    assert (Setup(threads=3).latency_threads, Setup(threads=3).train_threads) == (3, 3)


def test_what_is_timed_resembles_a_trained_network() -> None:
    loaded, model = _small()
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    benchmark._enliven(model)
    assert not model.training
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta
    images = benchmark._textures(2, IMAGE_SIZE, seed=1)
    numbers = []
    for share in (0.01, 0.1):
        benchmark._lower_scores(model, share)
        with torch.inference_mode():
            scores = model.head.decode(model(benchmark._inputs(model, images[:1]))).scores
        assert float((scores > 0.001).float().mean()) == pytest.approx(share, rel=0.1)
        found = [predict_image(model, loaded.experiment.task, image) for image in images]
        assert len(found[0].scores.unique()) > 0.9 * len(found[0].scores), "scores tie"
        assert not torch.equal(found[0].scores, found[1].scores), "activations vanish"
        numbers.append(len(found[0].scores))
    assert numbers == [100, 100], "as many as the config keeps"


def test_the_step_is_that_of_training_and_changes_no_weight() -> None:
    loaded, model = _small()
    batch = benchmark._batch(model, loaded.experiment, 3)
    assert [int((labels >= 0).sum()) for labels in batch.targets.labels] == [1, 2, 3]
    assert (batch.targets.boxes[..., 2:] >= batch.targets.boxes[..., :2]).all()
    fabric = Fabric(accelerator="cpu", devices=1)
    _, trained = _small()
    expected = _backward(fabric, fabric.setup(trained.train()), trained, batch=batch, parts=1)["loss"]
    step = benchmark._step("detseg", model, loaded, batch_size=3)
    before = [parameter.clone() for parameter in model.parameters()]
    assert step() == pytest.approx(expected, rel=1e-5)
    assert step() == pytest.approx(expected, rel=1e-5)
    assert all(map(torch.equal, before, model.parameters()))


def test_the_step_has_the_precision_of_the_experiment() -> None:
    loaded, _ = _small()
    half = replace(loaded, experiment=loaded.experiment.changed("precision", "bf16-mixed"))
    losses = [benchmark._step("detseg", _small()[1], each, batch_size=2)() for each in (loaded, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_training_process_that_ends_is_reported(tmp_path: Path) -> None:
    with (pytest.raises(OSError, match=r"the process that trains detseg ended.*--batch-size below 16 needs less"),
          benchmark._own_process("detseg", tmp_path / "absent.py", (), setup=Setup()) as step):
        step()
