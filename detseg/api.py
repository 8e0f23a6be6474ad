"""One call from a file to predictions: `detseg.load("runs/x")("photo.jpg")`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detseg import checkpoint as checkpoints
from detseg import config as configs
from detseg.config import Config
from detseg.data.images import read_image, to_rgb
from detseg.fingerprint import fingerprint
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.report.pictures import draw_boxes, draw_labels
from detseg.run_folder import RunFolder
from detseg.structures import Classes, ImageDetections, ImageLabels, LabelPixels, Pixels
from detseg.weights.load import load_weights

ImageLike: TypeAlias = str | os.PathLike[str] | Pixels | Image.Image
"""A file, uint8 [H, W, 3], or Pillow's."""
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]


class Boxes(NamedTuple):
    """What a detector found in an image, best first."""

    boxes: Tensor
    """float [R, 4] xyxy in the image's pixels."""
    scores: Tensor
    """float [R]."""
    labels: Tensor
    """int64 [R]: positions in `Model.classes.names`."""
    names: tuple[str, ...]
    """[R]: what the labels are called."""


class LabelMap(NamedTuple):
    """What a segmenter says of every pixel of an image."""

    labels: LabelPixels
    """uint8 [H, W]: positions in `names`."""
    names: tuple[str, ...]
    """[K]: what the labels are called."""


class Model:
    """A trained network, ready to be called with images; `load` makes it."""

    def __init__(self, predictor: Predictor, config: Config, *, title: str, notes: Sequence[str] = ()) -> None:
        self.predictor, self.config, self.title, self.notes = predictor.eval(), config, title, tuple(notes)
        self._ready: Predictor | None = None

    @property
    def classes(self) -> Classes:
        """What it knows."""
        return self.predictor.classes

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.predictor.device

    def to(self, device: str | torch.device) -> Self:
        """Moves it, and gives it back."""
        self.predictor.to(device)
        self._ready = None
        return self

    @property
    def network(self) -> Predictor:
        """The network ready for inference on its device, made at the first use; see `Predictor.ready`."""
        if self._ready is None:
            self._ready = self.predictor.ready()
        return self._ready

    @overload
    def __call__(self, images: ImageLike, *, channel_order: ChannelOrder = "rgb") -> Any: ...

    @overload
    def __call__(self, images: Sequence[ImageLike], *, channel_order: ChannelOrder = "rgb") -> list[Any]: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, channel_order: ChannelOrder = "rgb"
    ) -> Any | list[Any]:
        """Predicts an image, or each of a list: `Boxes`, or a `LabelMap`, in the image's own pixels.

        Args:
            images: a path, an array uint8 [H, W, 3], a Pillow image, or a list of these.
            channel_order: "bgr" for arrays that OpenCV has read; it is never guessed. Files and Pillow's images know
                their own.

        Raises FileNotFoundError, or ValueError for what is no such image.
        """
        if isinstance(images, (list, tuple)):
            return [self._one(image, channel_order) for image in images]
        return self._one(images, channel_order)  # type: ignore[arg-type]

    def draw(
        self, image: ImageLike, prediction: Boxes | LabelMap | None = None, *, threshold: float = 0.4,
        channel_order: ChannelOrder = "rgb",
    ) -> Pixels:
        """The image with a prediction on it, RGB.

        Args:
            image: as when called.
            prediction: of this image; None predicts it now.
            threshold: boxes of a smaller score are left out.
            channel_order: as when called.
        """
        pixels = _pixels(image, channel_order)
        found = self(pixels) if prediction is None else prediction
        if isinstance(found, LabelMap):
            return draw_labels(pixels, found.labels, self.classes)
        return draw_boxes(
            pixels, ImageDetections(0, found.boxes, found.scores, found.labels), self.classes, threshold=threshold)

    def _one(self, image: ImageLike, channel_order: ChannelOrder) -> Any:
        found = predict_image(self.network, self.config.experiment.task, _pixels(image, channel_order))
        return _named(found, self.classes)


def load(
    source: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None, *, config_changed: bool = False
) -> Model:
    """A trained network.

    Args:
        source: a run folder, whose own config and best weights are taken; or a config, with `weights`.
        weights: a checkpoint of that config, or published weights.
        config_changed: take a checkpoint although it was trained with another config.

    ValueError or FileNotFoundError where a file is missing, unreadable or of another network, or the config is not the
    one that the checkpoint was trained with.
    """
    return load_model(Path(source), None if weights is None else Path(weights), config_changed=config_changed)


def load_model(
    source: Path, weights: Path | None, *, sample: bool = False, config_changed: bool = False
) -> Model:
    """`load` for commands. sample: the config as `--sample` changes it."""
    if weights is None:
        run = run_folder(source)
        source, weights = run.config, run.best if run.best.is_file() else run.last
    config = configs.load(source, sample=sample)
    if not checkpoints.is_checkpoint(checkpoints.read_tensors(weights)):
        return _published(config, weights)
    read = checkpoints.load(weights)
    config = config.as_trained(read.settings)
    predictor = config.build_model(read.classes)
    title, notes = f"{weights}, after {read.step} steps", []
    if read.fingerprint is None:
        notes.append(f"note: {weights} was written by an older detseg and carries no fingerprint; whether {source} "
                     "still means the same was not compared")
    elif config_changed:
        if checkpoints.config_differences(read, config.text, fingerprint(predictor, config.experiment.task)):
            notes.append(f"note: {weights} was trained with another config than {source}, which was insisted on")
    else:
        checkpoints.check_config(
            read, config.text, fingerprint(predictor, config.experiment.task), what=str(weights))
    checkpoints.restore_model(predictor, read.weights, what=str(weights))
    return Model(predictor, config, title=title, notes=notes)


def run_folder(path: Path) -> RunFolder:
    """The run in a folder. ValueError where it holds none."""
    run = RunFolder(path)
    if not path.is_dir():
        raise ValueError(f"{path} is no run folder; name one, or a config and a checkpoint")
    if not run.best.is_file() and not run.last.is_file():
        raise ValueError(f"{path} holds no run: it has neither {run.best.name} nor {run.last.name}")
    return run


def _published(config: Config, weights: Path) -> Model:
    predictor = config.build_model(config.experiment.classes)
    report = load_weights(predictor, str(weights))
    if report.fresh:
        raise ValueError(f"{weights} holds only a part of the network: {len(report.fresh)} tensors are not in it, "
                         f"{report.fresh[0]} is the first; train it with --weights {weights}")
    return Model(predictor, config, title=report.title)


def _pixels(image: ImageLike, channel_order: ChannelOrder) -> Pixels:
    """uint8 [H, W, 3] RGB."""
    if channel_order not in ("rgb", "bgr"):
        raise ValueError(f'channel_order is "rgb" or "bgr", got {channel_order!r}')
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(  # noqa: TRY004
            f"an image is a path, an array uint8 [H, W, 3] or a Pillow image, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image as an array is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return np.ascontiguousarray(image if channel_order == "rgb" else image[..., ::-1])


@singledispatch
def _named(prediction: Any, classes: Classes) -> Any:
    """A prediction with the names of its classes; of a task of your own, as it is."""
    return prediction


@_named.register
def _(prediction: ImageDetections, classes: Classes) -> Boxes:
    return Boxes(prediction.boxes, prediction.scores, prediction.labels,
                 tuple(classes.names[label] for label in prediction.labels.tolist()))


@_named.register
def _(prediction: ImageLabels, classes: Classes) -> LabelMap:
    return LabelMap(prediction.labels, classes.names)
