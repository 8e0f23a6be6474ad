"""Every backbone, found by discovery, in SSDLite: it trains, resumes bit for bit, is validated and exports."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from detseg import config
from detseg.api import load_model
from detseg.checkpoint import load
from detseg.commands.compare_backbones import main
from detseg.config import Config
from detseg.data.sample import generate_sample
from detseg.evaluate import evaluate
from detseg.structures import Classes
from detseg.train import fit
from heads.ssdlite import SSDLite

from . import discovery
from .conftest import ROOT

BACKBONES = discovery.backbones()
CONFIG = ROOT / "configs" / "ssdlite_backbones.py"
CLASSES = Classes(names=("cat", "dog", "cow"), source_ids=(3, 5, 9))

SMALL = ("model.size=64", "model.width=0.25", "batch_size=2", "schedule.epochs=1", "schedule.warmup_steps=1",
         "validate_every=1", "workers=0", "log_every=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps an epoch."""
    return generate_sample(tmp_path_factory.mktemp("sample") / "data", num_train=4, num_val=2)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _small(name: str) -> Config:
    return config.load(CONFIG, [*SMALL, f"model.backbone={name}"], sample=True)


def _interrupt_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this step's loss."""
    original, calls = SSDLite.loss, list[int]()

    def loss(self: SSDLite, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, *given)

    monkeypatch.setattr(SSDLite, "loss", loss)


LARGE = {"mobilenet_v4_conv_large", "mobilenet_v4_hybrid_large", "mobilenet_v3_large", "mobilenet_v4_conv_medium",
         "mnasnet_b1", "mobilenet_v3_large_minimalistic", "mobilenet_v3_small_minimalistic"}
"""Each has another of its family beside it."""
EVERY_BACKBONE = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in BACKBONES]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("mobilenet_v1", "mobilenet_v4_hybrid_medium") else pytest.mark.slow)
    for name in BACKBONES])
def test_it_trains_and_resumes(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, in one go and cut after the first: the same weights, averages, momenta and numbers."""
    small = _small(name)
    whole = fit(small, data, out=Path("whole"))
    with monkeypatch.context() as patched:
        _interrupt_in(1, patched)
        with pytest.raises(KeyboardInterrupt):
            fit(small, data, out=Path("cut"))
    assert load(Path("cut") / "last.pt").step == 1
    resumed = fit(small, data, out=Path("cut"), resume=True)

    mine, theirs = load(resumed.run.last), load(whole.run.last)
    assert mine.step == theirs.step == 2
    for ours, others in ((mine.model, theirs.model), (mine.ema, theirs.ema), (mine.optimizer, theirs.optimizer)):
        (leaves, structure), (other_leaves, other_structure) = tree_flatten(ours), tree_flatten(others)
        assert structure == other_structure
        assert leaves
        assert all(map(_equal, leaves, other_leaves))
    assert resumed.numbers == pytest.approx(whole.numbers, nan_ok=True, abs=0)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one == other


@pytest.mark.parametrize("name", EVERY_BACKBONE)
def test_it_exports_strictly(name: str) -> None:
    """As it is exported, with BatchNorm folded; `test_export` has whole networks."""
    backbone = _small(name).build_model(CLASSES).folded().backbone
    images = torch.randn(1, 3, 64, 96)
    program = torch.export.export(backbone, (images,), strict=False)
    with torch.inference_mode():
        found, wanted = program.module()(images), backbone(images)
    assert list(found) == list(wanted)
    for tap, feature in wanted.items():
        torch.testing.assert_close(found[tap], feature)


def test_the_finest_tap_is_what_a_backbone_has() -> None:
    """The expansion at stride 16, as in SSDLite's paper, or the last map where no block expands."""
    taps = {name: list(_small(name).build_model(CLASSES).backbone.specs) for name in (
        "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large_minimalistic")}
    assert taps == {"mobilenet_v1": ["c4", "c5"], "mobilenet_v2": ["c4.expansion", "c5"],
                    "mobilenet_v3_large_minimalistic": ["c4.expansion", "c5"]}


def test_the_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("mobilenet_v1", "mobilenet_v3_small_minimalistic")
    command = [*names, "--out", "new/runs", "--data", str(data), "--set", *SMALL]
    printed = []
    for _ in range(2):
        assert main(command) == 0
        printed.append(capsys.readouterr().out.splitlines()[-4:])
    assert printed[0] == printed[1], "the second time nothing is left to do"
    assert printed[0][0] == "| backbone | AP | AP50 | steps |"
    assert [line.split(" | ")[0] for line in printed[0][2:]] == [f"| `{name}`" for name in names]
    assert all(line.endswith(" | 2 |") for line in printed[0][2:])
    for name in names:
        # The run knows its backbone: nothing has to be set again.
        trained = load_model(Path("new/runs") / name, None)
        assert trained.config is not None
        assert trained.config.entries()["model.backbone"].value == name
        experiment = trained.config.experiment
        index = experiment.data.read(data, "val").relabel(trained.classes)
        dataset = experiment.data.dataset(index, trained.loaded.resize, augment=None, seed=0)
        found = evaluate(trained.loaded, experiment.task, dataset, metric=experiment.data.metric(index),
                         batch_size=2, workers=0)
        numbers = load(Path("new/runs") / name / "last.pt").numbers
        assert found.numbers == pytest.approx(numbers, nan_ok=True, abs=1e-6)


def test_a_misspelt_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mobilnet_v1"]) == 2
    assert "there is no backbone 'mobilnet_v1'; did you mean mobilenet_v1?" in capsys.readouterr().err
