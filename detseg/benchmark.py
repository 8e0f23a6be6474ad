"""What a config's network costs on this CPU: parameters, multiply-adds, latency and training time.

On request the same of torchvision's model of the same architecture, with the same weights, in the same run. What is
timed takes turns, so that a machine whose speed drifts treats both alike.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection._utils import retrieve_out_channels
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead

from detseg import config as configs
from detseg.config import Config, Experiment
from detseg.cost import count_macs, count_parameters, threads, time_alternating
from detseg.interfaces import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    BoxTargets,
    ImageDetections,
    Pixels,
    Sample,
    Size,
    Source,
)
from detseg.memory import keep_freed_memory
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.weights.torchvision import ssdlite_names

IMAGE_SIZE: Size = (480, 640)
"""Of the image whose prediction is timed: COCO's most frequent."""

TOLERANCE = 1e-4
"""Detections are the same if their scores differ by less, and their boxes by less of the image's longer side."""

_OURS, _TORCHVISION = "detseg", "torchvision"
_LOWEST_SCORE, _SURE, _UNSURE = 0.001, 0.01, 0.1
"""What suppression costs depends on how many scores enter it: in our configs, those above 0.001. In a new network
nearly all do, in a trained one it depends on its training. So two are timed: one score in a hundred, which is about
one class an anchor, and one in ten."""

_TIES = 0.001
"""The part of equal detections that may lack a twin: folding moves the last digits, and suppression may begin at either
of two scores that differ by less."""


class Peer(NamedTuple):
    """A model of torchvision that is one of our configs."""

    title: str
    build: Callable[[], Any]
    """The model with random weights."""
    names: Callable[[Mapping[str, Tensor]], Mapping[str, str]]
    """Its tensor names to ours."""


def _ssdlite_mobilenet_v2() -> Any:
    """torchvision has no such model, but all its parts: the network of ssdlite_v2_bccd, trained with smooth L1."""
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.1)
    layers: Any = mobilenet_v2(weights=None).features
    layers[14].block = layers[14].conv  # SSDLite's extractor splits a block of MobileNetV3, which calls it so
    del layers[14].conv
    trunk = SSDLiteFeatureExtractorMobileNet(layers, 14, norm)
    anchors = DefaultBoxGenerator([[2, 3]] * 6, scales=[0.07, 0.46, 0.6, 0.75, 0.85, 0.95, 1.0])
    head = SSDLiteHead(retrieve_out_channels(trunk, (320, 320)), anchors.num_anchors_per_location(), 4, norm)
    return SSD(
        trunk, anchors, (320, 320), 4, head=head, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD),
        score_thresh=0.001, nms_thresh=0.5, topk_candidates=100, detections_per_img=100)


TORCHVISION = {
    "ssdlite_v3_large": Peer(
        "ssdlite320_mobilenet_v3_large",
        partial(ssdlite320_mobilenet_v3_large, weights=None, weights_backbone=None), ssdlite_names),
    "ssdlite_v2_bccd": Peer("SSD of its parts on mobilenet_v2", _ssdlite_mobilenet_v2, ssdlite_names),
}
"""By the name of the config."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to measure: for how many seconds each of the five times, on how many threads, with which training batch.

    threads: None is one for latency, which is a phone's case, and as many as torch takes for training.
    """

    seconds: float = 15.0
    threads: int | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: in training, BatchNorm needs two "
                             "values, and the smallest maps have one a picture")

    @property
    def latency_threads(self) -> int:
        """Threads of a prediction."""
        return self.threads or 1

    @property
    def train_threads(self) -> int:
        """Threads of a training step."""
        return self.threads or torch.get_num_threads()


class Counts(NamedTuple):
    """What does not depend on the machine."""

    parameters: int
    macs: int
    """Multiply-adds of one image at the network's input size."""


class Times(NamedTuple):
    """Medians."""

    latency_network_ms: float
    """The network alone, batch 1, ready for inference."""
    latency_ms: float
    """From a decoded image of IMAGE_SIZE to detections in its pixels: resize, network, decoding, suppression."""
    latency_unsure_ms: float
    """The same where ten times as many scores are worth suppressing."""
    train_step_one_process_ms: float
    """Forward, loss, backward, optimiser; every network timed in this process, which gives freed memory back."""
    train_step_ms: float
    """The same in a process of its own, as it is trained: ours keeps freed memory (`detseg.memory`)."""


class Agreement(NamedTuple):
    """How far two networks with the same weights say the same."""

    images: int
    detections: int
    """Of both."""
    unmatched: int
    """Those of both that have no twin: of the same class, within TOLERANCE."""
    max_score_difference: float
    max_box_difference: float
    """In pixels; both among twins."""
    loss_difference: float
    """Of a training step, relative."""


class Comparison(NamedTuple):
    """The same figures of torchvision's model, and ours over its."""

    name: str
    counts: Counts
    times: Times
    ratios: Times
    """Medians of the ratios of paired times; below 1 we are faster."""
    equal: Agreement


class Figures(NamedTuple):
    """Everything measured."""

    config: str
    size: Size
    setup: Setup
    counts: Counts
    times: Times
    against: Comparison | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        setup = self.setup
        values = self._side(self.counts, self.times) | {
            "config": self.config, "input_size": list(self.size), "image_size": list(IMAGE_SIZE),
            "threads": setup.latency_threads, "train_threads": setup.train_threads, "batch_size": setup.batch_size,
            "torch": torch.__version__}
        if self.against is not None:
            name, counts, times, ratios, equal = self.against
            values["against"] = {"name": name} | self._side(counts, times) | {
                "ratios": ratios._asdict(), "equal": equal._asdict()}
        return values

    def table(self) -> Table:
        """Ours, and next to it torchvision's."""
        ours, theirs = self.counts + self.times, None
        table = Table("", _OURS)
        if self.against is not None:
            table.add_column(_TORCHVISION)
            table.add_column("ratio")
            theirs = self.against.counts + self.against.times
            ratios = ["", "", *(f"{ratio:.2f}" for ratio in self.against.ratios)]
        for column in table.columns[1:]:
            column.justify = "right"
        titles = ("parameters", "multiply-adds", "network alone, ms", "whole prediction, ms",
                  "whole prediction, unsure, ms", "training step, one process, ms", "training step, as trained, ms")
        for row, title in enumerate(titles):
            cells = [ours[row]] if theirs is None else [ours[row], theirs[row]]
            table.add_row(title, *(f"{cell:,}" if isinstance(cell, int) else f"{cell:,.1f}" for cell in cells),
                          *([] if theirs is None else [ratios[row]]))
        return table

    def notes(self) -> str:
        """What the numbers of the table mean."""
        setup, (height, width), train_step_ms = self.setup, self.size, self.times.train_step_ms
        lines = [f"prediction: {_num_threads(setup.latency_threads)}, a decoded image of {IMAGE_SIZE[1]} x "
                 f"{IMAGE_SIZE[0]}; {_SURE:.0%} of all scores are above {_LOWEST_SCORE}, {_UNSURE:.0%} where unsure",
                 f"training: {_num_threads(setup.train_threads)}, batch {setup.batch_size} at {width} x {height}; as "
                 f"trained: in a process that keeps freed memory, {1000 * setup.batch_size / train_step_ms:.1f} "
                 "images/s; in one process: freed memory goes back to the system"]
        if self.against is not None:
            equal = self.against.equal
            same = equal.unmatched <= _TIES * equal.detections
            lines += [
                f"{self.against.name}: predicts as documented, trains as its reference script does, from images of "
                "the right size; freed memory always goes back to the system",
                f"results {'equal' if same else 'NOT EQUAL'}: of {equal.detections} detections on {equal.images} "
                f"images {equal.unmatched} have no twin; twins differ by {equal.max_score_difference:.1e} in score and "
                f"{equal.max_box_difference:.1e} px at most, the training losses by {equal.loss_difference:.1e}"]
        return "\n".join(lines)

    def _side(self, counts: Counts, times: Times) -> dict[str, Any]:
        return counts._asdict() | times._asdict() | {
            "train_images_per_s": 1000 * self.setup.batch_size / times.train_step_ms}


def measure(
    path: Path, overrides: Sequence[str] = (), *, against_torchvision: bool = False, setup: Setup,
    say: Callable[[str], None],
) -> Figures:
    """Counts and times the network of a config file, changed by texts as of `--set`; `say` hears what is going on.

    A training step is all that `fit` does in one but loading, at learning rate 0 so that every step is alike.
    ValueError: torchvision has no such model. OSError: a training process died.
    """
    config, seconds = configs.load(path, overrides), setup.seconds
    model = _built(config)
    peer = _peer(config, model) if against_torchvision else None
    # The ratios are relative to the first.
    names = (_OURS,) if peer is None else (_TORCHVISION, _OURS)

    say("making activations and scores like those of a trained network")
    _enliven(model)
    image = _textures(1, IMAGE_SIZE, seed=1)[0]
    with threads(setup.latency_threads):  # also while networks are made ready: weights are laid out for the threads
        _lower_scores(model, _SURE)
        sure = {name: _inference(name, model, config) for name in names}
        _lower_scores(model, _UNSURE)
        unsure = {name: _inference(name, model, config) for name in names}
        say("timing the network alone")
        network = time_alternating({name: sure[name].network for name in names}, seconds=seconds)
        say("timing whole predictions")
        whole, whole_unsure = (
            time_alternating({name: partial(use[name].predict, image) for name in names}, seconds=seconds)
            for use in (sure, unsure))

    with threads(setup.train_threads):
        say("timing training steps in this process")
        steps = {name: _step(name, copy.deepcopy(model), config, batch_size=setup.batch_size) for name in names}
        losses = [step() for step in steps.values()]
        one_process = time_alternating(steps, seconds=seconds, warmup=1)
    del steps
    say("timing training steps in processes of their own")
    with ExitStack() as stack:
        served = {name: stack.enter_context(_own_process(name, path, overrides, setup=setup)) for name in names}
        own_process = time_alternating(served, seconds=seconds, warmup=2)

    timings = (network, whole, whole_unsure, one_process, own_process)
    against = None
    if peer is not None:
        against = Comparison(
            name=f"torchvision {TORCHVISION[path.stem].title}",
            counts=Counts(count_parameters(peer), count_macs(_Network(peer), torch.zeros(1, 3, *model.resize.size))),
            times=Times(*(timing[_TORCHVISION].median for timing in timings)),
            ratios=Times(*(timing[_OURS].ratio for timing in timings)),
            equal=_agreement(sure[_OURS], sure[_TORCHVISION], losses=losses))
    height, width = model.resize.size
    return Figures(path.stem, (height, width), setup, counts(model),
                   Times(*(timing[_OURS].median for timing in timings)), against)


def _num_threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def counts(model: Predictor) -> Counts:
    """Parameters, and multiply-adds at the network's input size."""
    return Counts(count_parameters(model), count_macs(model, torch.zeros(1, 3, *model.resize.size)))


class _Inference(NamedTuple):
    """A network ready for use."""

    network: Callable[[], object]
    """One forward pass of one image."""
    predict: Callable[[Pixels], ImageDetections]


def _inference(name: str, model: Predictor, config: Config) -> _Inference:
    """The model as each of the two libraries would use it."""
    images = _inputs(model, _textures(1, IMAGE_SIZE, seed=1))
    if name == _OURS:
        ready, task = model.ready(), config.experiment.task
        return _Inference(torch.inference_mode()(lambda: ready(images)),
                          lambda image: predict_image(ready, task, image))
    peer = _peer(config, model).eval()
    network, scaled = _Network(peer), images.contiguous() / 127.5 - 1

    @torch.inference_mode()
    def predict(image: Pixels) -> ImageDetections:
        found = peer([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
        return ImageDetections(0, found["boxes"], found["scores"], found["labels"] - 1)

    return _Inference(torch.inference_mode()(lambda: network(scaled)), predict)


class _Network(nn.Module):
    """The network of torchvision's detector, without its resize and its suppression."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in -1..1 to raw predictions."""
        found: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return found


def _step(name: str, model: Predictor, config: Config, *, batch_size: int) -> Callable[[], float]:
    """A training step from the model's weights, which it may change; it gives the loss."""
    batch = _batch(model, config.experiment, batch_size)
    if name == _OURS:
        return _our_step(model, config.experiment, batch)
    return _their_step(_peer(config, model), batch)


def _our_step(model: Predictor, experiment: Experiment, batch: Batch[BoxTargets]) -> Callable[[], float]:
    """What `fit` does."""
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = experiment.optimizer.build(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    averaged = None if experiment.ema is None else experiment.ema.build(model)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=experiment.precision == "bf16-mixed"):
            raw = model(batch.images.contiguous(memory_format=torch.channels_last))
        losses = model.head.loss(raw, batch.targets)
        total = torch.stack(list(losses.sums.values())).sum()
        torch.autograd.backward(total)
        divisor = max(1.0, float(losses.divisor))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(divisor)
        nn.utils.clip_grad_norm_(model.parameters(), experiment.clip_norm or math.inf)
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(model)
        return float(total.detach()) / divisor

    return step


def _their_step(peer: Any, batch: Batch[BoxTargets]) -> Callable[[], float]:
    """What torchvision's references/detection/engine.py does, with the options it was published with."""
    peer.train()
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.0, momentum=0.9, weight_decay=4e-5)
    images = [image.float() / 255 for image in batch.images]
    boxes_BM4, labels_BM, _ = batch.targets
    targets = [{"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
               for boxes, labels in zip(boxes_BM4, labels_BM, strict=True)]

    def step() -> float:
        losses = peer(images, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return step


@contextmanager
def _own_process(name: str, path: Path, overrides: Sequence[str], *, setup: Setup) -> Iterator[Callable[[], None]]:
    """A training step that another process does when it is called."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, name, path, tuple(overrides), setup.batch_size, setup.train_threads)
    process = context.Process(target=_serve_steps, args=arguments, daemon=True)
    process.start()
    there.close()

    def step() -> None:
        try:
            here.send(None)
            here.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError(f"the process that trains {name} ended; if there is too little memory for it, "
                          f"--batch-size below {setup.batch_size} needs less") from error

    try:
        yield step
    finally:
        here.close()
        process.join()


def _serve_steps(
    connection: Connection, name: str, path: Path, overrides: tuple[str, ...], batch_size: int, num_threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both processes; the other one ends this one
    if name == _OURS:
        keep_freed_memory()
    config = configs.load(path, overrides)
    step = _step(name, _built(config), config, batch_size=batch_size)
    with threads(num_threads), suppress(EOFError, ConnectionError):
        while True:
            connection.recv()
            connection.send(step())


def _built(config: Config) -> Predictor:
    torch.manual_seed(0)
    return config.build_model(config.experiment.classes)


def _peer(config: Config, model: Predictor) -> Any:
    """torchvision's model of this architecture, with the weights of ours. ValueError where it has none."""
    if config.path.stem not in TORCHVISION:
        raise ValueError(f"torchvision has no model of {config.path.stem} to compare with; it has one of "
                         f"{', '.join(TORCHVISION)}")
    title, build, names = TORCHVISION[config.path.stem]
    peer = build()
    state = peer.state_dict()
    # How images are normalised is no weight there.
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in ("scale", "shift")}
    shapes = {name: state[key].shape for key, name in names(state).items()}
    if (shapes != {name: tensor.shape for name, tensor in own.items()}
            or peer.transform.fixed_size != model.resize.size[::-1]):
        raise ValueError(f"torchvision's {title} has one width, one tail, one input size and one number of "
                         f"classes, which {config.path} as it is now has not: leave out --set model.*")
    peer.load_state_dict({key: own[name] for key, name in names(state).items()})
    return peer


@torch.no_grad()
def _enliven(model: Predictor) -> None:
    """Gives a new network the statistics of a used one, and leaves it in evaluation mode.

    With initial BatchNorm statistics activations vanish and all scores tie.
    """
    images = _inputs(model, _textures(8, IMAGE_SIZE, seed=0))
    momenta = {module: module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in momenta:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    model.train()
    for part in images.chunk(2):
        model(part)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for layer in _score_layers(model):
        model.head.get_parameter(f"{layer}.weight").mul_(4.0)
    model.eval()


def _score_layers(model: Predictor) -> list[str]:
    return [layer for layer, num_rows in model.head.class_layers.items() if num_rows == 1]


@torch.no_grad()
def _lower_scores(model: Predictor, share: float) -> None:
    """Moves the biases of the classes, background aside, until `share` of the scores are above _LOWEST_SCORE."""
    head, images = model.head, _inputs(model, _textures(1, IMAGE_SIZE, seed=1))
    background = head.num_outputs - len(model.classes)
    biases = [head.get_parameter(f"{layer}.bias").view(-1, head.num_outputs)[:, background:]
              for layer in _score_layers(model)]
    step = 16.0
    while step > 0.01:
        above = head.decode(model(images)).scores > _LOWEST_SCORE
        for bias in biases:
            bias.add_(-step if above.double().mean() > share else step)
        step /= 2


def _agreement(ours: _Inference, theirs: _Inference, *, losses: Sequence[float]) -> Agreement:
    """Compares detections on images of two shapes; and two losses."""
    images = _textures(4, IMAGE_SIZE, seed=1) + _textures(4, (640, 427), seed=2)
    found = [(ours.predict(image), theirs.predict(image)) for image in images]
    unmatched, scores, boxes = 0, [0.0], [0.0]
    for mine, other in found:
        score_MN = (mine.scores[:, None] - other.scores).abs()
        box_MN = (mine.boxes[:, None] - other.boxes).abs().amax(-1)
        twins_MN = (mine.labels[:, None] == other.labels) & (score_MN < TOLERANCE) & (box_MN < TOLERANCE * 640)
        unmatched += int((~twins_MN.any(0)).sum() + (~twins_MN.any(1)).sum())
        scores += score_MN[twins_MN].tolist()
        boxes += box_MN[twins_MN].tolist()
    return Agreement(
        images=len(found), detections=sum(len(mine.scores) + len(other.scores) for mine, other in found),
        unmatched=unmatched, max_score_difference=max(scores), max_box_difference=max(boxes),
        loss_difference=abs(losses[1] / losses[0] - 1))


def _textures(number: int, size: Size, *, seed: int) -> list[Pixels]:
    """Images with structure at every scale, a pure function of the arguments."""
    random = np.random.default_rng(seed)
    height, width = size
    images = []
    for _ in range(number):
        image = np.full((height, width, 3), 128.0)
        for cells, strength in ((3, 60.0), (12, 40.0), (48, 25.0)):
            coarse = random.normal(0.0, strength, (cells, cells, 3))
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        images.append(image.clip(0, 255).astype(np.uint8))
    return images


def _inputs(model: Predictor, images: Sequence[Pixels]) -> Tensor:
    """Images as the network takes them, float32 [B, 3, H, W], channels last."""
    return torch.from_numpy(np.stack([model.resize.apply(image) for image in images])).permute(0, 3, 1, 2)


def _batch(model: Predictor, experiment: Experiment, number: int) -> Batch[BoxTargets]:
    """Textures with 1 to 12 boxes each, in turn."""
    height, width = model.resize.size
    source = Source(0, (height, width), model.resize.place((height, width)))
    random = np.random.default_rng(3)
    samples = []
    for position, image in enumerate(_textures(number, (height, width), seed=3)):
        num_boxes = 1 + position % 12
        sides = random.uniform(0.05, 0.6, (num_boxes, 2)) * (width, height)
        corners = random.uniform(0.0, 1.0, (num_boxes, 2)) * ((width, height) - sides)
        boxes = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()
        labels = torch.from_numpy(random.integers(0, len(model.classes), num_boxes))
        targets = BoxTargets(boxes, labels, torch.zeros(num_boxes, dtype=torch.bool))
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        samples.append(Sample(pixels, targets, source))
    return experiment.task.collate(samples)
