"""The mean of a run's checkpoints: what is kept, what the mean is, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detseg.api import load_model
from detseg.checkpoint import load, save
from detseg.commands.average import main
from detseg.config import load as load_config
from detseg.model import Predictor
from detseg.run_folder import RunFolder
from detseg.train import fit
from tests import tiny


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)


def _run(*overrides: str) -> RunFolder:
    return fit(load_config(Path("brightness.py"), overrides), Path("data"), out=Path("run")).run


def test_a_run_keeps_what_it_is_asked_to() -> None:
    run = _run("schedule.epochs=5", "keep_every=2")
    assert list(run.kept) == [6, 12]
    assert load(run.kept[12]).step == 12
    assert not RunFolder(Path("nowhere")).kept


def test_the_mean_of_checkpoints_has_statistics_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    run = _run("schedule.epochs=5", "keep_every=1", "ema=none")
    capsys.readouterr()
    assert main(["run", "--last", "3"]) == 0
    told = capsys.readouterr().out
    assert "the mean of 3 checkpoints: step-0000009.pt, step-0000012.pt, step-0000015.pt" in told
    assert "BatchNorm's statistics are those of 18 training images" in told
    assert re.search(r"accuracy: [01]\.\d+ of the run's best checkpoint, [01]\.\d+ of the mean", told)
    mean, parts = load(run.average), [load(run.kept[step]).weights for step in (9, 12, 15)]
    for name, tensor in mean.weights.items():
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        elif "running" in name:
            assert not torch.allclose(tensor.double(), expected), "measured, not averaged"
    assert mean.ema is None
    assert mean.step == 15
    model = load_model(Path("run"), run.average)
    assert model.run == run
    assert isinstance(model.loaded, Predictor)
    assert torch.equal(model.loaded.state_dict()["head.linear.weight"], mean.model["head.linear.weight"])


def test_where_weights_are_averaged_already_those_are_taken() -> None:
    run = _run("schedule.epochs=3", "keep_every=1", "model.batch_norm=false")
    assert main(["run", "--steps", "3", "9", "--out", "mean.pt"]) == 0
    parts = [load(run.kept[step]) for step in (3, 9)]
    assert parts[0].ema is not None
    expected = (parts[0].weights["head.linear.weight"] + parts[1].weights["head.linear.weight"]) / 2
    torch.testing.assert_close(load(Path("mean.pt")).weights["head.linear.weight"], expected)


def test_a_checkpoint_that_means_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A run may be resumed with another config, if one insists."""
    run = _run("schedule.epochs=2", "keep_every=1")
    changed = load(run.kept[6])
    assert changed.fingerprint is not None
    save(run.kept[6], replace(changed, fingerprint=changed.fingerprint | {"resize": "another"}))
    assert main(["run"]) == 2
    told = capsys.readouterr().err
    assert "step-0000006.pt is another network than run/step-0000003.pt:" in told
    assert "resize: another there" in told


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere"], "nowhere is no run folder"),
    (["run", "--last", "1"], "a mean takes two checkpoints or more; run has kept the steps 3, 6"),
    (["run", "--last", "3"], "run has kept 2 checkpoints, of the steps 3, 6; 3 were asked for"),
    (["run", "--last", "0"], "--last must be at least 1, got 0"),
    (["run", "--steps", "3", "4"], "run has kept no checkpoint of step 4, but of 3, 6"),
    (["run", "--images", "0"], "--images must be at least 1, got 0"),
])
def test_what_a_user_does_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    _run("schedule.epochs=2", "keep_every=1")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_kept_nothing_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    _run("schedule.epochs=1", "schedule.warmup_steps=0")
    assert main(["run"]) == 2
    assert "train with --set keep_every=EPOCHS" in capsys.readouterr().err
    assert not Path("run/average.pt").exists()
