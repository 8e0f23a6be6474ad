"""Experiments: what a config file holds, how it is read, and what the command line may change in it.

A config is Python that calls constructors and leaves one `experiment` behind. It can lie anywhere; it needs no package.
"""

from __future__ import annotations

import inspect
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from detseg.config_files import find_config
from detseg.config_module import run_config
from detseg.data.faults import Fault
from detseg.from_data import Choice, FromData
from detseg.interfaces import Dataset, Losses, Metric, Task, TrainingBatch
from detseg.model import Predictor
from detseg.optim import EMA, QAT, Distill, Freeze, OptimizerSettings, Schedule
from detseg.resize import Resize
from detseg.settings import (
    CHECKPOINT,
    COMMAND_LINE,
    DATA,
    DEFAULT,
    FILE,
    QAT_OPTION,
    SAMPLE,
    TEACHER_OPTION,
    Entry,
    Settings,
    Value,
    as_text,
    flatten,
    override,
    parameters,
    parse_value,
    switchable,
    unknown_name,
)
from detseg.structures import Classes

Precision: TypeAlias = Literal["32-true", "bf16-mixed"]
"""float16 is left out: its loss scale is state that a resumed run would need, and bfloat16 has float32's range."""


FREE_SETTINGS = frozenset({"workers", "log_every", "save_minutes", "validate_every", "eval_batch_size", "keep_every",
                           "report", "distill.teacher", "distill.checkpoint"})
"""Settings that may change on resume: no weight depends on them. A teacher may have moved; what it is gets compared."""


class Index(Protocol):
    """The annotations of a split, read once. Its labels are positions in `classes`."""

    def __len__(self) -> int:
        """How many images."""

    @property
    def classes(self) -> Classes:
        """The classes that the annotations list."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about these annotations and that is no error."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was left out because it is broken."""

    def relabel(self, classes: Classes, /) -> Any:
        """The same annotations with labels that are positions in `classes`, matched by source id."""

    def repeats(self, share: float) -> NDArray[np.float64]:
        """How often each image should come, so that images with a class that a smaller share of them has come more
        often."""

    def common(self, classes: Classes, /) -> Any:
        """What the annotations say of the classes that `classes` has too, by name; labels are positions in it."""


class MakeDataset(Protocol):
    """How an index becomes a dataset."""

    def __call__(self, index: Any, resize: Resize, /, *, augment: Any, seed: int, num_epochs: int = 1) -> Dataset[Any]:
        """For training with an `augment`, which may ask how many epochs the run has; without one, None, for
        evaluation."""


class MakeMetric(Protocol):
    """How an index becomes the metric that predictions of its images are measured with."""

    def __call__(self, index: Any, /, *, per_class: bool = False, reference: bool = False) -> Metric[Any]:
        """The official metric against the original annotations, by class too if asked; `reference` takes the slow
        original implementation where a faster equal one is used."""


class Objective(Protocol):
    """What a training step makes smaller: the loss of a batch."""

    def __call__(self, network: nn.Module, model: Predictor, batch: TrainingBatch[Any], /) -> Losses:
        """`network` is to be called with the images: `model`, or what stands around it where several processes train.
        Asked for `with_features`, it gives the features too."""


def head_loss(network: nn.Module, model: Predictor, batch: TrainingBatch[Any], /) -> Losses:
    """What the head says of the network's raw outputs."""
    return model.head.loss(network(batch.images), batch.targets, (batch.images.shape[2], batch.images.shape[3]))


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where samples come from, and what predictions of them are measured with."""

    read: Callable[[Path, Literal["train", "val"]], Index]
    """A folder and a split to the index of its annotations."""
    dataset: MakeDataset
    """An index to a dataset."""
    metric: MakeMetric
    """An index to the metric."""
    generate: Callable[[Path], Path]
    """Writes the sample data set into a folder, unless it is there, and gives the folder to read."""
    folder: str = "data/coco"
    """Where the data lies unless the command line says otherwise."""


@dataclass(frozen=True, kw_only=True)
class SampleRun(Settings):
    """What `--sample` changes. Only what is named replaces the experiment's: `ema=None` switches averaging off,
    leaving it out keeps it. `model` holds keyword arguments of the model function."""

    optimizer: OptimizerSettings | None = None
    schedule: Schedule | None = None
    batch_size: int = 0
    augment: Callable[[Resize], Any] | None = None
    ema: EMA | None = None
    clip_norm: float | None = None
    validate_every: int = 0
    model: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment(Settings):
    """One experiment, complete: what is learned from what, how, and for how long."""

    task: Task[Any, Any, Any, Any]
    data: Data
    model: Callable[..., Predictor]
    """`model(classes, *, width=1.0, ...)`; its keyword parameters are the settings `model.*`."""
    classes: Classes
    """The label space, kept where the data's used classes are the same ones; other data brings its own."""
    augment: Callable[[Resize], Any] | None
    """From the model's resize to the training augmentation; None trains on plain resized images."""
    optimizer: OptimizerSettings
    schedule: Schedule
    batch_size: int
    """Images of one optimiser step, over all processes."""
    accumulate: int = 1
    """Parts a step is computed in, to save memory."""
    eval_batch_size: int | None = None
    """Images that a process evaluates together; None chooses: no more than one of training's parts, and fewer of large
    images."""
    ema: EMA | None = None
    """The averaged weights are then evaluated and shipped."""
    qat: QAT | None = None
    """Training for 8-bit integers, from weights that were trained without; validation then tells the score of those."""
    distill: Distill | None = None
    """Learning from a teacher too."""
    freeze: Freeze = field(default_factory=Freeze)
    """What of the backbone keeps its values."""
    clip_norm: float | None = None
    """The largest norm of the whole gradient."""
    repeat_rare: float = 0.0
    """Images with a class that a smaller share of the images has than this come more often (0.001 in LVIS)."""
    precision: Precision = "32-true"
    sync_batch_norm: bool = False
    """Whether BatchNorm sees the images of all processes; on GPUs only."""
    seed: int = 0
    workers: int | None = None
    """Loading processes, None for as many as suit the machine."""
    log_every: int = 20
    """Steps."""
    validate_every: int = 1
    """Epochs."""
    save_minutes: float = 5.0
    """`last.pt` is written after every epoch and at least this often."""
    keep_every: int | None = None
    """Epochs after which a checkpoint of its own is kept, which `detseg average` can take; None keeps none."""
    report: bool = True
    """Whether the page of the run is written at its end; the best network is measured once more for it."""
    from_data: FromData | None = None
    """What follows from the training data before the first step."""
    sample: SampleRun = field(default_factory=SampleRun)
    objective: Objective = head_loss
    """What a step makes smaller; of a run with `distill` the head's loss is a part of that."""
    prepare: Callable[[Predictor], Predictor] | None = None
    """What happens to the new network before it is trained or resumed, for example fake quantisation."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "eval_batch_size", "log_every", "validate_every", "keep_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be computed in {self.accumulate} equal parts; "
                             "choose an accumulate that divides it")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0 or None, got {self.clip_norm}")
        if not 0 <= self.repeat_rare <= 1:
            raise ValueError(f"repeat_rare is a share of the images, 0..1, got {self.repeat_rare}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, or None to choose, got {self.workers}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.save_minutes < 0:
            raise ValueError(f"save_minutes must be at least 0, got {self.save_minutes}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.qat is not None and self.precision != "32-true":
            raise ValueError(f"qat and precision {self.precision!r} do not go together: bfloat16 has 8 significant "
                             "bits, in which rounding to 8-bit integers would be lost; take precision 32-true")
        if self.qat is not None and self.sync_batch_norm:
            raise ValueError("qat and sync_batch_norm do not go together; leave one out, or let a process have more "
                             "images")
        if self.distill is not None and self.qat is not None:
            raise ValueError("distill and qat do not go together; distil first, then train what came of it with --qat "
                             "--weights RUN")
        if self.distill is not None and self.objective is not head_loss:
            raise ValueError(f"distill adds to the head's loss, and does not go together with the objective "
                             f"{_name_of(self.objective)}; leave one out")

    def training_set(self, index: Index, resize: Resize) -> Dataset[Any]:
        """The images of an index as they are augmented, for a network with this resize."""
        augment = None if self.augment is None else self.augment(resize)
        return self.data.dataset(index, resize, augment=augment, seed=self.seed, num_epochs=self.schedule.epochs)


_QAT_FEWER_EPOCHS = 10
"""What `--qat` divides epochs and warm-up steps by."""
_QAT_SMALLER_LR = 100
"""What `--qat` divides the learning rate by."""
_NOT_SETTINGS = frozenset({"task", "data", "model", "classes", "augment", "sample", "objective", "prepare"})
"""Fields of an experiment that are things, not values; `--show` names them, `--set` does not reach them."""
_LATER_GROUPS = frozenset({"qat", "distill", "from_data"})
"""Groups that older checkpoints know nothing of: where they are left out, they are no settings."""


@dataclass(frozen=True)
class Config:
    """An experiment as it will run: read from a file, then changed by `--sample`, then by `--set`."""

    path: Path
    text: str
    """Of the file."""
    experiment: Experiment
    model_settings: dict[str, Entry]
    choices: tuple[Choice, ...] = ()
    """What has followed from the training data."""

    def build_model(self, classes: Classes) -> Predictor:
        """The network for these classes, freshly initialised."""
        return self.experiment.model(classes, **{name: entry.value for name, entry in self.model_settings.items()})

    def entries(self) -> dict[str, Entry]:
        """Every value by its dotted name, with who set it."""
        own = {name: entry for name, entry in flatten(self.experiment).items()
               if name.partition(".")[0] not in _NOT_SETTINGS
               and (name not in _LATER_GROUPS or entry.value is not None)}
        return {f"model.{name}": entry for name, entry in self.model_settings.items()} | own

    def settings(self) -> dict[str, Value]:
        """Every value by its dotted name, plain: what a checkpoint keeps."""
        return {name: entry.value for name, entry in self.entries().items()}

    def for_qat(self) -> Config:
        """As `--qat` changes it: quantisation-aware training in a tenth of the epochs at a hundredth of the learning
        rate, for it starts from trained weights. What is such an experiment already stays as it is."""
        experiment = self.experiment
        if experiment.qat is not None:
            return self
        optimizer = experiment.optimizer.changed("lr", experiment.optimizer.lr / _QAT_SMALLER_LR, origin=QAT_OPTION)
        experiment = experiment.changed("optimizer", optimizer)
        for name, value in (
            ("schedule", experiment.schedule.shortened(_QAT_FEWER_EPOCHS)), ("qat", QAT()),
            ("validate_every", max(1, experiment.validate_every // _QAT_FEWER_EPOCHS)),
        ):
            experiment = experiment.changed(name, value, origin=QAT_OPTION)
        return replace(self, experiment=experiment)

    def suited(self, index: Index, classes: Classes, *, pretrained: bool = True) -> Config:
        """With what follows from the training data, and from whether the network starts from trained weights; what the
        command line sets stays."""
        wanted = self.experiment.from_data
        if wanted is None:
            return self
        entries, made = self.entries(), self
        free = {name for name, entry in entries.items() if entry.origin in (DEFAULT, FILE)}
        found = wanted.choices(index, self.build_model(classes), self.settings(), fixed=entries.keys() - free,
                               pretrained=pretrained)
        choices = [choice for choice in found if choice.name in free]
        for choice in choices:
            group, _, rest = choice.name.partition(".")
            if group == "model":
                entry = made.model_settings[rest]._replace(value=choice.value, origin=DATA)
                made = replace(made, model_settings=made.model_settings | {rest: entry})
            else:
                made = replace(made, experiment=override(made.experiment, choice.name, choice.value, origin=DATA))
        return replace(made, choices=tuple(choices))

    def for_teacher(self, teacher: str, checkpoint: str | None) -> Config:
        """As `--teacher` changes it: distillation, with the weights of the file where it has some."""
        known = self.experiment.distill
        distill = Distill(teacher, checkpoint) if known is None else known.changed(
            "teacher", teacher, origin=TEACHER_OPTION).changed("checkpoint", checkpoint, origin=TEACHER_OPTION)
        origin = TEACHER_OPTION if known is None else None
        return replace(self, experiment=self.experiment.changed("distill", distill, origin=origin))

    def as_trained(self, settings: Mapping[str, Value]) -> Config:
        """With the model settings that a checkpoint was trained with, so that its network comes out the same."""
        trained = {name.removeprefix("model."): value for name, value in settings.items() if name.startswith("model.")}
        if trained.keys() != self.model_settings.keys():
            raise ValueError(f"{self.path} is not the config of this checkpoint: its model takes "
                             f"{', '.join(self.model_settings) or 'no settings'}, the checkpoint was trained with "
                             f"{', '.join(trained) or 'none'}; a run folder holds a copy of its config")
        return replace(self, model_settings={name: entry._replace(value=trained[name], origin=CHECKPOINT)
                                             for name, entry in self.model_settings.items()})

    def describe(self) -> str:
        """Every resolved value, one a line, and who set it."""
        experiment = self.experiment
        used = len(experiment.classes.used)
        things = {
            "task": type(experiment.task).__name__,
            "model": _name_of(experiment.model),
            "data": experiment.data.folder,
            "augment": _name_of(experiment.augment),
            "objective": _name_of(experiment.objective),
            "classes": f"{used} used of {len(experiment.classes)} slots, unless the data lists others",
        }
        rows = [(name, text, experiment.origin(name)) for name, text in things.items()]
        rows += [(name, as_text(entry.value), entry.origin) for name, entry in self.entries().items()]
        names, values = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        return "\n".join(f"{name:{names}}  {value:{values}}  {origin}" for name, value, origin in rows)


def load(
    path: Path, overrides: Sequence[str] = (), *, sample: bool = False, qat: bool = False, teacher: Sequence[str] = (),
) -> Config:
    """Reads a config file, or the one of this name that comes with detseg, and applies `--sample`, `--qat`, `--teacher`
    (one text or two: a run, or a config and its checkpoint) and the texts `name=value` of `--set`, in this order.

    ValueError says in a line or two what is wrong with the file or a text, FileNotFoundError that there is no file.
    """
    path = find_config(path)
    module, text = _run_file(path)
    experiment = vars(module).get("experiment")
    if type(experiment) is not Experiment:
        what = "leaves no `experiment` behind" if experiment is None else f"its `experiment` is {experiment!r}"
        raise ValueError(f"{path}: {what}; a config ends with `experiment = Experiment(...)`")
    try:
        config = Config(path, text, experiment, _model_settings(experiment.model, module))
    except (TypeError, NameError) as error:
        raise ValueError(f"{path}: {error}") from error
    if sample:
        config = _with_sample(config)
    if qat:
        config = config.for_qat()
    if len(teacher) > 2:
        raise ValueError(f"--teacher takes a run, or a config and its checkpoint, got {len(teacher)}: "
                         f"{', '.join(teacher)}")
    if teacher:
        config = config.for_teacher(teacher[0], teacher[1] if len(teacher) == 2 else None)
    for text in overrides:
        config = _with_override(config, text)
    return config


def resolve_classes(experiment_classes: Classes, data_classes: Classes) -> Classes:
    """The label space of a run: the experiment's where the used classes agree (COCO keeps the 90 slots of published
    networks), otherwise the data's."""
    return data_classes if experiment_classes.difference(data_classes) else experiment_classes


def _run_file(path: Path) -> tuple[types.ModuleType, str]:
    content = path.read_bytes()
    try:
        module = run_config(path, content)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise ValueError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return module, content.decode("utf-8")


def _model_settings(model: Callable[..., Predictor], module: types.ModuleType) -> dict[str, Entry]:
    described = inspect.signature(model).parameters.values()
    keywords = {known.name: known.default for known in described if known.kind is known.KEYWORD_ONLY}
    missing = [name for name, default in keywords.items() if default is inspect.Parameter.empty]
    if missing:
        raise TypeError(f"the model's keyword parameters need defaults, these have none: {', '.join(missing)}")
    return parameters(model, keywords=keywords, origin=FILE if model.__module__ == module.__name__ else DEFAULT)


def _with_sample(config: Config) -> Config:
    experiment, model_settings = config.experiment, dict(config.model_settings)
    changes = experiment.sample
    for changed in fields(changes):
        if changes.origin(changed.name) == DEFAULT:
            continue
        value = getattr(changes, changed.name)
        if changed.name != "model":
            experiment = experiment.changed(changed.name, value, origin=SAMPLE)
            continue
        for name, argument in value.items():
            if name not in model_settings:
                raise unknown_name(f"model.{name}", (f"model.{known}" for known in model_settings))
            model_settings[name] = model_settings[name]._replace(value=argument, origin=SAMPLE)
    return replace(config, experiment=experiment, model_settings=model_settings)


def _with_override(config: Config, text: str) -> Config:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f"--set takes name=value, got {text!r}")
    entries = config.entries()
    if name in switchable(config.experiment) and value.lower() == "none":
        return replace(config, experiment=override(config.experiment, name, None))
    choices = {known for known, entry in entries.items() if entry.kinds}
    if name in entries and name not in choices:
        raise ValueError(f"{name} is text or a list; --set changes numbers, true/false, none and named choices: "
                         f"change it in {config.path}")
    if name not in choices:
        raise unknown_name(name, choices)
    new = parse_value(name, value, kinds=entries[name].kinds)
    group, _, rest = name.partition(".")
    if group == "model":
        entry = config.model_settings[rest]._replace(value=new, origin=COMMAND_LINE)
        return replace(config, model_settings=config.model_settings | {rest: entry})
    try:
        return replace(config, experiment=override(config.experiment, name, new))
    except ValueError as error:
        raise ValueError(f"--set {text}: {error}") from error


def _name_of(function: Callable[..., object] | None) -> str:
    return "none" if function is None else getattr(function, "__name__", repr(function))
