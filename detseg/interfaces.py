"""The contracts of detseg on one page. Read this first; everything else plugs in here.

The way data goes:

    files on disk
      -> Dataset.training(key)      TrainingSample: image uint8 [3, H, W] RGB, targets             (augmented)
      -> Dataset.evaluation(item)   EvaluationSample: image float32 [3, H, W], Source, truth
      -> collate                    one batch: images [B, 3, H, W] and ONE padded target bundle, never a list
      -> Predictor                  normalises on the device, then backbone -> neck -> head
           Backbone.forward(images)        -> Features   {"c4": [B, C, H/16, W/16], ...}
           Neck.forward(features)          -> Features
           Head.forward(features)          -> Raw        NamedTuple of network outputs alone: no constants
      -> Head.loss(raw, targets, size)     -> Losses     {"name": Term(sum, count)}                training
      -> Head.decode(raw, size)            -> Dense      no shape depends on a value: this is exported
      -> Task.postprocess(dense)           -> Finished   fixed rows, or a label map: exported too
      -> Task.to_original(finished, sources) -> predictions, in the pixels of the ORIGINAL images
      -> Metric.update(predictions, truths) / .merge / .compute -> {"name": number}

Only the Task differs from detection to segmentation or classification: the rest knows just this page. The
bundles are in `structures.py`; how an image becomes the network's, and the way back, in `resize.py`.

Shape letters, used everywhere: B images, C channels, H W pixels, N anchors, M true boxes (padded), K classes,
R rows of finished detections, P proposed regions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from detseg.resize import Placement
from detseg.structures import Classes, MetricTable, Pixels, Size

Features: TypeAlias = dict[str, Tensor]
"""Feature maps by tap name, each [B, C, H / stride, W / stride]."""

TargetsT = TypeVar("TargetsT")
RawT = TypeVar("RawT")
DenseT = TypeVar("DenseT")
FinishedT = TypeVar("FinishedT")
PredictionT = TypeVar("PredictionT")

class FeatureSpec(NamedTuple):
    """What a feature map promises: its channels, and how many input pixels one of its cells spans."""

    channels: int
    stride: int


class Backbone(nn.Module, ABC):
    """Turns images into feature maps at named taps; `specs` promises each one's channels and stride.

    `cN` is the last block output at stride 2^N; `cN.expansion` the expanded activation inside the first block of the
    next stage, still at stride 2^N; `cN.depthwise` the depthwise output of the last block of stage N, and `cN.first`
    the output of its first block. With a dilated tail names keep their stage and the spec tells the true stride.
    Nothing after the last tap is built.
    """

    specs: dict[str, FeatureSpec]

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Normalised images float [B, 3, H, W] to one map per tap, with ceil(H / stride) x ceil(W / stride) cells."""


class Neck(nn.Module, ABC):
    """Turns feature maps into feature maps, and says what comes out in `specs`."""

    specs: dict[str, FeatureSpec]

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """Maps to maps, by name."""


@dataclass(frozen=True)
class Term:
    """One term of a loss: a scalar sum with gradient, and the scalar count that normalises it, which may be 0."""

    sum: Tensor
    count: Tensor


Losses: TypeAlias = dict[str, Term]
"""The terms by name. Sums and counts are added up over ranks and accumulation steps before the gradient is taken, so
that 1 x 8 and 2 x 4 images give the same step. Terms with one normalizer share its tensor."""


class Head(nn.Module, ABC, Generic[TargetsT, RawT, DenseT]):
    """Turns features into what a task needs. `forward` always does the same; loss and decoding are apart."""

    num_outputs: int
    """Scores for each prediction: the classes, behind a background column where the head has one."""
    class_layers: Mapping[str, int]
    """The layers whose output channels run over (anchors x) outputs (x rows), with the number of rows, which is 1 for
    scores and 4 for boxes that each class has of its own. Weights for other classes leave them out."""
    second_stage: nn.Module | None
    """The layers that loss and decoding run on every region, outside `forward`; most heads have none. It takes
    features [B, P, *input_shape]."""

    def __init__(self) -> None:
        super().__init__()
        self.second_stage = None

    @abstractmethod
    def forward(self, features: Features) -> RawT:
        """Features to the raw outputs: tensors of the network, and nothing else."""

    @abstractmethod
    def loss(self, raw: RawT, targets: TargetsT, size: Size) -> Losses:
        """Raw outputs and targets of the same batch, of images of `size`, to the loss. Targets may be empty."""

    @abstractmethod
    def decode(self, raw: RawT, size: Size, *, static: bool = False) -> DenseT:
        """Raw outputs for images of `size` to dense predictions in network pixels; no shape depends on a value.

        static: the form that is exported, in which no inner shape depends on a value either; the same result.
        """

    def drop_training_parts(self) -> None:  # most heads have none
        """Takes out what only the loss uses, such as an auxiliary classifier; called on copies made for inference."""

class SampleKey(NamedTuple):
    """Which training sample: what happens to it depends on (seed, epoch, item) alone, never on who reads it."""

    epoch: int
    item: int


class TrainingSample(NamedTuple, Generic[TargetsT]):
    """An augmented image, uint8 [3, H, W] RGB, and its targets."""

    image: Tensor
    targets: TargetsT


class Source(NamedTuple):
    """Where a sample comes from, and how to map what the network says back to it."""

    image_id: int
    size: Size
    """Of the original image."""
    placement: Placement


class EvaluationSample(NamedTuple):
    """An image at the network's size, float32 [3, H, W] RGB 0..255 (interpolated without rounding)."""

    image: Tensor
    source: Source
    truth: Any
    """What the metric compares the prediction with, where it comes with the sample: the original label map."""


class TrainingBatch(NamedTuple, Generic[TargetsT]):
    """Training samples stacked: images uint8 [B, 3, H, W] and one target bundle."""

    images: Tensor
    targets: TargetsT


class EvaluationBatch(NamedTuple):
    """Evaluation samples stacked: images float32 [B, 3, H, W]."""

    images: Tensor
    sources: tuple[Source, ...]
    truths: tuple[Any, ...]


class Dataset(ABC, Generic[TargetsT]):
    """Samples by number. Reading one is a pure function of its key, so any number of workers gives the same."""

    classes: Classes

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def training(self, key: SampleKey) -> TrainingSample[TargetsT]:
        """An item as it is trained on in an epoch."""

    @abstractmethod
    def evaluation(self, item: int) -> EvaluationSample:
        """An item as it is evaluated."""

    @abstractmethod
    def original(self, item: int) -> Pixels:
        """The image as it is before any resizing, of the size that `Source.size` tells: what pictures are drawn on."""

class Metric(ABC, Generic[PredictionT]):
    """Collects predictions of distinct images and gives numbers."""

    main: str
    """The number that decides which checkpoint is best; higher is better."""

    @abstractmethod
    def update(self, predictions: Sequence[PredictionT], truths: Sequence[Any]) -> None:
        """Takes the predictions of some images, each image once, with the truth that came with their samples."""

    @abstractmethod
    def collected(self) -> Any:
        """What `update` has taken in, to be sent to another process."""

    @abstractmethod
    def merge(self, collected: Sequence[Any]) -> None:
        """Takes what the metrics of all processes have `collected`, its own among them, in place of its own."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Every number by name; fractions, not percent. A number that does not exist (no such objects) is NaN."""

    @abstractmethod
    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """What `compute` gave, in the rows that people of the field are used to."""


class Task(ABC, Generic[TargetsT, DenseT, FinishedT, PredictionT]):
    """What is particular to detection, segmentation or classification; the loop, evaluation and export ask it."""

    scored: ClassVar[bool]
    """Whether predictions have scores, so that a threshold can leave out what is unsure."""
    label_maps: ClassVar[bool] = False
    """Whether predictions are label maps."""

    @property
    def score_threshold(self) -> float:
        """Predictions that are less sure are left out; where they are not `scored`, it means nothing."""
        return 0.0

    @abstractmethod
    def collate_targets(self, targets: Sequence[TargetsT], size: Size) -> TargetsT:
        """Targets of images to those of a batch of images padded to `size`, padded to the fullest."""

    @abstractmethod
    def postprocess(self, dense: DenseT, *, static: bool = False) -> FinishedT:
        """Dense predictions to final ones of fixed shape, in network pixels; `static` as in `Head.decode`."""

    @abstractmethod
    def to_original(self, finished: FinishedT, sources: Sequence[Source]) -> list[PredictionT]:
        """Final predictions of a batch to one for each image, in original pixels."""
