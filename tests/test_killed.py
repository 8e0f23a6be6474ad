"""A run that is killed again and again ends with the weights of one that was not, bit for bit on the CPU.

With all that a run may have beside its weights: a mosaic and a mixup that end before the run does, an average of the
weights, and a teacher.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detseg.checkpoint import Checkpoint, load
from detseg.data.sample import generate_sample

from .processes import Started, start, start_several

CONFIG = '''
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_80
from detseg.data.mixing import MixUp, Mosaic
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import BOXES
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite


def model(classes, *, width=0.1, size=64):
    backbone = mobilenet_v2(width=width, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSDLite(backbone.specs, len(classes), anchors=SSDAnchors(num_maps=3), extra_channels=(16,),
                   class_loss="task_aligned", box_loss="giou")
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize):
    mosaic = Mosaic(SSDAugment(resize), resize, probability=0.7, closing=0.3)
    return MixUp(mosaic, resize.fill, probability=0.3, closing=0.3)


experiment = Experiment(
    task=Detection(score_threshold=0.05, max_detections=10), data=BOXES, model=model, classes=COCO_80, augment=augment,
    optimizer=SGD(lr=0.01, momentum=0.9), schedule=Cosine(epochs=12, warmup_steps=3), batch_size=4,
    ema=EMA(decay=0.9), validate_every=4, save_minutes=0.0, keep_every=6, log_every=1, workers=1)
'''
"""36 steps."""
KILLS = 20


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In a folder with data, a config and a run of it: the arguments of a run that learns from that."""
    monkeypatch.chdir(tmp_path)
    generate_sample(Path("data"), num_train=12, num_val=3)
    Path("small.py").write_text(CONFIG)
    _finish(start("train", ["small.py", "--data", "data", "--out", "teacher", "--set", "schedule.epochs=2"]))
    return ["small.py", "--data", "data", "--teacher", "teacher"]


def _finish(*started: Started) -> None:
    assert [one.exit_code(timeout=300) for one in started] == [0] * len(started), started[0].said()


def _kill_sometime(began: Callable[[], list[Started]], draw: random.Random, *, run: Path) -> None:
    """One of the processes, at a random moment of its next few steps, while it saves among others; the others, which
    wait for it, too."""
    before = load(run / "last.pt").step if (run / "last.pt").exists() else -1
    started = began()
    while not (run / "last.pt").exists() or load(run / "last.pt").step <= before:
        assert all(one.process.is_alive() for one in started), started[0].said()
        time.sleep(0.005)
    time.sleep(draw.uniform(0.0, 0.25))
    victims = draw.sample(started, len(started))
    for one in victims:
        one.process.kill()
        one.exit_code()
        if one.process.exitcode == 0:  # it was through
            return
        time.sleep(0.2)
    assert all(one.process.exitcode != 0 for one in started)


def _assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.best, one.numbers.keys()) == (other.step, other.best, other.numbers.keys())
    for mine, theirs in ((one.model, other.model), (one.ema, other.ema), (one.adapters, other.adapters)):
        assert mine is not None
        assert theirs is not None
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for key, state in one.optimizer["state"].items():
        assert torch.equal(state["momentum_buffer"], other.optimizer["state"][key]["momentum_buffer"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twenty_times_it_is_bit_identical(teacher: list[str], processes: int) -> None:
    def begin(out: str, *, resume: bool) -> list[Started]:
        arguments = [*teacher, "--out", out, *(["--resume"] if resume else [])]
        return [start("train", arguments)] if processes == 1 else start_several(processes, "train", arguments)

    _finish(*begin("whole", resume=False))
    draw, run = random.Random(0), Path("run")
    for number in range(KILLS):
        _kill_sometime(lambda first=number == 0: begin("run", resume=not first), draw, run=run)  # type: ignore[misc]
        if load(run / "last.pt").step == 36:
            break
    assert number >= KILLS // 2, "it ended before it was killed often"
    _finish(*begin("run", resume=True))
    for name in ("last.pt", "best.pt", "step-0000018.pt", "step-0000036.pt"):
        _assert_same(load(run / name), load(Path("whole") / name))
