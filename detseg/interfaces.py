"""The contracts of detseg on one page. Read this first; everything else plugs in here.

The way data goes:

    files on disk
      -> Dataset[Draw]                  one Sample: image [3, H, W], targets T, Source (id, original size, placement)
      -> Task.collate                   one Batch: images [B, 3, H, W] and ONE padded target bundle T, never a list
      -> Predictor                      normalises on the device, then backbone -> neck -> head
           Backbone.forward(images)     -> Features   {"c4": [B, C, H/16, W/16], ...}
           Neck.forward(features)       -> Features
           Head.forward(features, size) -> Raw        NamedTuple of tensors
      -> Head.loss(raw, targets)        -> Losses     sums by name and the number to divide them by
      -> Head.decode(raw)               -> Dense      no shape depends on a value: this is exported
      -> Task.finish(dense)             -> Finished   fixed rows with their number, or a label map: exported too
      -> Task.restore(finished, sources)-> Prediction for each image, in the pixels of the ORIGINAL image
      -> Metric.update / .merge / .compute -> {"name": number}

Only the Task differs between detection and segmentation: the loop, evaluation and export know just this page.

Shape letters, used everywhere: B images, C channels, H W pixels, N anchors, M true boxes (padded), K classes,
R rows of a finished prediction. A box is xyxy in pixels, x to the right, y down, unless its name says otherwise;
a size is always (height, width). Images are RGB with values 0..255, as uint8 or float32. Classes are 0..K-1 with no
background in detection; -1 marks padding. A label map holds a class for each pixel, and VOID where none is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from torch import Tensor, nn

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Features: TypeAlias = dict[str, Tensor]
"""Feature maps by tap name, each [B, C, H / stride, W / stride]."""

Pixels: TypeAlias = NDArray[np.uint8]
"""A decoded image, uint8 [H, W, 3] RGB."""

LabelPixels: TypeAlias = NDArray[np.uint8]
"""The classes of an image's pixels, uint8 [H, W]: 0..K-1, or VOID."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in 0..1, as most published weights expect."""

VOID = 255
"""The label of a pixel of which nothing is known or asked: it teaches nothing and is not counted."""

TargetsT = TypeVar("TargetsT")
RawT = TypeVar("RawT")
DenseT = TypeVar("DenseT")
FinishedT = TypeVar("FinishedT")
PredictionT = TypeVar("PredictionT")


# ---------------------------------------------------------------------------------------------- networks


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


class Losses(NamedTuple):
    """Loss terms summed over the batch, and the one number that normalises them.

    The loop divides the gradient by the divisor over all ranks and accumulation steps, so that 1 x 8 and 2 x 4 images
    give the same step. `sums` are scalars with gradient; `divisor` is a scalar without, and may be 0.
    """

    sums: dict[str, Tensor]
    divisor: Tensor


class Head(nn.Module, ABC, Generic[TargetsT, RawT, DenseT]):
    """Turns features into what a task needs. `forward` always does the same; loss and decoding are apart."""

    num_outputs: int
    """Scores for each prediction: the classes, behind a background column where the head has one."""
    class_layers: Mapping[str, int]
    """The layers whose output channels run over (anchors x) outputs (x rows), with the number of rows, which is 1 for
    scores and 4 for boxes that each class has of its own. Weights for other classes leave them out."""

    @abstractmethod
    def forward(self, features: Features, size: Size) -> RawT:
        """Features of images of `size` to the raw outputs."""

    @abstractmethod
    def loss(self, raw: RawT, targets: TargetsT) -> Losses:
        """Raw outputs and targets of the same batch to summed losses. Targets may be empty."""

    @abstractmethod
    def decode(self, raw: RawT) -> DenseT:
        """Raw outputs to dense predictions in network pixels; no shape depends on a value."""

    def drop_training_parts(self) -> None:  # most heads have none
        """Takes out what only the loss uses, such as an auxiliary classifier; called on copies made for inference."""


# ---------------------------------------------------------------------------------------------- data


class Placement(NamedTuple):
    """Where an original image lies in the network's image: network = original * scale + offset, per axis."""

    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float


class Source(NamedTuple):
    """Where a sample comes from, and how to map what the network says back to it."""

    image_id: int
    size: Size
    """Of the original image."""
    placement: Placement


class Sample(NamedTuple, Generic[TargetsT]):
    """One image with its targets, as a dataset gives it."""

    image: Tensor
    """[3, H, W] RGB, 0..255, uint8 in training and float32 in evaluation (interpolated without rounding)."""
    targets: TargetsT
    source: Source


class Batch(NamedTuple, Generic[TargetsT]):
    """Samples stacked: images [B, 3, H, W], one target bundle, and where each image comes from."""

    images: Tensor
    targets: TargetsT
    sources: tuple[Source, ...]


class Draw(NamedTuple):
    """One drawing of a sample. What happens to it depends on (seed, epoch, item) alone, never on who draws it."""

    epoch: int
    item: int


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: names, the ids they have in its files, and a colour for pictures.

    Inside, class k is position k; `source_ids` maps back to files (COCO's ids run from 1 to 90 with gaps). A name that
    starts with "unused" is a slot that published networks have and no data uses.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]
    colours: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a data set needs at least one class, got none")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"class names must differ, these stand twice: {', '.join(twice)}")
        if len(self.source_ids) != len(self.names) or len(set(self.source_ids)) != len(self.source_ids):
            raise ValueError(f"{len(self.names)} classes need as many different ids, got {list(self.source_ids)}")
        if not self.colours:
            object.__setattr__(self, "colours", tuple(_distinct_colour(k) for k in range(len(self.names))))
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes need as many colours, got {len(self.colours)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def used(self) -> dict[int, str]:
        """Source id to name of every class that data can contain."""
        pairs = zip(self.source_ids, self.names, strict=True)
        return {source_id: name for source_id, name in pairs if not name.startswith("unused")}

    def difference(self, other: Classes) -> str:
        """What tells two lists of classes apart, for an error message; empty where their used classes agree."""
        mine, theirs = self.used, other.used
        lines = [f"  id {i}: {mine.get(i, 'absent')!r} here, {theirs.get(i, 'absent')!r} there"
                 for i in sorted(mine.keys() | theirs.keys()) if mine.get(i) != theirs.get(i)]
        return "\n".join(lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else []))


def _distinct_colour(k: int) -> tuple[int, int, int]:
    """Bright RGB colours that stay apart: golden-angle steps around the hue circle."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb((k * 0.618033988749895) % 1.0, 0.85 - 0.25 * (k % 2), 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


class Dataset(ABC, Generic[TargetsT]):
    """Samples by number. Reading one is a pure function of the draw, so any number of workers gives the same."""

    classes: Classes

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, draw: Draw) -> Sample[TargetsT]: ...

    @abstractmethod
    def original(self, item: int) -> Pixels:
        """The image as it is before any resizing, of the size that `Source.size` tells: what pictures are drawn on."""


class BoxTargets(NamedTuple):
    """True boxes of one image ([M, ...]) or, padded, of a batch ([B, M, ...])."""

    boxes: Tensor
    """float32 [..., M, 4] xyxy in network pixels; padding is zeros."""
    labels: Tensor
    """int64 [..., M], 0..K-1; padding is -1."""
    crowd: Tensor
    """bool [..., M]: a region to ignore. It teaches nothing, neither positive nor negative."""


class DenseBoxes(NamedTuple):
    """A detector's boxes and class probabilities before suppression."""

    boxes: Tensor
    """float [B, N, 4] xyxy in network pixels, clipped to the image; [B, N, K, 4] where each class has its own."""
    scores: Tensor
    """float [B, N, K] in 0..1, no background."""


class Detections(NamedTuple):
    """Finished detections of a batch: R rows for each image, best first, of which the first `num_valid` are meant."""

    boxes: Tensor
    """float [B, R, 4] xyxy in network pixels; unused rows are zeros."""
    scores: Tensor
    """float [B, R]; unused rows are 0."""
    labels: Tensor
    """int64 [B, R]; unused rows are -1."""
    num_valid: Tensor
    """int64 [B]."""


class ImageDetections(NamedTuple):
    """The detections of one image in its original pixels, best first."""

    image_id: int
    boxes: Tensor
    """float [R, 4] xyxy, inside the image."""
    scores: Tensor
    """float [R]."""
    labels: Tensor
    """int64 [R]."""


class LabelTargets(NamedTuple):
    """The label map of one image ([H, W]) or of a batch ([B, H, W])."""

    labels: Tensor
    """uint8 [..., H, W] in network pixels: 0..K-1, or VOID."""


class DenseLogits(NamedTuple):
    """A segmenter's scores for each pixel."""

    logits: Tensor
    """float [B, K, H, W], of the network's size."""


class LabelMaps(NamedTuple):
    """The finished label maps of a batch."""

    labels: Tensor
    """int64 [B, H, W], 0..K-1, in network pixels; what argmax gives in every exported format."""


class ImageLabels(NamedTuple):
    """The label map of one image in its original pixels."""

    image_id: int
    labels: LabelPixels
    """Without VOID: a network has an answer everywhere."""


class Resize(ABC):
    """How any image becomes one of the network's input size. It belongs to the model: training, evaluation,
    prediction and export use the same one."""

    fixed: ClassVar[bool] = True
    """Whether every image comes to have `size`. Where not, `size` is what a typical one has, images are evaluated one
    by one, and a training batch is padded to its largest."""

    size: Size

    @abstractmethod
    def place(self, original: Size) -> Placement:
        """Where an image of this size comes to lie."""

    @abstractmethod
    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """uint8 [H, W, 3] to float32 [height, width, 3], 0..255, bilinear and not rounded: for evaluation."""

    @abstractmethod
    def apply_rounded(self, image: Pixels) -> Pixels:
        """The same as uint8, for training: faster, and equal to the bit in every process whatever its threads."""


# ---------------------------------------------------------------------------------------------- tasks


class Metric(ABC, Generic[PredictionT]):
    """Collects predictions of distinct images and gives numbers."""

    main: str
    """The number that decides which checkpoint is best; higher is better."""

    @abstractmethod
    def update(self, predictions: Sequence[PredictionT]) -> None:
        """Takes the predictions of some images, each image once; the truth it reads itself, as the data set has it."""

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
    def table(self, numbers: Mapping[str, float]) -> RenderableType:
        """What `compute` gave, as people of the field are used to read it; for a terminal."""


class Task(ABC, Generic[TargetsT, DenseT, FinishedT, PredictionT]):
    """What is particular to detection or to segmentation; the loop, evaluation and export ask it."""

    scored: ClassVar[bool]
    """Whether predictions have scores, so that a threshold can leave out what is unsure."""
    label_maps: ClassVar[bool] = False
    """Whether predictions are label maps, so that there is a `label_image`."""

    @property
    def score_threshold(self) -> float:
        """Predictions that are less sure are left out; where they are not `scored`, it means nothing."""
        return 0.0

    @abstractmethod
    def collate(self, samples: Sequence[Sample[TargetsT]]) -> Batch[TargetsT]:
        """Samples to a batch: smaller images padded at the end, targets padded to the fullest."""

    @abstractmethod
    def made_up(self, size: Size, num_classes: int, *, seed: int) -> TargetsT:
        """Targets such as an image of `size` may have, a pure function of the arguments: to measure training with."""

    @abstractmethod
    def finish(self, dense: DenseT) -> FinishedT:
        """Dense predictions to final ones of fixed shape, in network pixels."""

    @abstractmethod
    def restore(self, finished: FinishedT, sources: Sequence[Source]) -> list[PredictionT]:
        """Final predictions of a batch to one for each image, in original pixels."""

    @abstractmethod
    def metric(
        self, dataset: Dataset[TargetsT], *, per_class: bool = False, reference: bool = False
    ) -> Metric[PredictionT]:
        """The official metric against the original annotations of `dataset`, by class too if asked; `reference` takes
        the slow original implementation where a faster equal one is used."""

    @abstractmethod
    def draw(self, image: Pixels, prediction: PredictionT, classes: Classes, *, threshold: float) -> Pixels:
        """The picture with the prediction on it; less sure than `threshold` is left out where a task is `scored`."""

    @abstractmethod
    def summary(self, prediction: PredictionT, classes: Classes, *, threshold: float) -> str:
        """What the picture shows, in a few words without a line break."""

    @abstractmethod
    def records(self, prediction: PredictionT, classes: Classes) -> list[Mapping[str, Any]]:
        """The prediction as plain values in COCO's results format: boxes, or the run lengths of each class."""

    def label_image(self, prediction: PredictionT, classes: Classes) -> LabelPixels:
        """The prediction as an image of source ids, as test servers take it; where a task has `label_maps`."""
        raise TypeError(f"{type(self).__name__} predicts no label maps")
