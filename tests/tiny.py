"""A whole experiment in miniature, for tests of the loop: is the picture bright or dark? With BatchNorm and dropout."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detseg.config import Data
from detseg.data.faults import Fault
from detseg.distillation import Relation, output_losses
from detseg.interfaces import (
    Backbone,
    Dataset,
    EvaluationSample,
    Features,
    FeatureSpec,
    Head,
    Losses,
    Metric,
    SampleKey,
    Source,
    Task,
    Term,
    TrainingSample,
)
from detseg.layers import ConvNormAct, Norm
from detseg.model import Predictor
from detseg.optim import Distill
from detseg.report.pictures import draw
from detseg.report.results import records, summary
from detseg.resize import MEAN_COLOUR, Placement, Resize
from detseg.structures import Classes, MetricTable, Pixels, Size

if TYPE_CHECKING:
    import pytest

SIZE = (8, 12)
ORIGINAL_SIZE = (16, 36)
CLASSES = Classes(names=("dark", "unused", "bright"), source_ids=(3, 4, 5))
FILE_CLASSES = Classes(names=("dark", "bright"), source_ids=(3, 5))


class Labels(NamedTuple):
    """[B], of each picture."""

    labels: Tensor


class Prediction(NamedTuple):
    image_id: int
    probabilities: Tensor


@dataclass(frozen=True)
class Index:
    """Pictures of which every other one is bright."""

    labels: tuple[int, ...]
    classes: Classes
    notes: tuple[str, ...] = ("one picture is odd",)
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def relabel(self, classes: Classes, /) -> Self:
        position = {source_id: k for k, source_id in enumerate(classes.source_ids)}
        labels = tuple(position[self.classes.source_ids[label]] for label in self.labels)
        return replace(self, labels=labels, classes=classes)

    def repeats(self, share: float) -> NDArray[np.float64]:
        return np.ones(len(self))

    def common(self, classes: Classes, /) -> Self:
        return self.relabel(classes)


def read(folder: Path, split: Literal["train", "val"]) -> Index:
    """The folder holds one file that says how many pictures there are."""
    if not (folder / "size.txt").is_file():
        raise FileNotFoundError(f"no {split} data in {folder}: looked for size.txt")
    number = int((folder / "size.txt").read_text()) if split == "train" else 7
    return Index(tuple(i % 2 for i in range(number)), FILE_CLASSES)


def generate(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "size.txt").write_text("20")
    return folder


class Stretch(Resize):
    size = SIZE
    fill = MEAN_COLOUR

    def __repr__(self) -> str:
        return "tiny.Stretch()"

    def place(self, original: Size) -> Placement:
        return Placement(self.size[0] / original[0], self.size[1] / original[1], 0.0, 0.0)

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        raise NotImplementedError("tiny pictures are born at this size")

    def apply_rounded(self, image: Pixels) -> Pixels:
        raise NotImplementedError("tiny pictures are born at this size")


def noise(resize: Resize) -> float:
    """The augmentation: the strength of the noise."""
    assert resize.size == SIZE
    return 20.0


class Pictures(Dataset[Labels]):
    broken: frozenset[int] = frozenset()
    """For tests: training pictures that cannot be read."""

    def __init__(
        self, index: Index, resize: Resize, /, *, augment: float | None, seed: int, num_epochs: int = 1
    ) -> None:
        self.index, self.classes, self.resize, self.augment, self.seed = index, index.classes, resize, augment, seed
        self.num_epochs = num_epochs

    def __len__(self) -> int:
        return len(self.index.labels)

    def training(self, key: SampleKey) -> TrainingSample[Labels]:
        if key.item in self.broken:
            raise ValueError(f"cannot read the image {key.item}.jpg: it is damaged")
        image = self._image(key.item)
        if self.augment is not None:
            image += np.random.default_rng((self.seed, key.epoch, key.item)).normal(0, self.augment, (3, 1, 1))
        return TrainingSample(_pixels(image), Labels(torch.tensor(self.index.labels[key.item])))

    def evaluation(self, item: int) -> EvaluationSample:
        source = Source(100 + item, ORIGINAL_SIZE, self.resize.place(ORIGINAL_SIZE))
        return EvaluationSample(_pixels(self._image(item)).float(), source, self.index.labels[item])

    def original(self, item: int) -> Pixels:
        image = _pixels(self._image(item)).permute(1, 2, 0).numpy()
        return image.repeat(2, axis=0).repeat(3, axis=1)

    def _image(self, item: int) -> NDArray[np.float64]:
        bright = self.classes.names[self.index.labels[item]] == "bright"
        return np.random.default_rng(item).normal(150 if bright else 100, 40, (3, *SIZE))


def _pixels(image: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


class Accuracy(Metric[Prediction]):
    main = "accuracy"

    def __init__(self, index: Index, /, *, per_class: bool = False, reference: bool = False) -> None:
        self.index, self.per_class, self.reference = index, per_class, reference
        self.right: dict[int, bool] = {}

    def update(self, predictions: Sequence[Prediction], truths: Sequence[int]) -> None:
        for prediction, label in zip(predictions, truths, strict=True):
            assert prediction.image_id not in self.right, "an image came twice"
            assert label == self.index.labels[prediction.image_id - 100]
            self.right[prediction.image_id] = int(prediction.probabilities.argmax()) == label

    def collected(self) -> dict[int, bool]:
        return self.right

    def merge(self, collected: Sequence[dict[int, bool]]) -> None:
        self.right = {image_id: right for share in collected for image_id, right in share.items()}

    def compute(self) -> dict[str, float]:
        assert len(self.right) == len(self.index)
        numbers = {"accuracy": sum(self.right.values()) / len(self.right), "absent": float("nan")}
        return numbers | ({"accuracy/bright": 0.5, "reference": float(self.reference)} if self.per_class else {})

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        return MetricTable(("measure", "value"), tuple(numbers.items()), notes=("of bright and dark",))


class Brightness(Task[Labels, Tensor, Tensor, Prediction]):
    scored = True

    def collate_targets(self, targets: Sequence[Labels], size: Size) -> Labels:
        return Labels(torch.stack([one.labels for one in targets]))

    def postprocess(self, dense: Tensor, *, static: bool = False) -> Tensor:
        return dense

    def to_original(self, finished: Tensor, sources: Sequence[Source]) -> list[Prediction]:
        return [Prediction(source.image_id, row) for source, row in zip(sources, finished, strict=True)]


@draw.register
def _(prediction: Prediction, image: Pixels, classes: Classes, *, threshold: float) -> Pixels:
    picture = image.copy()
    picture[:4] = classes.colours[int(prediction.probabilities.argmax())]
    return picture


@summary.register
def _(prediction: Prediction, classes: Classes, *, threshold: float) -> str:
    return classes.names[int(prediction.probabilities.argmax())]


@records.register
def _(prediction: Prediction, classes: Classes) -> list[Mapping[str, Any]]:
    return [{"image_id": prediction.image_id, "score": float(prediction.probabilities.max())}]


@output_losses.register
def _(dense: Tensor, teacher: Tensor, /, *, relation: Relation, settings: Distill) -> Losses:
    wanted = teacher.index_select(1, relation.teacher_columns)
    entropy = -(wanted * dense.index_select(1, relation.columns).clamp(1e-6).log()).sum()
    return {"distill_class": Term(entropy, entropy.new_tensor(len(dense)))}


class Trunk(Backbone):
    def __init__(self, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.specs = {"c1": FeatureSpec(channels, 2)}
        self.block: nn.Module = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU())
        if batch_norm:
            self.block = ConvNormAct(3, channels, kernel=3, stride=2, norm=Norm(0.1, 1e-5), activation="relu")

    def forward(self, images: Tensor) -> Features:
        return {"c1": self.block(images)}


class BrightnessHead(Head[Labels, Tensor, Tensor]):
    """Loss on the first class weighs double, so that sums and count differ from a plain mean."""

    interrupt_at: int | None = None
    """For tests: Ctrl-C comes in the middle of this call of `loss`."""
    calls = 0

    def __init__(
        self, specs: Mapping[str, FeatureSpec], *, num_classes: int, dropout: float, not_a_number: bool
    ) -> None:
        super().__init__()
        self.num_outputs, self.class_layers = num_classes, {"linear": 1}
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(specs["c1"].channels, num_classes)
        self.not_a_number = not_a_number

    def forward(self, features: Features) -> Tensor:
        logits: Tensor = self.linear(self.dropout(features["c1"].mean(dim=(2, 3))))
        return logits

    def loss(self, raw: Tensor, targets: Labels, size: Size) -> Losses:
        BrightnessHead.calls += 1
        if BrightnessHead.calls == BrightnessHead.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        weights = torch.where(targets.labels == 0, 2.0, 1.0)
        entropy = (nn.functional.cross_entropy(raw, targets.labels, reduction="none") * weights).sum()
        if self.not_a_number:
            entropy = entropy * float("nan")
        count = weights.sum()
        return {"entropy": Term(entropy, count), "size": Term(0.001 * raw.square().sum(), count)}

    def decode(self, raw: Tensor, size: Size, *, static: bool = False) -> Tensor:
        return raw.softmax(dim=1)


def model(
    classes: Classes, *, channels: int = 4, batch_norm: bool = True, dropout: float = 0.3, not_a_number: bool = False
) -> Predictor:
    trunk = Trunk(channels, batch_norm=batch_norm)
    head = BrightnessHead(trunk.specs, num_classes=len(classes), dropout=dropout, not_a_number=not_a_number)
    return Predictor(trunk, head, classes=classes, resize=Stretch(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


DATA = Data(read=read, dataset=Pictures, metric=Accuracy, generate=generate)

CONFIG = '''"""A config as a user would write it."""

from detseg.config import Experiment, SampleRun
from detseg.model import Predictor
from detseg.optim import EMA, SGD, Cosine
from detseg.structures import Classes
from tests import tiny


def model(classes: Classes, *, channels: int = 4, batch_norm: bool = True, dropout: float = 0.3,
          not_a_number: bool = False) -> Predictor:
    return tiny.model(classes, channels=channels, batch_norm=batch_norm, dropout=dropout, not_a_number=not_a_number)


experiment = Experiment(
    task=tiny.Brightness(),
    data=tiny.DATA,
    model=model,
    classes=tiny.CLASSES,
    augment=tiny.noise,
    optimizer=SGD(lr=0.1, weight_decay=1e-4),
    schedule=Cosine(epochs=3, warmup_steps=2),
    batch_size=6,
    ema=EMA(decay=0.99),
    clip_norm=5.0,
    workers=0,
    log_every=1,
    report=False,
    sample=SampleRun(schedule=Cosine(epochs=2), batch_size=4, ema=None, model={"channels": 5}),
)
'''


def write_config(folder: Path, *, text: str = CONFIG) -> Path:
    path = folder / "brightness.py"
    path.write_text(text)
    return path


def begin_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data and its config lie in the current folder, and the head has not been called."""
    monkeypatch.chdir(folder)
    generate(folder / "data")
    write_config(folder)
    monkeypatch.setattr(BrightnessHead, "calls", 0)
