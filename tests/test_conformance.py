"""What every config keeps, found by discovery: it says what it is, builds for any classes, and every parameter learns.
Of every head one config trains, resumes bit for bit and evaluates."""

from __future__ import annotations

import ast
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detseg import config
from detseg.api import load_model
from detseg.checkpoint import load
from detseg.config import Config, resolve_classes
from detseg.data.loading import collate_training
from detseg.evaluate import evaluate
from detseg.interfaces import Head, SampleKey
from detseg.optim import Cosine
from detseg.run_folder import RunFolder
from detseg.train import Result, fit

from . import discovery

CONFIGS = {path.stem: path for path in discovery.configs()}
LARGER = ("fasterrcnn_v3_large_fpn", "fasterrcnn_v4_conv_medium_fpn", "retinanet_v4_conv_medium",
          "retinanet_v4_hybrid_medium")
"""Of the same head there is a smaller one."""
SHORT = Cosine(epochs=2, warmup_steps=1)
"""In place of the config's schedule, whose milestones may lie far behind."""


_HEAD_ALONE = """

@wraps(model)
def on_one_convolution(*given, **named):
    predictor = model(*given, **named)
    predictor.backbone = OneConvolution(predictor.backbone.specs)
    return predictor


experiment = Experiment("""


def _written_for_its_head(name: str) -> Path:
    """The config, its head on one convolution for each tap: a run's time goes with the number of tensors, and backbones
    have their own test."""
    text = CONFIGS[name].read_text("utf-8")
    for old, new in (("\n\nexperiment = Experiment(", _HEAD_ALONE), ("model=model,", "model=on_one_convolution,"),
                     ("\nfrom detseg", "\nfrom functools import wraps\n\n"
                      "from detseg.benchmark.synthetic import OneConvolution\nfrom detseg")):
        assert old in text
        text = text.replace(old, new, 1)
    path = Path(f"{name}.py")
    path.write_text(text, "utf-8")
    return path


def _small(path: Path, *, sample: bool = False) -> Config:
    small = discovery.small_config(path, sample=sample)
    task = config.load(path).experiment.task
    return replace(small, experiment=small.experiment.changed("schedule", SHORT).changed("task", task))


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Config], Path]:
    """The folder of a config's sample data, with 8 images to train on; each sample is generated once."""
    folders: dict[Any, Path] = {}

    def generate(small: Config) -> Path:
        make: Any = small.experiment.data.generate
        if make not in folders:
            folders[make] = make(tmp_path_factory.mktemp("sample") / "data", num_train=8, num_val=3)
        return folders[make]

    return generate


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_loads_and_describes_itself(name: str) -> None:
    loaded = config.load(CONFIGS[name])
    assert {"model.width", "optimizer.lr", "batch_size"} <= loaded.entries().keys()
    text = loaded.describe()
    assert "optimizer.lr" in text
    assert all(line.strip() for line in text.splitlines())
    config.load(CONFIGS[name], sample=True).describe()


@pytest.mark.parametrize("name", CONFIGS)
def test_its_docstring_says_what_it_is(name: str) -> None:
    text = ast.get_docstring(ast.parse(CONFIGS[name].read_bytes()))
    assert text is not None
    assert re.search(r"arXiv \d{4}\.\d{5}", text), "the paper"
    command = rf"^    (torchrun .* -m )?detseg train {name} --data "
    assert re.search(command, text, re.MULTILINE), "the command"
    measure = r"(AP|mIoU|top-1)"
    score = rf"\d\d\.\d {measure}|0\.\d+ {measure}|{measure}.*benchmarks\.md|Nobody has published an? {measure}"
    assert re.search(score, text), "the expected score"


@pytest.mark.parametrize("name", CONFIGS)
def test_it_builds_for_any_classes(name: str) -> None:
    model = _small(CONFIGS[name]).build_model(discovery.OWN)
    assert model.classes == discovery.OWN
    assert model.head.num_outputs in (len(discovery.OWN), len(discovery.OWN) + 1)
    layers = dict(model.head.named_modules())
    assert model.head.class_layers
    for layer, num_rows in model.head.class_layers.items():
        found = layers[layer]
        assert isinstance(found, nn.Conv2d | nn.Linear), layer
        assert found.weight.shape[0] % (model.head.num_outputs * num_rows) == 0, layer
    height, width = model.resize.size
    images = torch.randint(0, 256, (2, 3, height, width + 32), dtype=torch.uint8)
    task = _small(CONFIGS[name]).experiment.task
    with torch.inference_mode():
        finished = task.postprocess(model.folded().decode(images))
    assert all(len(tensor) == 2 for tensor in finished)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in LARGER else ()) for name in CONFIGS])
def test_every_parameter_learns(name: str, generated: Callable[[Config], Path]) -> None:
    """And images without objects do no harm: the loss of a batch of them is finite."""
    small = _small(CONFIGS[name])
    experiment = small.experiment
    index = experiment.data.read(generated(small), "train")
    model = small.build_model(index.classes).train()
    dataset = experiment.data.dataset(index, model.resize, augment=None, seed=0)
    batch = collate_training([dataset.training(SampleKey(0, item)) for item in range(len(dataset))],
                             task=experiment.task, fill=model.resize.fill)
    losses = experiment.objective(model, model, batch)
    torch.autograd.backward(sum((term.sum for term in losses.values()), torch.zeros(())))
    assert all(float(term.count) > 0 for term in losses.values())
    still = [name for name, parameter in model.named_parameters()
             if parameter.grad is None or not bool(parameter.grad.isfinite().all())]
    assert not still


def _interrupt_after(head: type[Head[Any, Any, Any]], *, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this step's loss."""
    original, calls = head.loss, list[int]()

    def loss(self: Head[Any, Any, Any], raw: Any, targets: Any, size: Any) -> Any:
        calls.append(1)
        if len(calls) == steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, raw, targets, size)

    monkeypatch.setattr(head, "loss", loss)


def _assert_same_run(one: Result, other: Result) -> None:
    mine, theirs = load(one.run.last), load(other.run.last)
    assert (mine.step, mine.best) == (theirs.step, theirs.best)
    assert mine.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(mine.weights[key], theirs.weights[key]) for key in mine.weights)
    assert one.numbers == pytest.approx(other.numbers, nan_ok=True, abs=0)


@pytest.mark.parametrize("name", sorted(discovery.one_config_a_head().values()))
def test_it_trains_resumes_and_evaluates(
    name: str, generated: Callable[[Config], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = _small(_written_for_its_head(name), sample=True)
    folder, experiment = generated(small), small.experiment
    undisturbed = fit(small, folder, out=Path("whole"))
    assert load(undisturbed.run.last).step == 4

    with monkeypatch.context() as patched:
        _interrupt_after(type(small.build_model(discovery.OWN).head), steps=3, monkeypatch=patched)
        with pytest.raises(KeyboardInterrupt):
            fit(small, folder, out=Path("cut"))
    assert load(RunFolder(Path("cut")).last).step == 3
    resumed = fit(small, folder, out=Path("cut"), resume=True)
    _assert_same_run(resumed, undisturbed)
    assert resumed.run.picture.is_file()

    trained = load_model(resumed.run.path, None)
    index = experiment.data.read(folder, "val")
    classes = resolve_classes(experiment.classes, index.classes)
    assert trained.loaded.classes == classes
    index = index.relabel(classes)
    dataset = experiment.data.dataset(index, trained.loaded.resize, augment=None, seed=0)
    found = evaluate(trained.loaded, experiment.task, dataset, metric=experiment.data.metric(index), batch_size=2,
                     workers=0, keep_predictions=True)
    assert found.numbers == pytest.approx(load(resumed.run.best).numbers, nan_ok=True, abs=1e-6)
    assert len(found.predictions) == 3


def test_every_head_has_a_config() -> None:
    built = {name: type(_small(CONFIGS[config_name]).build_model(discovery.OWN).head)
             for name, config_name in discovery.one_config_a_head().items()}
    assert built == discovery.head_classes()
