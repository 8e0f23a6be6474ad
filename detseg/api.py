"""One call from a file to predictions: `detseg.load("runs/x")("photo.jpg")`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detseg import checkpoint as checkpoints
from detseg import config as configs
from detseg.analysis.collect import Anchors
from detseg.analysis.run import anchors_of
from detseg.analysis.thresholds import ScoreThresholds
from detseg.choices import CALIBRATION_IMAGES, Engine, Execution
from detseg.config import Config, Data
from detseg.data.images import read_image, to_rgb
from detseg.data.loading import drawn, spread
from detseg.data.location import Location, path_of, read_training, read_validation
from detseg.data.screening import screened
from detseg.engine import OnnxRuntimePredictor, with_engine
from detseg.export.artefact import Artefact, is_artefact, open_artefact
from detseg.export.convert import Exported, Source, export, weights_digest
from detseg.export.format import Format, Options
from detseg.export.formats import format_named, format_of, formats
from detseg.export.int8 import Budget, Calibration, Int8Exported, export_int8
from detseg.fingerprint import fingerprint
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.predict import predict_frames, predict_image
from detseg.quantization.post_training import Recipe
from detseg.recipes import sample_pictures, usual_data
from detseg.report.pictures import draw_boxes, draw_classes, draw_labels
from detseg.resize import Resize
from detseg.run_folder import RunFolder, trained_run
from detseg.settings import COMMAND_LINE
from detseg.split_execution import check_splittable, number_of_parts
from detseg.structures import (
    USUAL_THRESHOLD,
    Classes,
    ImageClasses,
    ImageDetections,
    ImageLabels,
    LabelPixels,
    Pixels,
    Size,
    Threshold,
)
from detseg.validation import Validation, prepared
from detseg.video import Video, VideoSource
from detseg.views import OVERLAP, MultiView, Views, with_views
from detseg.weights.load import is_plain, load_weights, read_checkpoint

ImageLike: TypeAlias = str | os.PathLike[str] | Pixels | Image.Image
"""A file, uint8 [H, W, 3], or Pillow's."""
ChannelOrder: TypeAlias = Literal["rgb", "bgr"]

_COMPARED = 16
"""Images that an exported file is compared on, unless they are named."""


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


class BestClasses(NamedTuple):
    """What a classifier says of an image, best first."""

    scores: Tensor
    """float [R]: the probabilities of these classes."""
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


class Frame(NamedTuple):
    """A frame of a video, and what was found in it."""

    number: int
    """From 0."""
    time: float
    """Seconds from the first frame: by the file, or by the clock where a camera or a stream gives it."""
    image: Pixels
    """uint8 [H, W, 3] RGB."""
    prediction: Any
    """`Boxes`, a `LabelMap` or `BestClasses`: of this frame, or of the last one before it that was predicted."""
    predicted: bool
    """Whether it is of this very frame."""


class Model:
    """A trained network, or an exported file in its runtime, ready to be called with images; `load` makes it.

    Args:
        loaded: the network or file.
        task: what is particular to its predictions.
        title: what it is, for people.
        notes: what they should know about it.
        config: whose network it is; a file has none.
        run: the folder it was trained in, where it comes from one.
        source: what an export is made of; a file cannot be exported.
        thresholds: by class, the score from which its detections are best shown, where it was measured.
    """

    def __init__(
        self, loaded: Predictor | Artefact, task: Task[Any, Any, Any, Any], *, title: str, notes: Sequence[str] = (),
        config: Config | None = None, run: RunFolder | None = None, source: Source | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.loaded, self.task, self.title, self.notes = loaded, task, title, tuple(notes)
        self.config, self.run, self.source, self.thresholds = config, run, source, thresholds
        self._engine: Engine = "torch"
        self._parts: int | None = None
        self._ready: Predictor | OnnxRuntimePredictor | Artefact | None = None
        self._views: Views | None = None
        self._viewed: MultiView | None = None

    @property
    def classes(self) -> Classes:
        """What it knows."""
        return self.loaded.classes

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.loaded.device

    @property
    def data(self) -> Data:
        """How data are read that it is evaluated on: by its config, or as is usual for its task."""
        return self.config.experiment.data if self.config is not None else usual_data(self.task)

    @property
    def name(self) -> str:
        """What a file made of it is called, without an ending."""
        if self.run is not None:
            return self.run.path.resolve().name
        assert self.source is not None, "nothing is made of a file"
        return Path(self.source.name).stem

    @property
    def location(self) -> Location:
        """Where the data lie that it was trained on, as far as is known; else where its config looks."""
        known = None if self.run is None else self.run.location
        return known or Location(Path(self.data.folder))

    @property
    def threshold(self) -> Threshold:
        """The score from which detections are shown unless somebody asks for another: of each class, as far as
        `detseg analyze` has measured it with these weights."""
        return USUAL_THRESHOLD if self.thresholds is None else self.classes.thresholds(self.thresholds)

    @property
    def weights_digest(self) -> str:
        """SHA-256 of its weights, or of those that an exported file was made of."""
        if isinstance(self.loaded, Artefact):
            return str(self.loaded.manifest.checkpoint["sha256"])
        return weights_digest(self.loaded)

    @property
    def anchors(self) -> Anchors:
        """Where its head has anchors, or why there are none to see."""
        if isinstance(self.loaded, Artefact):
            return Anchors(None, "an exported file does not tell its anchors")
        return anchors_of(self.loaded)

    def read_validation(self, location: Location) -> tuple[Any, tuple[str, ...]]:
        """What it is measured on in these data, with the data's own labels, and what a person should know about where
        that comes from: of the data that its run has split, the images that were kept for validation."""
        return read_validation(
            self.data.read, location, kept=None if self.run is None else self.run.kept_split, classes=self.classes)

    def validation(
        self, location: Location, *, common: bool = False, skip_broken: bool = False, per_class: bool = False,
        reference: bool = False, metrics: Sequence[str] = (), what: str | None = None, resize: Resize | None = None,
    ) -> Validation:
        """What it is measured on in these data; see `detseg.validation.prepared`.

        what: itself, for messages. resize: of what is measured, where that is not the network alone (`use_views`).
        """
        index, notes = self.read_validation(location)
        return prepared(
            index, location, self.classes, self.data, resize or self.loaded.resize, notes=notes, common=common,
            skip_broken=skip_broken, per_class=per_class, reference=reference, metrics=metrics,
            what=what or self.title)

    def calibration(self, location: Location, *, number: int = CALIBRATION_IMAGES, seed: int = 0) -> Calibration:
        """A draw of the images that it was trained on, in the order of their numbers. ValueError without images.

        Args:
            location: where they lie.
            number: how many; all, where there are fewer.
            seed: of the draw.
        """
        index = read_training(self.data.read, location, kept=None if self.run is None else self.run.kept_split)
        index, _ = screened(index, whole=False)
        dataset = self.data.dataset(index, self.loaded.resize, augment=None, seed=0)
        items = drawn(len(dataset), number, seed=seed)
        paths = [path_of(index, item) for item in items]
        names = tuple(f"{item}" if path is None else path.name for item, path in zip(items, paths, strict=True))
        return Calibration(tuple(dataset.original(item) for item in items), names, f"{location}", seed, number)

    def comparison_images(self) -> tuple[list[Pixels], str]:
        """Images to compare an exported file on, and where they come from: spread over the validation data in
        `location`; where there are none, pictures of the generated sample's kind, which say less."""
        try:
            index, _ = self.read_validation(self.location)
            dataset = self.data.dataset(index, self.loaded.resize, augment=None, seed=0)
            images = [dataset.original(item) for item in spread(len(dataset), _COMPARED)]
        except (OSError, ValueError):
            return sample_pictures(_COMPARED), f"generated pictures: there are no data in {self.location}"
        return images, f"validation images of {self.location}"

    def to(self, device: str | torch.device) -> Self:
        """Moves it, and gives it back. ValueError for an exported file, which stays with its runtime, on the CPU."""
        if isinstance(self.loaded, Artefact):
            if torch.device(device).type != "cpu":
                raise ValueError(f"{self.loaded.path} is an exported file, which runs on the CPU; to use {device}, "
                                 "load the checkpoint it was made of")
            return self
        if self._engine != "torch" and torch.device(device).type != "cpu":
            raise ValueError(f"the engine {self._engine} runs on the CPU; to use {device}, take the engine torch")
        self.loaded.to(device)
        self._ready = self._viewed = None
        return self

    def run_with(self, engine: Engine, *, say: Callable[[str], None] = lambda _: None) -> Self:
        """Chooses what runs the network's layers, and gives the model back; see `detseg.engine.with_engine`. ValueError
        for an exported file, which has a runtime of its own."""
        if not isinstance(self.loaded, Artefact):
            self._ready = with_engine(self._executed(self.loaded), self.task, engine, say=say)
            self._engine, self._viewed = engine, None
        elif engine != "torch":
            raise ValueError(f"{self.loaded.path} is an exported file with a runtime of its own; leave the engine out")
        return self

    def run_in_parts(self, parts: int) -> Self:
        """Computes inverted bottlenecks in parts, and gives the model back; see `Predictor.split`. ValueError without
        any, and for an exported file."""
        if isinstance(self.loaded, Artefact):
            raise ValueError(  # noqa: TRY004
                f"{self.loaded.path} is an exported file, which computes what was written into it; export the "
                'checkpoint with Options(execution="split")')
        check_splittable(self.loaded, parts)
        self._parts, self._ready, self._viewed = parts, None, None
        return self

    def use_views(
        self, *, flip: bool = False, scales: Sequence[float] = (), tile: int | Size | None = None,
        overlap: float | None = None,
    ) -> Self:
        """Predicts from several views of an image, mirrored, larger and smaller or in tiles, and gives the model back;
        see `detseg.views`. Called without arguments, it ends that.

        Args:
            flip: each view mirrored too.
            scales: how many times as large an image is seen, beside 1: (0.75, 1.25).
            tile: its side, or height and width, in pixels of the image, for images much larger than the network's
                input. Networks that stretch images expect tiles of the shape that images have had in training.
            overlap: of neighbouring tiles, as a share of their sides (0.2); what is larger is taken from the whole
                image.

        ValueError for values out of range, for classifiers, and for a segmenter's file that ends with label maps.
        """
        if overlap is not None and tile is None:
            raise ValueError("the overlap is that of tiles; give their size too")
        sides = (tile, tile) if isinstance(tile, int) else tile
        views = Views(flip=flip, scales=tuple(scales), tile=sides, overlap=OVERLAP if overlap is None else overlap)
        self._views, self._viewed = (None if views == Views() else views), None
        if self._views is not None:
            self._viewed = with_views(self._alone, self.task, self._views)
        return self

    def _executed(self, predictor: Predictor) -> Predictor:
        return predictor if self._parts is None else predictor.split(self._parts)

    @property
    def network(self) -> Predictor | OnnxRuntimePredictor | Artefact | MultiView:
        """The network ready for inference on its device, made at the first use; see `detseg.engine.with_engine`."""
        if self._views is None:
            return self._alone
        if self._viewed is None:
            self._viewed = with_views(self._alone, self.task, self._views)
        return self._viewed

    @property
    def _alone(self) -> Predictor | OnnxRuntimePredictor | Artefact:
        """The network of one view."""
        if self._ready is None:
            self._ready = self.loaded if isinstance(self.loaded, Artefact) else with_engine(
                self._executed(self.loaded), self.task, self._engine)
        return self._ready

    def export(
        self, path: str | os.PathLike[str], *, options: Options | None = None, format: str | None = None,
        images: Sequence[ImageLike] = (), unchecked: bool = False,
    ) -> Exported:
        """Writes it into a file for another runtime, and compares the two.

        Args:
            path: where the file goes; its ending says the format, unless that is named.
            options: contract, precision, input, size; None is the format's usual.
            format: "onnx", "executorch", "litert", "coreml", "openvino", "ncnn" or "pt2".
            images: to compare on, RGB; none: see `comparison_images`.
            unchecked: leave the file even where it differs.

        ParityError where the file does not give what the network gives; ValueError for what the format cannot hold.
        """
        source, target, kind = self._export_target(path, format)
        pictures = [_pixels(image, "rgb") for image in images] or self.comparison_images()[0]
        return export(source, target, kind, options or self._usual_options(kind), images=pictures, unchecked=unchecked)

    def export_int8(
        self, path: str | os.PathLike[str], *, options: Options | None = None, format: str | None = None,
        calibration: Calibration | None = None, location: Location | None = None, budget: Budget = Budget(),  # noqa: B008
        recipe: Recipe = Recipe(), report: bool = False, say: Callable[[str], None] = lambda _: None,  # noqa: B008
    ) -> Int8Exported:
        """Writes it into an int8 file that loses no more of its score than the budget allows.

        Args:
            path, options, format: as of `export`.
            calibration: images from which ranges are taken; None draws of those that it was trained on, and takes the
                ranges of training where that was with `qat`.
            location: of the data that it and the file are measured on; None takes those it was trained on.
            budget: what it may lose.
            recipe: which layers stay in floating point, and how ranges are found.
            report: make the layer report too.
            say: hears what is going on.

        BudgetError where the budget does not hold; ValueError for what the format cannot hold, and without data.
        """
        source, target, kind = self._export_target(path, format)
        place = location or self.location
        if calibration is not None:
            source = source._replace(ranges=None)
        return export_int8(
            source, target, kind, options or self._usual_options(kind),
            calibration=calibration or self.calibration(place), validation=self.validation(place), budget=budget,
            recipe=recipe, report=report, say=say)

    def _usual_options(self, kind: Format) -> Options:
        """A network that runs in parts is exported in parts."""
        usual = kind.usual_options()
        return usual if self._parts is None else replace(usual, execution="split", parts=self._parts)

    def _export_target(self, path: str | os.PathLike[str], format: str | None) -> tuple[Source, Path, Format]:
        if self.source is None:
            raise ValueError(f"{self.title} is an exported file; export the checkpoint it was made of")
        target = Path(path)
        kind = format_of(target) if format is None else format_named(format)
        if kind is None:
            raise ValueError(f"the ending of {target.name} is of no format; name one of {', '.join(formats())}")
        return self.source, target, kind

    @overload
    def __call__(self, images: ImageLike, *, channel_order: ChannelOrder = "rgb") -> Any: ...

    @overload
    def __call__(self, images: Sequence[ImageLike], *, channel_order: ChannelOrder = "rgb") -> list[Any]: ...

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], *, channel_order: ChannelOrder = "rgb"
    ) -> Any | list[Any]:
        """Predicts an image, or each of a list: `Boxes`, or a `LabelMap`, in the image's own pixels; or a
        `BestClasses` of it.

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
        self, image: ImageLike, prediction: Boxes | LabelMap | BestClasses | None = None, *,
        threshold: Threshold | None = None, channel_order: ChannelOrder = "rgb",
    ) -> Pixels:
        """The image with a prediction on it, RGB.

        Args:
            image: as when called.
            prediction: of this image; None predicts it now.
            threshold: boxes of a smaller score are left out; None takes `Model.threshold`.
            channel_order: as when called.
        """
        pixels = _pixels(image, channel_order)
        found = self(pixels) if prediction is None else prediction
        if isinstance(found, LabelMap):
            return draw_labels(pixels, found.labels, self.classes)
        if isinstance(found, BestClasses):
            return draw_classes(pixels, ImageClasses(0, found.scores, found.labels), self.classes)
        return draw_boxes(
            pixels, ImageDetections(0, found.boxes, found.scores, found.labels), self.classes,
            threshold=self.threshold if threshold is None else threshold)

    def stream(self, source: VideoSource, *, every: int = 1) -> Generator[Frame, None, None]:
        """The frames of a video, a camera or a stream, each with a prediction, while the next are read and predicted.

            for frame in model.stream("street.mp4"):
                picture = model.draw(frame.image, frame.prediction)

        Args:
            source: a file, the number or device of a camera, or the address of a stream (rtsp://, http://).
            every: predict every Nth frame; those between have the prediction of the last one.

        FileNotFoundError where there is no such file or camera, OSError where a stream does not answer, ValueError for
        a file that is no video or has no frames; OSError behind the last frame of a video that breaks off.
        """
        if every < 1:
            raise ValueError(f"every Nth frame is predicted, N at least 1, got {every}")
        with Video(source) as video:
            with contextlib.closing(predict_frames(self.network, self.task, video, every=every)) as frames:
                for number, moment, image, found, predicted in frames:
                    yield Frame(number, moment, image, _named(found, self.classes), predicted)
            if video.broken is not None:
                raise OSError(video.broken)

    def _one(self, image: ImageLike, channel_order: ChannelOrder) -> Any:
        found = predict_image(self.network, self.task, _pixels(image, channel_order))
        return _named(found, self.classes)


def load(
    source: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None, *, config_changed: bool = False,
    engine: Engine = "torch", execution: Execution = "whole", parts: int | None = None, settings: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Model:
    """A trained network.

    Args:
        source: a run folder, whose own config and best weights are taken; a config, with `weights`; an exported file.
        weights: a checkpoint of that config, or published weights.
        config_changed: take a checkpoint although it was trained with another config.
        engine: what runs its layers. "onnxruntime" gives the same predictions up to rounding, on a CPU in less time;
            the network is converted for it once, which takes seconds, and kept in the user's cache folder.
        execution: "split" computes inverted bottlenecks in `parts` of their channels: the same predictions up to
            rounding with less memory, see `detseg.split_execution`.
        parts: of each bottleneck; None is 4.
        settings: of the config's model, for published weights that need others: "model.output_stride=8".
        classes: the names of what published weights predict, in their order, where it is not the config's classes.

    ValueError or FileNotFoundError where a file is missing, unreadable or of another network, the config is not the one
    that the checkpoint was trained with, or the engine cannot take the network.
    """
    model = load_model(Path(source), None if weights is None else Path(weights), config_changed=config_changed,
                       settings=settings, classes=classes)
    if (number := number_of_parts(execution, parts)) is not None:
        model.run_in_parts(number)
    return model if engine == "torch" else model.run_with(engine)


def load_model(
    source: Path, weights: Path | None, *, sample: bool = False, config_changed: bool = False,
    settings: Sequence[str] = (), classes: Sequence[str] = (),
) -> Model:
    """`load` for commands. sample: the config as `--sample` changes it."""
    for text in settings:
        if not text.strip().startswith("model."):
            raise ValueError(f"--set {text}: of a trained network only the settings model.* matter")
    if is_artefact(source):
        if settings or classes:
            raise ValueError(f"{source} is an exported file, which knows its network and classes; leave out --set and "
                             "--classes")
        if weights is not None:
            raise ValueError(f"{source} is an exported file, which needs no weights; name it alone")
        return _exported(source)
    if weights is not None and is_artefact(weights):
        raise ValueError(f"{weights} is an exported file, which needs no config; name it alone")
    run = None
    if weights is None or source.is_dir():
        run = trained_run(source)
        source, weights = run.config, weights or run.weights
    config = configs.load(source, settings, sample=sample)
    content = None if is_plain(weights) else read_checkpoint(weights)
    if not checkpoints.is_checkpoint(content):
        return _published(config, weights, classes)
    read = checkpoints.parsed(content, weights)
    asked, config = config, config.as_trained(read.settings)
    _check_asked(asked, config, classes, read, weights)
    predictor = config.build_model(read.classes)
    changes = checkpoints.config_differences(read, config.text, fingerprint(predictor, config.experiment.task))
    if changes and not config_changed:
        raise ValueError("\n".join([
            f"{weights} was trained with another config, under which its tensors mean something else. Use the copy in "
            "its run folder, or insist with --config-changed:", *changes]))
    notes = [checkpoints.not_compared(weights)] if read.fingerprint is None else []
    if changes:
        notes.append(f"note: {weights} was trained with another config than {source}, which was insisted on")
    if read.ranges is not None:
        notes.append(f"note: {weights} was trained with qat; its network is computed in floating point here, and an "
                     "int8 file of it (detseg export --int8) has about the score that training told")
    checkpoints.restore_model(predictor, read.weights, what=str(weights))
    thresholds = None
    if run is not None and run.thresholds.is_file():
        measured = ScoreThresholds.read(run.thresholds)
        if measured.weights == weights_digest(predictor):
            thresholds = dict(zip(read.classes.names, measured.by_class(read.classes), strict=True))
        else:
            notes.append(f"note: {run.thresholds} is of other weights than {weights.name} and was left aside; detseg "
                         "analyze measures anew")
    task = config.experiment.task
    return Model(
        predictor.eval(), task, title=f"{weights}, after {read.step} steps", notes=notes, config=config, run=run,
        thresholds=thresholds, source=Source(predictor, task, str(weights), step=read.step, ranges=read.ranges,
                                             fingerprint=read.fingerprint, thresholds=thresholds))


def _exported(path: Path) -> Model:
    artefact = open_artefact(path)
    manifest = artefact.manifest
    notes = [f"note: {artefact.format.note}"] if artefact.format.note else []
    return Model(artefact, artefact.task, title=f"{path}, made of {manifest.checkpoint['name']} on {manifest.created}",
                 notes=notes, thresholds=manifest.thresholds)


def _check_asked(
    asked: Config, trained: Config, classes: Sequence[str], read: checkpoints.Checkpoint, weights: Path
) -> None:
    """A ValueError where the command line contradicts what a checkpoint knows of itself."""
    for name, entry in asked.model_settings.items():
        known = trained.model_settings[name].value
        if entry.origin == COMMAND_LINE and entry.value != known:
            raise ValueError(f"{weights} was trained with model.{name}={known}, which it knows; under "
                             f"model.{name}={entry.value} its tensors would mean something else. Leave out --set")
    if classes and tuple(classes) != read.classes.names:
        raise ValueError(f"{weights} knows its classes, {', '.join(read.classes.used.values())}; leave out --classes")


def _published(config: Config, weights: Path, names: Sequence[str]) -> Model:
    usual = config.experiment.classes
    predictor = config.build_model(_named_classes(names, usual) if names else usual)
    report = load_weights(predictor, str(weights))
    if report.other_classes:
        raise ValueError(f"{weights} predicts other classes than the {len(predictor.classes)} that are asked for: name "
                         f"those that it predicts, in their order, with --classes NAME ..., or train it for these with "
                         f"--weights {weights}")
    if report.fresh:
        raise ValueError(f"{weights} holds only a part of the network: {len(report.fresh)} tensors are not in it, "
                         f"{report.fresh[0]} is the first; train it with --weights {weights}")
    task = config.experiment.task
    return Model(predictor.eval(), task, title=report.title, config=config,
                 source=Source(predictor, task, str(weights), licence=report.licence))


def _named_classes(names: Sequence[str], usual: Classes) -> Classes:
    """Classes of these names, with the ids and colours of the config's where it knows all of them, else 1, 2, ..."""
    places = {name: k for k, name in enumerate(usual.names)}
    if all(name in places for name in names):
        return Classes(tuple(names), tuple(usual.source_ids[places[name]] for name in names),
                       tuple(usual.colours[places[name]] for name in names))
    return Classes(tuple(names), tuple(range(1, len(names) + 1)))


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


@_named.register
def _(prediction: ImageClasses, classes: Classes) -> BestClasses:
    return BestClasses(prediction.scores, prediction.labels,
                          tuple(classes.names[label] for label in prediction.labels.tolist()))
