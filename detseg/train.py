"""Training: one function over Lightning Fabric. Everything a run does, in the order in which it does it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as distributed
from lightning.fabric import Fabric
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detseg.api import load_model
from detseg.checkpoint import (
    Checkpoint,
    check_classes,
    config_differences,
    fingerprint_differences,
    load,
    not_compared,
    restore_model,
    save,
)
from detseg.config import FREE_SETTINGS, Config, Experiment, Index, resolve_classes
from detseg.data.faults import Fault, check_faults
from detseg.data.loading import steps_per_epoch, training_batches
from detseg.data.location import Location, Splits, read_splits
from detseg.data.screening import screened, without
from detseg.distillation import Distillation, Teacher
from detseg.evaluate import draw_examples, evaluate, suitable_batch
from detseg.export.artefact import is_artefact
from detseg.fingerprint import fingerprint
from detseg.interfaces import Dataset, Metric
from detseg.launch import launch
from detseg.model import Predictor
from detseg.predict import Network
from detseg.quantization.packages import PACKAGES, check_packages
from detseg.quantization.training import QuantisationAwareTraining
from detseg.report.console import Reporter, plain_console, render, shown
from detseg.report.pictures import contact_sheet, write_picture
from detseg.run_folder import LogWriter, RunFolder, existing_run, new_run, versions
from detseg.run_report import write_report
from detseg.settings import DEFAULT, as_text
from detseg.structures import USUAL_THRESHOLD, Classes
from detseg.training_step import TrainingStep, no_running_statistics

_FEW_IMAGES = 4
"""BatchNorm's statistics of fewer images are noisy."""


_BEFORE = "before the first step"

_SKIPPED_SAID = 10
"""Places that are said; skipped.txt has all."""


class Result(NamedTuple):
    """What a run leaves: its folder, the numbers of its last validation, the step and value of the best one."""

    run: RunFolder
    numbers: dict[str, float]
    best: dict[str, float]


def fit(
    config: Config, data: Location | Path | None, *, out: Path | None = None, resume: bool = False,
    config_changed: bool = False, skip_broken: bool = False, initialise: Callable[[Predictor], str] | None = None,
) -> Result:
    """Trains the experiment on some data, and leaves a run folder.

    Each step is a function of the checkpoint before it: random numbers come from (seed, step), the learning rate from
    the step, batches from (seed, step). So a run that was killed and resumed ends with the weights of one that was not,
    bit for bit on a CPU.

    Args:
        config: the experiment.
        data: where they lie; None takes the config's folder, or where the data of the run lie that is resumed.
        out: the run folder; None takes the next of runs/<config>, or the newest to resume.
        resume: go on with the run in it.
        config_changed: resume although the config is another one, of which the run keeps a record; and take a teacher
            although it was trained with another config.
        skip_broken: leave out what is broken in place of refusing it, before the first step and as it is met; the run's
            skipped.txt names it.
        initialise: loads published weights into the new model and says what it did; a resumed run has its own.

    ValueError or OSError for what the user can change, FloatingPointError for a run that diverged. KeyboardInterrupt
    passes through after the state is saved; SIGTERM, by which a cluster takes its machine back, is taken for one.
    """
    # ---- what takes part
    experiment = config.experiment
    _check_qat(experiment, starts_anew=not resume and initialise is None)
    fabric = launch(experiment.precision)
    console = plain_console(quiet=not fabric.is_global_zero)
    # The run folder first: that a name is taken should not cost the time of reading COCO.
    run = existing_run(out, config.path.stem) if resume else new_run(out, config.path.stem)
    checkpoint = load(run.last) if resume else None
    location = _location(config, data, run if resume else None)
    splits, classes = _read_data(config, location, run if resume else None, skip_broken=skip_broken)
    config = _suited(config, splits.train, classes, run if resume else None, weights=initialise is not None)
    experiment = config.experiment
    torch.manual_seed(experiment.seed)
    model = config.build_model(classes).to(memory_format=torch.channels_last)
    meaning = fingerprint(model, experiment.task)
    start = initialise(model) if initialise is not None and checkpoint is None else None
    if start is not None:
        console.print(start, soft_wrap=True)
    model = _prepared(model, experiment, fabric=fabric)
    train_set = experiment.training_set(splits.train, model.resize)
    val_set = experiment.data.dataset(splits.val, model.resize, augment=None, seed=experiment.seed)
    plan = _Plan.of(experiment, splits.train, model=model, fabric=fabric)
    _check_batch_norm(model, train_set, plan, experiment=experiment, fabric=fabric)
    qat = _quantisation_aware(model, train_set, plan, experiment=experiment, fabric=fabric, fresh=checkpoint is None)
    distillation = _distillation(model, experiment, fabric=fabric, config_changed=config_changed)
    step = _training_step(model, experiment, fabric=fabric, qat=qat, distillation=distillation)
    state = _State(config, run, step, plan, meaning, partial(experiment.data.metric, splits.val), qat, distillation)

    # ---- fresh start, or resume
    changes = "" if checkpoint is None else state.resume(checkpoint, config_changed=config_changed)
    fabric.barrier()
    if fabric.is_global_zero and checkpoint is not None:
        run.cut_log(step=state.step, validated=state.validated)
        run.record_change(config, changes, step=state.step, teacher=state.teacher)
    elif fabric.is_global_zero:
        run.create(config, location, kept=splits.kept, teacher=state.teacher, start=start)
        state.save(run.last)  # from here on it can be resumed; and a folder that refuses files is found out now
    fabric.barrier()

    # ---- training
    with ExitStack() as stack:
        stack.enter_context(_sigterm_like_ctrl_c())
        report = stack.enter_context(Reporter(console, plan.total_steps, first=state.step, title="step", unit="images"))
        log = stack.enter_context(LogWriter(run, first_step=state.step, enabled=fabric.is_global_zero))
        stack.enter_context(_leaving_a_run(state, report))
        for line in _introduction(state, checkpoint, splits):
            report.say(line)
        skipped = _Skipped(state, report)
        skipped.before(splits)
        batches = training_batches(
            train_set, experiment.task, batch_size=plan.rank_batch, seed=experiment.seed, fill=model.resize.fill,
            first_step=state.step, last_step=plan.total_steps, workers=plan.workers, rank=fabric.global_rank,
            world_size=fabric.world_size, pin_memory=fabric.device.type == "cuda",
            skipped=skipped if skip_broken else None, repeats=plan.repeats)
        while True:
            if state.validation_is_due():
                _validate(state, val_set, report=report, log=log)
            if state.step == plan.total_steps:
                break
            started = time.monotonic()
            with _reading():
                batch = next(batches)
            with _uninterrupted():
                figures = step(batch, number=state.step, total_steps=plan.total_steps)
                state.step += 1
                _report(state, figures, seconds=time.monotonic() - started, report=report, log=log)
                state.save_if_due()

    # ---- what is left
    if fabric.is_global_zero:
        _draw(state, val_set)
    console.print(f"validation after {state.validated} steps", render(state.metric.table(state.numbers)), sep="\n")
    for what, path in {"best": run.best, "last": run.last, "predictions": run.picture}.items():
        console.print(f"{what}: {path}", soft_wrap=True)
    _write_report(state, console)
    return Result(run, state.numbers, state.best_so_far)


class _Plan(NamedTuple):
    """How the steps of a run are laid out."""

    rank_batch: int
    """Images of a step in each process."""
    epoch_steps: int
    total_steps: int
    eval_batch: int
    workers: int
    repeats: NDArray[np.float64] | None
    """How often each image comes, if not once an epoch."""

    @classmethod
    def of(cls, experiment: Experiment, index: Index, *, model: Predictor, fabric: Fabric) -> _Plan:
        """ValueError where batches do not come out even, or the warm-up would be longer than the run."""
        world_size = fabric.world_size
        rank_batch, left_over = divmod(experiment.batch_size, world_size)
        if left_over or rank_batch % experiment.accumulate:
            raise ValueError(
                f"batch_size {experiment.batch_size} cannot be split over {world_size} processes in parts of "
                f"{experiment.accumulate}; choose a multiple of {world_size * experiment.accumulate}")
        epoch_steps = steps_per_epoch(len(index), batch_size=rank_batch, world_size=world_size)
        total_steps = experiment.schedule.epochs * epoch_steps
        experiment.schedule.factor(0, total_steps)
        # Half the cores where they also compute, at most 8 for each process.
        suitable = int(max(1, min(8, (os.cpu_count() or 1) // (2 * world_size))))
        return cls(rank_batch, epoch_steps, total_steps,
                   experiment.eval_batch_size or suitable_batch(
                       model.resize.size, most=rank_batch // experiment.accumulate),
                   suitable if experiment.workers is None else experiment.workers,
                   index.repeats(experiment.repeat_rare) if experiment.repeat_rare else None)


    def images_of_batch_norm(self, experiment: Experiment, fabric: Fabric) -> int:
        """How many a BatchNorm layer sees at a time."""
        together = fabric.world_size if experiment.sync_batch_norm else 1
        return self.rank_batch // experiment.accumulate * together


@dataclass
class _State:
    """A run between two steps."""

    config: Config
    run: RunFolder
    training: TrainingStep
    plan: _Plan
    meaning: dict[str, str]
    """The fingerprint."""
    new_metric: Callable[[], Metric[Any]]
    qat: QuantisationAwareTraining | None
    distillation: Distillation | None
    metric: Metric[Any] = field(init=False)
    """That of the last validation."""
    step: int = 0
    validated: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
    best_so_far: dict[str, float] = field(default_factory=dict)
    standing: str = ""
    """The last validation in words."""
    seconds_per_step: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.metric = self.new_metric()

    @property
    def evaluated(self) -> Network:
        """The network to evaluate: as 8-bit integers compute it, where it is trained for these."""
        return self.training.evaluated if self.qat is None else self.qat.evaluated(self.training.evaluated)

    @property
    def teacher(self) -> dict[str, str] | None:
        """What it is."""
        return None if self.distillation is None else self.distillation.teacher.identity

    def save(self, path: Path) -> None:
        """Writes what has to be kept; of several processes the first does."""
        self.saved_at, training = time.monotonic(), self.training
        if training.fabric.is_global_zero:
            save(path, Checkpoint(
                step=self.step, total_steps=self.plan.total_steps, model=training.model.state_dict(),
                ema=None if training.averaged is None else training.averaged.state_dict(),
                optimizer=training.optimizer.state_dict(), validated=self.validated, numbers=self.numbers,
                best=self.best_so_far, classes=training.model.classes, settings=self.config.settings(),
                versions=versions(*(() if self.qat is None else PACKAGES)), config_text=self.config.text,
                fingerprint=self.meaning, ranges=None if self.qat is None else self.qat.ranges(),
                teacher=self.teacher, adapters=None if self.distillation is None else self.distillation.adapters()))

    def resume(self, checkpoint: Checkpoint, *, config_changed: bool) -> str:
        """Goes on from there, and says what has changed since. ValueError where that is the network or the classes, or
        anything that is not insisted on."""
        training, what = self.training, str(self.run.last)
        check_classes(training.model.classes, checkpoint.classes, what=what)
        changes = _changes(checkpoint, self)
        if changes and not config_changed:
            raise ValueError(f"{self.run.path} was started with another config or other settings; resume with the same "
                             "config, --sample and --set, start a new run with another --out, or insist with "
                             f"--config-changed:\n{changes}")
        restore_model(training.model, checkpoint.model, what=what)
        if training.averaged is not None and checkpoint.ema is not None:
            restore_model(training.averaged, checkpoint.ema, what=what)
        training.optimizer.load_state_dict(checkpoint.optimizer)
        if self.qat is not None and checkpoint.ranges is not None:
            self.qat.load_ranges(checkpoint.ranges)
        if self.distillation is not None and checkpoint.adapters is not None:
            self.distillation.load_adapters(checkpoint.adapters, what=what)
        self.step, self.validated = checkpoint.step, checkpoint.validated
        self.numbers, self.best_so_far = checkpoint.numbers, checkpoint.best
        return changes

    def validation_is_due(self) -> bool:
        """Every so many epochs, and at the end; unless it was done at this step."""
        interval = self.plan.epoch_steps * self.config.experiment.validate_every
        due = self.step == self.plan.total_steps or (self.step > 0 and self.step % interval == 0)
        return due and self.validated < self.step

    def save_if_due(self) -> None:
        """After every epoch, and every few minutes."""
        kept, epoch_steps = self.config.experiment.keep_every, self.plan.epoch_steps
        if kept is not None and self.step % (kept * epoch_steps) == 0:
            self.save(self.run.kept_after(self.step))
        waited = time.monotonic() - self.saved_at >= 60 * self.config.experiment.save_minutes
        if waited or self.step % epoch_steps == 0:
            self.save(self.run.last)


def _location(config: Config, data: Location | Path | None, resumed: RunFolder | None) -> Location:
    """Where the data lie: as is said, as the resumed run knows, or as the config says."""
    if isinstance(data, Location):
        return data
    if data is not None:
        return Location(data)
    known = None if resumed is None else resumed.location
    return known or Location(Path(config.experiment.data.folder))


def _read_data(
    config: Config, location: Location, resumed: RunFolder | None, *, skip_broken: bool
) -> tuple[Splits[Index], Classes]:
    """Both splits with labels in the label space of the run, and that. Without what is broken, which is refused unless
    it is to be skipped."""
    splits = read_splits(config.experiment.data.read, location, kept=None if resumed is None else resumed.kept_split)
    train, val = splits.train, splits.val
    if resumed is None:
        train, why_nothing = screened(train, whole=False)
    else:  # the run's own images; if another has broken since, the order of the others stays
        train, why_nothing = without(train, resumed.skipped_places(_BEFORE)), ""
    val, _ = screened(val, whole=skip_broken)
    if not skip_broken:
        check_faults([*train.faults, *val.faults], f"the data in {location}")
    for index, what in ((train, "train on"), (val, "validate on")):
        if not len(index):
            check_faults(index.faults, f"no image is left to {what} in {location}")
    if why_nothing:
        raise ValueError(f"the training data in {location} teach nothing: {why_nothing}")
    difference = train.classes.difference(val.classes)
    if difference:
        raise ValueError(f"in {location}, training and validation list different classes:\n{difference}")
    classes = resolve_classes(config.experiment.classes, train.classes)
    return splits._replace(train=train.relabel(classes), val=val.relabel(classes)), classes


def _suited(
    config: Config, index: Index, classes: Classes, resumed: RunFolder | None, *, weights: bool
) -> Config:
    """With what follows from the training data, and from whether the network starts, or the resumed run started, from
    trained weights. ValueError where layers would keep random values."""
    pretrained = weights if resumed is None else resumed.described()["start"] is not None
    config = config.suited(index, classes, pretrained=pretrained)
    stride = config.experiment.freeze.stride
    if stride and not pretrained:
        raise ValueError(f"freeze.stride={stride} keeps the backbone's first layers as they are, and nothing has "
                         "trained them: name weights with --weights, or leave it out")
    return config


def _check_batch_norm(
    model: Predictor, dataset: Dataset[Any], plan: _Plan, *, experiment: Experiment, fabric: Fabric
) -> None:
    """ValueError where a BatchNorm layer would see a single value, of which there is no variance."""
    if plan.images_of_batch_norm(experiment, fabric) > 1:
        return
    try:
        (batch,) = training_batches(dataset, experiment.task, batch_size=1, seed=experiment.seed,
                                    fill=model.resize.fill, last_step=1, workers=0, skipped=lambda _: None)
    except (OSError, ValueError):  # training says it with its place
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), no_running_statistics(model):
            model.train()(batch.images)
    except ValueError as problem:
        raise ValueError(
            f"a batch of one image (batch_size {experiment.batch_size} in {experiment.accumulate} part(s) on "
            f"{fabric.world_size} process(es)) leaves a BatchNorm layer of this network a single value, of which there "
            "is no variance; take --set batch_size of at least "
            f"{2 * experiment.accumulate * fabric.world_size}, or a smaller accumulate") from problem


def _prepared(model: Predictor, experiment: Experiment, *, fabric: Fabric) -> Predictor:
    """What happens to a network before it is trained or resumed."""
    if experiment.prepare is not None:
        model = experiment.prepare(model)
    if experiment.sync_batch_norm and fabric.world_size > 1:
        if fabric.device.type != "cuda":
            raise ValueError("sync_batch_norm works on GPUs only; leave it out, or let a process have more images")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model


def _check_qat(experiment: Experiment, *, starts_anew: bool) -> None:
    """ValueError where a run with `qat` cannot be one."""
    if experiment.qat is None:
        return
    check_packages(PACKAGES, extra="int8")
    if starts_anew:
        raise ValueError("qat starts from a trained network; train without it first, and name what came of it with "
                         "--weights RUN/best.pt")


def _quantisation_aware(
    model: Predictor, dataset: Dataset[Any], plan: _Plan, *, experiment: Experiment, fabric: Fabric, fresh: bool
) -> QuantisationAwareTraining | None:
    """What a run with `qat` has; a fresh one takes its first ranges from the run's first steps, every process from all
    their images."""
    if experiment.qat is None:
        return None

    def images(number: int) -> Iterator[Tensor]:
        batches = training_batches(
            dataset, experiment.task, batch_size=min(experiment.batch_size, len(dataset)), seed=experiment.seed,
            fill=model.resize.fill, last_step=number, workers=0, skipped=lambda _: None)  # training says it
        return (batch.images for batch in batches)

    qat = QuantisationAwareTraining(model.to(fabric.device), experiment.qat, images=next(images(1)))
    if fresh:
        qat.calibrate(images(experiment.qat.calibration_batches), together=plan.rank_batch // experiment.accumulate)
    return qat


def _distillation(
    model: Predictor, experiment: Experiment, *, fabric: Fabric, config_changed: bool
) -> Distillation | None:
    """What a run with `distill` has; every process has a teacher of its own."""
    settings = experiment.distill
    if settings is None:
        return None
    if is_artefact(Path(settings.teacher)):
        raise ValueError(f"{settings.teacher} is an exported file, which cannot teach; name the run it was made of")
    source = load_model(
        Path(settings.teacher), None if settings.checkpoint is None else Path(settings.checkpoint),
        config_changed=config_changed).source
    assert source is not None, "only an exported file has none"
    teacher = Teacher(source.predictor, source.task, name=source.name, meaning=source.fingerprint)
    return Distillation(model.to(fabric.device), experiment.task, settings=settings, teacher=teacher)


def _training_step(
    model: Predictor, experiment: Experiment, *, fabric: Fabric, qat: QuantisationAwareTraining | None,
    distillation: Distillation | None,
) -> TrainingStep:
    """The step, through what stands around the network."""
    if distillation is not None:
        return TrainingStep(model, experiment, fabric=fabric, through=distillation.student,
                            beside=distillation.student.adapters, objective=distillation)
    return TrainingStep(model, experiment, fabric=fabric, through=None if qat is None else qat.network,
                        around=None if qat is None else qat.step)


def _changes(checkpoint: Checkpoint, state: _State) -> str:
    """Where going on would not be going on with the same run: settings, the config, the teacher, the number of steps; a
    line each.

    Files of older versions do not have all settings; what they lack is what a default leaves as it was.
    """
    entries, there = state.config.entries(), checkpoint.settings
    here = {name: entry.value for name, entry in entries.items()}
    groups = {"", *(name.rpartition(".")[0] for name in there)}
    added = {name for name in here.keys() - there.keys()
             if checkpoint.fingerprint is None
             or (entries[name].origin == DEFAULT and name.rpartition(".")[0] in groups)}
    names = (here.keys() | there.keys()) - FREE_SETTINGS - added
    lines = [f"  {name}: {there.get(name, 'absent')} in the run, {here.get(name, 'absent')} now"
             for name in sorted(names) if here.get(name) != there.get(name)]
    if checkpoint.total_steps != state.plan.total_steps and not lines:
        lines.append(f"  steps: {checkpoint.total_steps} in the run, with these data they are "
                     f"{state.plan.total_steps}; resume with the data it was started with")
    if checkpoint.teacher is not None and state.teacher is not None:
        lines += fingerprint_differences(checkpoint.teacher, state.teacher, of="teacher's ")
    return "\n".join([*lines, *config_differences(checkpoint, state.config.text, state.meaning)])


def _introduction(state: _State, checkpoint: Checkpoint | None, splits: Splits[Index]) -> Iterator[str]:
    """What a person should know before the first step."""
    plan, experiment, fabric, run = state.plan, state.config.experiment, state.training.fabric, state.run
    classes = state.training.model.classes
    train, val = splits.train, splits.val
    yield from splits.lines
    for what, index in (("training", train), ("validation", val)):
        yield from (f"note on the {what} data: {note}" for note in index.notes)
    for choice in state.config.choices:
        yield f"from the data: {choice.name} = {as_text(choice.value)}: {choice.reason}"
    if checkpoint is not None and checkpoint.fingerprint is None:
        yield not_compared(run.last)
    seen = plan.images_of_batch_norm(experiment, fabric)
    if seen < _FEW_IMAGES and any(isinstance(module, _BatchNorm) for module in state.training.model.modules()):
        yield (f"note: BatchNorm sees {seen} image{'s' * (seen > 1)} at a time, which makes its statistics noisy; "
               "raise batch_size, lower accumulate, or with several GPUs --set sync_batch_norm=true")
    if (qat := experiment.qat) is not None:
        yield (f"qat: epochs {experiment.schedule.epochs}, learning rate {experiment.optimizer.lr:g}; the ranges of "
               f"activations stay from step {math.ceil(qat.freeze_observers * plan.total_steps)} on, BatchNorm's "
               f"statistics from step {math.ceil(qat.freeze_batch_norm * plan.total_steps)} on; validation tells the "
               "score of 8-bit integers")
    if state.distillation is not None:
        yield state.distillation.describe()
    yield (f"{len(train)} images to train on, {len(val)} to validate on, {len(classes.used)} classes; "
           f"{plan.total_steps} steps ({plan.epoch_steps} an epoch) on {fabric.world_size} x {fabric.device.type}, in "
           f"{run.path}" + (f", from step {state.step} on" if state.step else ""))


def _validate(state: _State, dataset: Dataset[Any], *, report: Reporter, log: LogWriter) -> None:
    """Measures the network on the validation data, and keeps it if it is the best so far."""
    experiment, fabric = state.config.experiment, state.training.fabric
    _share_buffers(state.training.evaluated)
    started, metric = time.monotonic(), state.new_metric()
    with _reading():
        found = evaluate(
            state.evaluated, experiment.task, dataset, metric=metric, batch_size=state.plan.eval_batch,
            workers=state.plan.workers,
            progress=lambda done: report.busy(f"validating image {done * fabric.world_size}"))
    with _uninterrupted():
        state.validated, state.numbers, state.metric, best = state.step, found.numbers, metric, state.best_so_far
        main = found.numbers[metric.main]
        if not best or main > best["value"] or math.isnan(best["value"]):
            state.best_so_far = {"step": state.step, "value": main}
            state.save(state.run.best)
        epoch = state.step / state.plan.epoch_steps
        log.write("val", step=state.step, epoch=epoch, numbers=found.numbers,
                  others={"seconds": time.monotonic() - started})
        state.standing = f"{metric.main} {shown(main)} (best {shown(state.best_so_far['value'])})"
        report.say(f"epoch {epoch:g}: {state.standing}")
        state.save(state.run.last)


def _report(
    state: _State, figures: dict[str, float], *, seconds: float, report: Reporter, log: LogWriter
) -> None:
    """Says and logs how the step went that was just done."""
    experiment = state.config.experiment
    state.seconds_per_step = 0.9 * state.seconds_per_step + 0.1 * seconds if state.seconds_per_step else seconds
    speed = experiment.batch_size / state.seconds_per_step
    report.advance(state.step, speed=speed, status=f"loss {figures['loss']:.3f}  {state.standing}")
    if state.step % experiment.log_every == 0 or state.step == state.plan.total_steps:
        log.write("train", step=state.step, epoch=state.step / state.plan.epoch_steps,
                  numbers={**figures, "images_per_second": speed})


def _draw(state: _State, dataset: Dataset[Any]) -> None:
    """Leaves a picture of what the network finds."""
    examples = draw_examples(state.evaluated, state.config.experiment.task, dataset, number=12,
                             threshold=USUAL_THRESHOLD)
    write_picture(state.run.picture, contact_sheet(examples, columns=4))


def _write_report(state: _State, console: Console) -> None:
    """Leaves the page of the run, if it is wanted; what stands in the way of it does not make the run a failure."""
    if not state.config.experiment.report:
        return
    fabric = state.training.fabric
    fabric.barrier()  # the first process has written the checkpoint
    try:
        path = write_report(state.run.path, device=fabric.device, is_rank_zero=fabric.is_global_zero)
    except (OSError, ValueError) as problem:
        console.print(f"no report: {problem}", soft_wrap=True)
    else:
        console.print(f"report: {path}", soft_wrap=True)


def _share_buffers(model: nn.Module) -> None:
    """Gives every process the normalisation statistics of the first: each saw its own images."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


class _Skipped:
    """Names what is left out, in the run's skipped.txt and to whoever watches."""

    def __init__(self, state: _State, report: Reporter) -> None:
        self.state, self.report = state, report

    def before(self, splits: Splits[Index]) -> None:
        """What was found before the first step."""
        if self.state.training.fabric.is_global_zero:
            self._add(_BEFORE, [*splits.train.faults, *splits.val.faults])

    def __call__(self, problem: str) -> None:
        """An image that was met while training."""
        self._add(f"step {self.state.step + 1}", [Fault("an image", problem)])

    def _add(self, when: str, faults: Sequence[Fault]) -> None:
        if new := self.state.run.add_skipped(when, faults):
            named = [str(fault) for fault in new[:_SKIPPED_SAID]]
            more = [f"... and {len(new) - len(named)} more"] if len(new) > len(named) else []
            for line in [*named, *more]:
                self.report.say(f"left out: {line}")
            self.report.say(f"{self.state.run.skipped} names all that is left out")


class _UnreadableError(OSError):
    """An image, record or label map that cannot be read, met in the middle of a run."""


@contextmanager
def _reading() -> Iterator[None]:
    """Marks errors of the data inside as such."""
    try:
        yield
    except (OSError, ValueError) as problem:
        raise _UnreadableError(str(problem)) from problem


@contextmanager
def _leaving_a_run(state: _State, report: Reporter) -> Iterator[None]:
    """Whatever ends the run inside, its last whole step is saved, and it is said how to go on."""
    run = state.run
    try:
        yield
    except KeyboardInterrupt:
        state.save(run.last)
        report.say(f"stopped after step {state.step} of {state.plan.total_steps}, which is saved. Go on with the same "
                   f"command and --out {run.path} --resume")
        raise
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}. {run.last} is from before; train with a lower rate (--set "
                                 "optimizer.lr=...) or with --set clip_norm=10") from None
    except _UnreadableError as problem:
        state.save(run.last)
        raise OSError(f"{problem}\nstopped after step {state.step} of {state.plan.total_steps}, which is saved. Go on "
                      f"with the same command and --out {run.path} --resume when that is mended, or leave it out with "
                      f"--out {run.path} --resume --skip-broken") from problem


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C inside waits for the end, so that a step is done as a whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does, and waits where Ctrl-C has to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _, __: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
