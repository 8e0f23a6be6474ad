"""Real images learned by heart: sixteen of COCO, and every way to measure gives the same number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .conftest import ROOT

_CONFIG = '''
"""ssdlite_v2 on the first sixteen images, which are also what it is measured on; no augmentation."""

import importlib.util
from dataclasses import replace

from detseg.config import Data
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.metrics.coco_ap import CocoAP
from detseg.optim import EMA, SGD, Cosine

spec = importlib.util.spec_from_file_location("base", {base!r})
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)
model = base.model


def read(folder, split):
    return read_boxes(folder, "train").select(range(16))


experiment = replace(
    base.experiment,
    data=Data(read=read, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    augment=None,
    optimizer=SGD(lr=0.05, momentum=0.9),
    schedule=Cosine(epochs=150, warmup_steps=10),
    batch_size=16,
    ema=EMA(decay=0.9),
    clip_norm=10.0,
    validate_every=150,
)
'''


@pytest.mark.real
@pytest.mark.slow
def test_sixteen_coco_images_are_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    config = tmp_path / "overfit.py"
    config.write_text(_CONFIG.format(base=str(ROOT / "configs" / "ssdlite_v2.py")))
    data, run = shared / "data" / "coco_mini", tmp_path / "run"
    weights = shared / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    _tool("train.py", config, "--data", data, "--weights", weights, "--out", run)

    usual, reference = (_tested(tmp_path, config, run / "best.pt", data, *flags) for flags in ((), ("--reference",)))
    assert usual["AP50"] >= 0.9

    truth = COCO(data / "annotations" / "instances_train2017.json")
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.params.imgIds = list(truth.imgs)[:16]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert usual["AP"] == pytest.approx(float(evaluation.stats[0]), abs=1e-6)
    assert reference["AP"] == pytest.approx(float(evaluation.stats[0]), abs=1e-6)


def _tested(folder: Path, config: Path, checkpoint: Path, data: Path, *flags: str) -> dict[str, float]:
    """The numbers of tools/test.py, which also writes results.json."""
    _tool("test.py", config, checkpoint, "--data", data, "--json", folder / "numbers.json", "--results",
          folder / "results.json", *flags)
    numbers: dict[str, float] = json.loads((folder / "numbers.json").read_text())
    return numbers


def _tool(name: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
