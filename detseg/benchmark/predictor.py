"""What a config's network costs on this CPU: parameters, multiply-adds, latency and training time.

On request the same of torchvision's model of the same network, with the same weights, in the same run
(`detseg.benchmark.references`). What is timed takes turns, so that a machine whose speed drifts treats both alike.
Images, targets, and what training would have done to the network, are synthetic (`detseg.benchmark.synthetic`).
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.fabric import Fabric
from rich.table import Table

from detseg import config as configs
from detseg.benchmark import synthetic
from detseg.benchmark.references import Agreement, Reference, reference_of
from detseg.choices import Engine
from detseg.config import Config
from detseg.cost import (
    Timing,
    count_macs,
    count_parameters,
    count_tensorflow_macs,
    network_cost,
    threads,
    time_alternating,
)
from detseg.engine import with_engine
from detseg.memory import keep_freed_memory
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.resize import Stretch
from detseg.structures import Pixels, Size
from detseg.training_step import TrainingStep

IMAGE_SIZE: Size = (480, 640)
"""Of the image whose prediction is timed, unless another is asked for: COCO's most frequent."""

_OURS, _TORCHVISION = "detseg", "torchvision"
SURE, UNSURE = 0.01, 0.1
"""What suppression costs depends on how many scores are above the task's threshold. In a new network nearly all are, in
a trained one it depends on its training. So two are timed: one score in a hundred, which is about one class an anchor,
and one in ten, or as many as can be."""

_MOST_PIXELS = 16 * 512 ** 2
"""Of a training batch whose size nobody has chosen."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to measure: for how many seconds each of the five times, on how many threads, with which training batch.

    threads: None is one for latency, which is a phone's case, and as many as torch takes for training. batch_size: None
    is 16, and half as long as its images have more than 16 x 512 x 512 pixels. size: (height, width) that all images
    have and are brought to by no resizing; None takes an image of 640 x 480 and the config's resize. engine: what runs
    our network's layers in predictions.
    """

    seconds: float = 15.0
    threads: int | None = None
    batch_size: int | None = None
    size: Size | None = None
    engine: Engine = "torch"

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: in training, BatchNorm needs two "
                             "values, and the smallest maps have one a picture")
        if self.size is not None and min(self.size) < 32:
            raise ValueError(f"size is (height, width) in pixels, each at least 32, got {self.size}")

    @property
    def latency_threads(self) -> int:
        """Threads of a prediction."""
        return self.threads or 1

    @property
    def train_threads(self) -> int:
        """Threads of a training step."""
        return self.threads or torch.get_num_threads()

    @property
    def image_size(self) -> Size:
        """Of the image that is predicted."""
        return self.size or IMAGE_SIZE

    def batch_of(self, size: Size) -> int:
        """Images of a training step, each of this size."""
        if self.batch_size is not None:
            return self.batch_size
        number = 16
        while number > 2 and number * size[0] * size[1] > _MOST_PIXELS:
            number //= 2
        return number


class Counts(NamedTuple):
    """What does not depend on the machine."""

    parameters: int
    macs: int
    """Multiply-adds of one image at the network's input size; of two stages, those of the first."""
    region_macs: int | None = None
    """Multiply-adds of the second stage for each region, where there is one."""


class Footprint(NamedTuple):
    """What does not depend on the machine either, of our network alone."""

    tensorflow_macs: int
    """Multiply-adds as TensorFlow's profiler has them: see `detseg.cost.count_tensorflow_macs`."""
    weight_bytes_fp32: int
    """Ready for inference, with the second stage if there is one."""
    weight_bytes_int8: int
    peak_activation_bytes_fp32: int
    """Of one image, up to the raw predictions: see `detseg.cost.NetworkCost`."""
    peak_activation_bytes_int8: int


class Times(NamedTuple):
    """Medians, or ratios of them."""

    latency_network_ms: float
    """The network alone, batch 1, ready for inference: to the raw predictions, of two stages to those of the first."""
    latency_ms: float
    """From a decoded image to the prediction in its pixels: resize, network, decoding, suppression."""
    latency_unsure_ms: float | None
    """The same where ten times as many scores are worth suppressing; None without scores."""
    train_step_one_process_ms: float
    """Forward, loss, backward, optimiser; every network timed in this process, which gives freed memory back."""
    train_step_ms: float
    """The same in a process of its own, as it is trained: ours keeps freed memory (`detseg.memory`)."""


class Comparison(NamedTuple):
    """The same figures of torchvision's model, and ours over its."""

    name: str
    counts: Counts
    times: Times
    ratios: Times
    """Medians of the ratios of paired times; below 1 we are faster."""
    equal: Agreement
    loss_difference: float
    """Of a training step, relative; chance has a part in it where features are dropped or samples drawn."""


class Figures(NamedTuple):
    """Everything measured."""

    config: str
    size: Size
    """The network's input."""
    setup: Setup
    counts: Counts
    times: Times
    score_threshold: float
    score_shares: tuple[float, ...]
    """How many of all scores exceeded it, for latency and unsure latency; none where there are no scores."""
    against: Comparison | None
    footprint: Footprint

    @property
    def batch_size(self) -> int:
        """Of the training step."""
        return self.setup.batch_of(self.size)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        setup = self.setup
        values = self._side(self.counts, self.times) | self.footprint._asdict() | {
            "config": self.config, "input_size": list(self.size), "image_size": list(setup.image_size),
            "engine": setup.engine, "threads": setup.latency_threads, "train_threads": setup.train_threads,
            "batch_size": self.batch_size,
            "score_threshold": self.score_threshold, "score_shares": list(self.score_shares),
            "torch": torch.__version__}
        if self.against is not None:
            name, counts, times, ratios, equal, loss_difference = self.against
            values["against"] = {"name": name} | self._side(counts, times) | {
                "ratios": ratios._asdict(), "equal": equal._asdict() | {"loss_difference": loss_difference}}
        return values

    def table(self) -> Table:
        """Ours, and next to it torchvision's."""
        columns = [self.counts + self.times]
        table = Table("", _OURS)
        if self.against is not None:
            table.add_column(_TORCHVISION)
            table.add_column("ratio")
            columns.append(self.against.counts + self.against.times)
            ratios = (None, None, None, *self.against.ratios)
        for column in table.columns[1:]:
            column.justify = "right"
        titles = ("parameters", "multiply-adds", "multiply-adds of a region", "network alone, ms",
                  "whole prediction, ms", "whole prediction, unsure, ms", "training step, one process, ms",
                  "training step, as trained, ms")
        for row, title in enumerate(titles):
            if row == len(self.counts):
                self._add_footprint(table)
            if columns[0][row] is None:
                continue
            digits = 0 if row < len(self.counts) else 1
            cells = ["" if values[row] is None else f"{values[row]:,.{digits}f}" for values in columns]
            if self.against is not None:
                cells.append("" if ratios[row] is None else f"{ratios[row]:.2f}")
            table.add_row(title, *cells)
        return table

    def notes(self) -> str:
        """What the numbers of the table mean."""
        setup, (height, width), train_step_ms = self.setup, self.size, self.times.train_step_ms
        prediction = (f"prediction: {setup.engine}, {num_threads(setup.latency_threads)}, a decoded image of "
                      f"{setup.image_size[1]} x {setup.image_size[0]}")
        prediction += f", not resized: --size {height} {width}" if setup.size else f", input {width} x {height}"
        if self.score_shares:
            sure, unsure = self.score_shares
            prediction += (f"; {sure:.1%} of all scores are above {self.score_threshold}, {unsure:.1%} where unsure")
        lines = [prediction,
                 f"training: {num_threads(setup.train_threads)}, batch {self.batch_size} at {width} x {height}; as "
                 f"trained: in a process that keeps freed memory, {1000 * self.batch_size / train_step_ms:.1f} "
                 "images/s; in one process: freed memory goes back to the system"]
        if self.against is not None:
            lines += [
                f"{self.against.name}: predicts as documented, trains as its reference script does, from images of "
                "the right size; freed memory always goes back to the system",
                f"{self.against.equal}; the training losses by {self.against.loss_difference:.1e}"]
        return "\n".join(lines)

    def _add_footprint(self, table: Table) -> None:
        found = self.footprint
        table.add_row("multiply-adds, TensorFlow's count", f"{found.tensorflow_macs:,}")
        for title, of_floats, of_integers in (
                ("weights, MB, fp32 / int8", found.weight_bytes_fp32, found.weight_bytes_int8),
                ("activations at most, MB, fp32 / int8", found.peak_activation_bytes_fp32,
                 found.peak_activation_bytes_int8)):
            table.add_row(title, f"{of_floats / 1e6:.1f} / {of_integers / 1e6:.1f}")

    def _side(self, counts: Counts, times: Times) -> dict[str, Any]:
        return counts._asdict() | times._asdict() | {
            "train_images_per_s": 1000 * self.batch_size / times.train_step_ms}


def measure(
    path: Path, overrides: Sequence[str] = (), *, against_torchvision: bool = False, setup: Setup,
    say: Callable[[str], None],
) -> Figures:
    """Counts and times the network of a config file, changed by texts as of `--set`; `say` hears what is going on.

    A training step is all that `fit` does in one but loading, at learning rate 0 so that every step is alike.
    ValueError: torchvision has no such model. OSError: a training process died.
    """
    config, seconds = configs.load(path, overrides), setup.seconds
    task = config.experiment.task
    model = built(config, setup)
    image = synthetic.textures(1, setup.image_size, seed=1)[0]
    title, reference = reference_for(model, config, setup) if against_torchvision else ("", None)
    # The ratios are relative to the first.
    names = (_OURS,) if reference is None else (_TORCHVISION, _OURS)

    say("making activations and scores like those of a trained network")
    synthetic.enliven(model, setup.image_size)
    shares, equal, whole_unsure = list[float](), None, None
    with threads(setup.latency_threads):  # also while networks are made ready: an engine keeps their number
        if task.scored:
            shares.append(synthetic.lower_scores(model, image, SURE, threshold=task.score_threshold))
        use = _inference(model, reference, config, image=image, engine=setup.engine)
        say("timing the network alone")
        network = time_alternating({name: use[name].network for name in names}, seconds=seconds)
        say("timing whole predictions")
        whole = time_alternating({name: use[name].predict for name in names}, seconds=seconds)
        if reference is not None:
            say("comparing predictions")
            equal = reference.compared(use[_OURS].predict_image, _images_of_two_shapes(setup))
        if task.scored:
            shares.append(synthetic.lower_scores(model, image, UNSURE, threshold=task.score_threshold))
            use = _inference(model, reference, config, image=image, engine=setup.engine)
            say("timing whole predictions with many scores")
            whole_unsure = time_alternating({name: use[name].predict for name in names}, seconds=seconds)

    with threads(setup.train_threads):
        say("timing training steps in this process")
        steps = {name: _step(name, copy.deepcopy(model), config, setup) for name in names}
        losses = [step() for step in steps.values()]
        one_process = time_alternating(steps, seconds=seconds, warmup=1)
    del steps
    say("timing training steps in processes of their own")
    with ExitStack() as stack:
        served = {name: stack.enter_context(_own_process(name, path, overrides, setup=setup)) for name in names}
        own_process = time_alternating(served, seconds=seconds, warmup=2)

    def times(value: Callable[[Mapping[str, Timing]], float]) -> Times:
        return Times(value(network), value(whole), None if whole_unsure is None else value(whole_unsure),
                     value(one_process), value(own_process))

    against = None
    if reference is not None and equal is not None:
        against = Comparison(
            name=f"torchvision {title}",
            counts=Counts(count_parameters(reference.model), count_macs(reference.network, reference.inputs(image))),
            times=times(lambda timing: timing[_TORCHVISION].median), ratios=times(lambda timing: timing[_OURS].ratio),
            equal=equal, loss_difference=abs(losses[1] / losses[0] - 1))
    height, width = model.resize.size
    return Figures(path.stem, (height, width), setup, counts(model), times(lambda timing: timing[_OURS].median),
                   task.score_threshold, tuple(shares), against, footprint(model))


def num_threads(number: int) -> str:
    """For people."""
    return "1 thread" if number == 1 else f"{number} threads"


def counts(model: Predictor) -> Counts:
    """Parameters, and multiply-adds at the network's input size."""
    stage = model.head.second_stage
    region = None if stage is None else count_macs(stage, torch.zeros(1, 1, *cast(Any, stage).input_shape))
    return Counts(count_parameters(model), count_macs(model, torch.zeros(1, 3, *model.resize.size)), region)


def footprint(model: Predictor) -> Footprint:
    """Of one image at the network's input size."""
    image = torch.empty(1, 3, *model.resize.size, device="meta")
    plain = copy.deepcopy(model)
    plain.head.drop_training_parts()
    cost = network_cost(model.folded(), image)
    if (stage := model.head.second_stage) is not None:
        region = torch.empty(1, 1, *cast(Any, stage).input_shape, device="meta")
        second = network_cost(stage, region)
        cost = cost._replace(weights=cost.weights + second.weights, biases=cost.biases + second.biases)
    return Footprint(count_tensorflow_macs(plain, image), cost.weight_bytes("fp32"), cost.weight_bytes("int8"),
                     cost.peak_bytes("fp32"), cost.peak_bytes("int8"))


class _Inference(NamedTuple):
    """A network ready for use."""

    network: Callable[[], object]
    """One forward pass of the timed image."""
    predict: Callable[[], object]
    """Its whole prediction."""
    predict_image: Callable[[Pixels], Any]


def _inference(
    model: Predictor, reference: Reference | None, config: Config, *, image: Pixels,
    engine: Engine = "torch",
) -> dict[str, _Inference]:
    """The model as each of the two libraries would use it; the reference gets its weights."""
    task, images = config.experiment.task, synthetic.inputs(model, [image])
    ready = with_engine(model, task, engine)
    ours = partial(predict_image, ready, task)
    use = {_OURS: _Inference(torch.inference_mode()(partial(ready, images)), partial(ours, image), ours)}
    if reference is not None:
        reference.take_weights(model)
        network = torch.inference_mode()(partial(reference.network, reference.inputs(image)))
        use[_TORCHVISION] = _Inference(network, partial(reference.predict, image), reference.predict)
    return use


def _images_of_two_shapes(setup: Setup) -> list[Pixels]:
    """On which predictions are compared; all of one size where one is asked for."""
    return (synthetic.textures(4, setup.image_size, seed=1)
            + synthetic.textures(4, setup.size or (640, 427), seed=2))


def _step(name: str, model: Predictor, config: Config, setup: Setup) -> Callable[[], float]:
    """A training step from the model's weights, which it may change; it gives the loss."""
    batch = synthetic.batch(model, config.experiment.task, setup.batch_of(model.resize.size))
    if name != _OURS:
        return reference_for(model, config, setup)[1].step(batch)
    experiment = config.experiment.changed("accumulate", 1)
    fabric = Fabric(accelerator="cpu", devices=1, precision=experiment.precision)
    step = TrainingStep(model.train().to(memory_format=torch.channels_last), experiment, fabric=fabric, lr=0.0)
    return lambda: step(batch, number=0, total_steps=1)["loss"]


@contextmanager
def _own_process(name: str, path: Path, overrides: Sequence[str], *, setup: Setup) -> Iterator[Callable[[], None]]:
    """A training step that another process does when it is called."""
    # A process with nothing from this one; systems that do not fork have another way to that.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    here, there = context.Pipe()
    arguments = (there, name, path, tuple(overrides), setup)
    process = context.Process(target=_serve_steps, args=arguments, daemon=True)
    process.start()
    there.close()

    def step() -> None:
        try:
            here.send(None)
            here.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError(f"the process that trains {name} ended; if there is too little memory for it, "
                          "a smaller --batch-size needs less") from error

    try:
        yield step
    finally:
        here.close()
        process.join()


def _serve_steps(
    connection: Connection, name: str, path: Path, overrides: tuple[str, ...], setup: Setup
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both processes; the other one ends this one
    if name == _OURS:
        keep_freed_memory()
    config = configs.load(path, overrides)
    step = _step(name, built(config, setup), config, setup)
    with threads(setup.train_threads), suppress(EOFError, ConnectionError):
        while True:
            connection.recv()
            connection.send(step())


def built(config: Config, setup: Setup) -> Predictor:
    """A config's new network, seeded, for images of the size that is asked for."""
    torch.manual_seed(0)
    model = config.build_model(config.experiment.classes)
    if setup.size is not None:
        model.resize = Stretch(setup.size)
    return model


def reference_for(model: Predictor, config: Config, setup: Setup) -> tuple[str, Reference]:
    """torchvision's model of the same network, and what it is called; ValueError where it has none."""
    image = synthetic.textures(1, setup.image_size, seed=1)[0]
    own = config.build_model(config.experiment.classes)
    return reference_of(model, resize=own.resize, size=setup.size, image=image)
