"""A whole segmentation experiment in miniature, for tests of the loop and the commands: which pixels are bright?

Images of three sizes with masks beside them; a third class is listed and never seen, and a strip is void.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.config import Data
from detseg.data.layouts import read_labels
from detseg.data.segmentation import SegmentationDataset
from detseg.interfaces import Backbone, Features, FeatureSpec, Head, Losses, Term
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.report.pictures import write_labels, write_picture
from detseg.resize import Letterbox
from detseg.structures import VOID, Classes, DenseLogits, LabelTargets, Size

CLASSES = Classes(names=("dark", "bright", "purple"), source_ids=(4, 9, 20),
                  colours=((10, 20, 60), (250, 240, 90), (120, 0, 120)))
SIZES = ((40, 56), (48, 40), (33, 47))
NETWORK_SIZE = (32, 40)


def generate(folder: Path) -> Path:
    """Twelve images to train on and five to validate on, dark on the left and bright on the right."""
    for split, number in (("train", 12), ("val", 5)):
        for i in range(number):
            rng = np.random.default_rng((number, i))
            height, width = SIZES[i % len(SIZES)]
            labels = np.full((height, width), 4, dtype=np.uint8)
            labels[:, int(rng.integers(10, width - 10)):] = 9
            labels[: height // 3, : width // 4] = 9
            shade = np.where(labels == 9, 170, 80)[..., None] + rng.normal(0, 20, (height, width, 3))
            labels[-3:] = VOID
            write_picture(folder / "images" / split / f"picture {i}.png", shade.clip(0, 255).astype(np.uint8))
            write_labels(folder / "masks" / split / f"picture {i}.png", labels)
    (folder / "classes.txt").write_text("4 dark #0a143c\n9 bright #faf05a\n20 purple #780078\n")
    return folder


class Trunk(Backbone):
    """One convolution of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.specs = {"c2": FeatureSpec(8, 4)}
        self.block = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())

    def forward(self, images: Tensor) -> Features:
        return {"c2": self.block(images)}


class PixelHead(Head[LabelTargets, Tensor, DenseLogits]):
    """A class for each cell, enlarged."""

    def __init__(self, specs: Mapping[str, FeatureSpec], *, num_classes: int) -> None:
        super().__init__()
        self.num_outputs, self.class_layers = num_classes, {"classifier": 1}
        self.classifier = nn.Conv2d(specs["c2"].channels, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        cells: Tensor = self.classifier(features["c2"])
        return cells

    def loss(self, raw: Tensor, targets: LabelTargets, size: Size) -> Losses:
        logits = enlarge(self.decode(raw, size))
        entropy = F.cross_entropy(logits, targets.labels.long(), ignore_index=VOID, reduction="sum")
        return {"entropy": Term(entropy, (targets.labels != VOID).sum())}

    def decode(self, raw: Tensor, size: Size, *, static: bool = False) -> DenseLogits:
        return DenseLogits(raw, size)


def model(classes: Classes) -> Predictor:
    trunk = Trunk()
    head = PixelHead(trunk.specs, num_classes=len(classes))
    return Predictor(trunk, head, classes=classes, resize=Letterbox(NETWORK_SIZE), mean=(0.5, 0.5, 0.5),
                     std=(0.25, 0.25, 0.25))


DATA = Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU, generate=generate, folder="data/shades")

CONFIG = '''"""A config as a user would write it."""

from detseg.config import Experiment
from detseg.model import Predictor
from detseg.optim import SGD, Cosine
from detseg.structures import Classes
from detseg.tasks.segmentation import Segmentation
from tests import tiny_segmenter


def model(classes: Classes, *, width: float = 1.0) -> Predictor:
    return tiny_segmenter.model(classes)


experiment = Experiment(
    task=Segmentation(),
    data=tiny_segmenter.DATA,
    model=model,
    classes=tiny_segmenter.CLASSES,
    augment=None,
    optimizer=SGD(lr=0.05, weight_decay=1e-4),
    schedule=Cosine(epochs=15),
    batch_size=4,
    workers=0,
    validate_every=5,
    report=False,
)
'''


def write_config(folder: Path) -> Path:
    path = folder / "shades.py"
    path.write_text(CONFIG)
    return path


def untrained() -> Predictor:
    """The network with the same random weights every time."""
    torch.manual_seed(0)
    return model(CLASSES)


def train_in(folder: Path, *runs: list[str]) -> None:
    """Its data, its config, and runs of the command with these arguments."""
    write_config(folder)
    generate(folder / "data" / "shades")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        train = importlib.import_module("detseg.commands.train").main
        for arguments in runs:
            assert train(["shades.py", *arguments]) == 0
