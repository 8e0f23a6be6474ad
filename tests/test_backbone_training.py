"""Every backbone, found by discovery, in SSDLite: it trains, resumes bit for bit, evaluates and exports."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detseg import config
from detseg.backbone_table import builders
from detseg.checkpoint import load
from detseg.config import Config
from detseg.data.sample import generate_sample
from detseg.evaluate import evaluate
from detseg.interfaces import Classes, DenseBoxes
from detseg.model import Predictor
from detseg.train import fit
from detseg.trained import load_trained
from heads.ssdlite import SSDLite
from tools.compare_backbones import config_text, main

from . import discovery

BACKBONES = discovery.backbones()
CLASSES = Classes(names=("cat", "dog", "cow"), source_ids=(3, 5, 9))

SMALL = ("model.size=64", "model.width=0.25", "batch_size=4", "schedule.epochs=1", "schedule.warmup_steps=1",
         "validate_every=1", "workers=0", "log_every=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps an epoch."""
    return generate_sample(tmp_path_factory.mktemp("sample") / "data", num_train=12, num_val=3)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _written(name: str) -> Config:
    path = Path(f"{name}.py")
    path.write_text(config_text(name, BACKBONES[name]))
    return config.load(path, SMALL, sample=True)


def _interrupt_in(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of this step's loss."""
    original, calls = SSDLite.loss, list[int]()

    def loss(self: SSDLite, raw: Any, targets: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, raw, targets)

    monkeypatch.setattr(SSDLite, "loss", loss)


class _Decoded(nn.Module):
    """Images in, boxes and scores out."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> DenseBoxes:
        found: DenseBoxes = self.predictor.head.decode(self.predictor(images))
        return found


@pytest.mark.parametrize("name", BACKBONES)
def test_it_trains_resumes_and_evaluates(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = _written(name)
    whole = fit(small, data, out=Path("whole"))
    with monkeypatch.context() as patched:
        _interrupt_in(2, patched)
        with pytest.raises(KeyboardInterrupt):
            fit(small, data, out=Path("cut"))
    resumed = fit(small, data, out=Path("cut"), resume=True)

    mine, theirs = load(resumed.run.last), load(whole.run.last)
    assert mine.step == theirs.step == 3
    assert mine.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(mine.weights[key], theirs.weights[key]) for key in mine.weights)
    assert resumed.numbers == pytest.approx(whole.numbers, nan_ok=True, abs=0)

    trained = load_trained(small, resumed.run.last).predictor
    index = small.experiment.data.read(data, "val")
    dataset = small.experiment.data.dataset(index.relabel(trained.classes), trained.resize, augment=None, seed=0)
    found = evaluate(trained, small.experiment.task, dataset, batch_size=2, workers=0)
    assert found.numbers == pytest.approx(whole.numbers, nan_ok=True, abs=1e-6)


@pytest.mark.parametrize("name", BACKBONES)
def test_it_exports_strictly(name: str) -> None:
    predictor = _written(name).build_model(CLASSES)
    decoded = _Decoded(predictor.folded()).eval()
    images = torch.rand(1, 3, 64, 96) * 255
    program = torch.export.export(decoded, (images,), strict=True)
    with torch.inference_mode():
        for mine, theirs in zip(program.module()(images), decoded(images), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_the_config_is_that_of_the_base_with_another_backbone() -> None:
    build = builders()["mobilenet_v3_large_minimalistic"]
    text = config_text("mobilenet_v3_large_minimalistic", build)
    assert text.startswith('"""SSDLite on mobilenet_v3_large_minimalistic, like the others that it is compared with.')
    assert "from detseg.backbones.mobilenet_v3 import mobilenet_v3_large\n" in text
    assert ("    backbone = mobilenet_v3_large(width=width, taps=('c4.expansion', 'c5'), norm=HEAD_NORM, "
            "minimalistic=True)\n") in text
    assert "taps=('c4', 'c5')" in config_text("mobilenet_v1", builders()["mobilenet_v1"])


def test_the_command(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["mobilenet_v1", "mobilenet_v3_small_minimalistic", "--out", "new/runs", "--data", str(data), "--set",
               *SMALL]
    printed = []
    for _ in range(2):
        assert main(command) == 0
        printed.append(capsys.readouterr().out.splitlines()[-4:])
    assert printed[0] == printed[1], "the second time nothing is left to do"
    assert printed[0][0] == "| backbone | AP | AP50 | steps |"
    assert [line.split(" | ")[0] for line in printed[0][2:]] == [
        "| `mobilenet_v1`", "| `mobilenet_v3_small_minimalistic`"]
    assert all(line.endswith(" | 3 |") for line in printed[0][2:])
    assert Path("new/runs/mobilenet_v1.py").is_file()
    assert Path("new/runs/mobilenet_v1/mobilenet_v1.py").is_file()


def test_a_misspelt_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mobilnet_v1"]) == 2
    assert "there is no backbone 'mobilnet_v1'; did you mean mobilenet_v1?" in capsys.readouterr().err
