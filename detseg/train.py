"""Training: one function over Lightning Fabric. Everything a run does, in the order in which it does it."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as distributed
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.tensorboard import SummaryWriter

from detseg.checkpoint import Checkpoint, check_classes, load, restore_model, save
from detseg.config import Config, Index, resolve_classes
from detseg.data.loading import steps_per_epoch, training_batches
from detseg.evaluate import draw_examples, evaluate
from detseg.interfaces import Batch, Classes
from detseg.memory import keep_freed_memory
from detseg.model import Predictor
from detseg.report.console import Reporter, shown
from detseg.report.pictures import contact_sheet, write_picture
from detseg.run_folder import RunFolder, existing_run, new_run, versions

_FREE = frozenset({"workers", "log_every", "save_minutes", "validate_every"})
"""Settings that may change on resume: no weight depends on them."""

_SMALLEST_SCORE_DRAWN = 0.4

_SPLITS: tuple[Literal["train"], Literal["val"]] = ("train", "val")


class Result(NamedTuple):
    """What a run leaves: its folder, the numbers of its last validation, the step and value of the best one."""

    run: RunFolder
    numbers: dict[str, float]
    best: dict[str, float]


def fit(
    config: Config,
    folder: Path,
    *,
    out: Path | None = None,
    resume: bool = False,
    initialise: Callable[[Predictor], str] | None = None,
) -> Result:
    """Trains the experiment on the data in `folder`, and leaves a run folder (`out`, or the next of runs/<config>).

    initialise: loads published weights into the new model and says what it did; a resumed run has its own. Each step is
    a function of the checkpoint before it: random numbers come from (seed, step), the learning rate from the step,
    batches from (seed, step). So a run that was killed and resumed ends with the weights of one that was not, bit for
    bit on a CPU.

    ValueError or OSError for what the user can change, FloatingPointError for a run that diverged. KeyboardInterrupt
    passes through after the state is saved.
    """
    experiment, task = config.experiment, config.experiment.task
    fabric = _launched(experiment.precision)
    rank, world_size, leads = fabric.global_rank, fabric.world_size, fabric.is_global_zero
    console = Console(quiet=not leads)

    # The run folder first: that a name is taken should not cost the time of reading COCO.
    run = existing_run(out, config.path.stem) if resume else new_run(out, config.path.stem)
    checkpoint = load(run.last) if resume else None

    train_index, val_index, classes = _read_data(config, folder)
    torch.manual_seed(experiment.seed)
    model = config.build_model(classes).to(memory_format=torch.channels_last)
    if initialise is not None and checkpoint is None:
        console.print(initialise(model), highlight=False, markup=False, soft_wrap=True)
    augment = None if experiment.augment is None else experiment.augment(model.resize)
    train_set = experiment.data.dataset(train_index, model.resize, augment=augment, seed=experiment.seed)
    val_set = experiment.data.dataset(val_index, model.resize, augment=None, seed=experiment.seed)

    rank_batch, left_over = divmod(experiment.batch_size, world_size)
    if left_over or rank_batch % experiment.accumulate:
        raise ValueError(f"batch_size {experiment.batch_size} cannot be split over {world_size} processes in parts of "
                         f"{experiment.accumulate}; choose a multiple of {world_size * experiment.accumulate}")
    epoch_steps = steps_per_epoch(len(train_set), batch_size=rank_batch, world_size=world_size)
    total = experiment.schedule.epochs * epoch_steps
    experiment.schedule.factor(0, total)  # a warm-up longer than the run is refused here, before anything is written

    averaged = None if experiment.ema is None else experiment.ema.build(model).to(fabric.device)
    network, optimizer = fabric.setup(model, experiment.optimizer.build(model))
    evaluated = model if averaged is None else cast(Predictor, averaged.module)

    step, validated, numbers, best = 0, 0, dict[str, float](), dict[str, float]()
    if checkpoint is not None:
        _check_same_run(checkpoint, config, classes=classes, total_steps=total, run=run)
        restore_model(model, checkpoint.model, what=str(run.last))
        if averaged is not None and checkpoint.ema is not None:
            restore_model(averaged, checkpoint.ema, what=str(run.last))
        optimizer.load_state_dict(checkpoint.optimizer)
        step, validated, numbers, best = checkpoint.step, checkpoint.validated, checkpoint.numbers, checkpoint.best

    def save_as(path: Path) -> None:
        if leads:
            save(path, Checkpoint(
                step=step, total_steps=total, model=model.state_dict(),
                ema=None if averaged is None else averaged.state_dict(), optimizer=optimizer.state_dict(),
                validated=validated, numbers=numbers, best=best, classes=classes, settings=config.settings(),
                versions=versions()))

    fabric.barrier()
    if leads and checkpoint is None:
        run.create(config)
    elif leads:
        run.cut_log(step=step, validated=validated)
    if checkpoint is None:
        save_as(run.last)  # from here on the run can be resumed; and a folder that refuses files is found out now

    workers = _suitable_workers(fabric) if experiment.workers is None else experiment.workers
    batches = training_batches(
        train_set, task, batch_size=rank_batch, seed=experiment.seed, first_step=step, last_step=total, workers=workers,
        rank=rank, world_size=world_size, pin_memory=fabric.device.type == "cuda")
    seconds_per_step, saved_at, standing = 0.0, time.monotonic(), ""
    metric = task.metric(val_set)

    with ExitStack() as stack:
        report = stack.enter_context(Reporter(console, total, first=step, title="step", unit="images"))
        board = SummaryWriter(str(run.tensorboard), purge_step=step + 1) if leads else None
        if board is not None:
            stack.callback(board.close)
        for what, index in (("training", train_index), ("validation", val_index)):
            for note in index.notes:
                report.say(f"note on the {what} data: {note}")
        report.say(f"{len(train_set)} images to train on, {len(val_set)} to validate on, {len(classes.used)} classes; "
                   f"{total} steps ({epoch_steps} an epoch) on {world_size} x {fabric.device.type}, in {run.path}"
                   + (f", from step {step} on" if step else ""))
        try:
            while True:
                due = step == total or (step > 0 and step % (epoch_steps * experiment.validate_every) == 0)
                if due and validated < step:
                    _share_buffers(evaluated)
                    started, metric = time.monotonic(), task.metric(val_set)
                    found = evaluate(evaluated, task, val_set, batch_size=rank_batch, workers=workers, metric=metric,
                                     progress=lambda done: report.busy(f"validating image {done * world_size}"))
                    with _whole():
                        validated, numbers = step, found.numbers
                        main = numbers[metric.main]
                        if not best or main > best["value"] or math.isnan(best["value"]):
                            best = {"step": step, "value": main}
                            save_as(run.best)
                        if board is not None:
                            run.write_log({"kind": "val", "step": step, "epoch": step / epoch_steps, **numbers,
                                           "seconds": time.monotonic() - started})
                            for name, value in numbers.items():
                                board.add_scalar(f"val/{name}", value, step)
                        standing = f"{metric.main} {shown(main)} (best {shown(best['value'])})"
                        report.say(f"epoch {step / epoch_steps:g}: {standing}")
                        save_as(run.last)
                if step == total:
                    break

                started = time.monotonic()
                batch: Batch[Any] = fabric.to_device(next(batches))
                with _whole():
                    torch.manual_seed(int(np.random.SeedSequence((experiment.seed, step, rank)).generate_state(1)[0]))
                    lr = experiment.optimizer.lr * experiment.schedule.factor(step, total)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    optimizer.zero_grad()
                    losses = _backward(fabric, network, model, batch=batch, parts=experiment.accumulate)
                    losses["gradient_norm"] = float(fabric.clip_gradients(
                        network, optimizer, max_norm=experiment.clip_norm or math.inf, error_if_nonfinite=False))
                    if not all(map(math.isfinite, losses.values())):
                        raise _diverged(step, losses, lr=lr, run=run)
                    optimizer.step()
                    if averaged is not None:
                        averaged.update_parameters(model)
                    step += 1

                    took = time.monotonic() - started
                    seconds_per_step = 0.9 * seconds_per_step + 0.1 * took if seconds_per_step else took
                    speed = experiment.batch_size / seconds_per_step
                    report.advance(step, speed=speed, status=f"loss {losses['loss']:.3f}  {standing}")
                    if board is not None and (step % experiment.log_every == 0 or step == total):
                        run.write_log({"kind": "train", "step": step, "epoch": step / epoch_steps, "lr": lr, **losses,
                                       "images_per_second": speed})
                        for name, value in {**losses, "lr": lr, "images_per_second": speed}.items():
                            board.add_scalar(f"train/{name}", value, step)
                    if step % epoch_steps == 0 or time.monotonic() - saved_at >= 60 * experiment.save_minutes:
                        save_as(run.last)
                        saved_at = time.monotonic()
        except KeyboardInterrupt:
            save_as(run.last)
            report.say(f"stopped after step {step} of {total}, which is saved. Go on with the same command and "
                       f"--out {run.path} --resume")
            raise

    if leads:
        examples = draw_examples(evaluated, task, val_set, number=12, threshold=_SMALLEST_SCORE_DRAWN)
        write_picture(run.picture, contact_sheet(examples, columns=4))
    console.print(f"validation after {validated} steps", metric.table(numbers), sep="\n")
    for what, path in {"best": run.best, "last": run.last, "predictions": run.picture}.items():
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    return Result(run, numbers, best)


def _launched(precision: str) -> Fabric:
    """Fabric on every GPU of the machine, else on the CPU; under torchrun as torchrun says."""
    # Fabric's "auto" takes two processes that torchrun started on a CPU for two runs of one process each.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    keep_freed_memory()
    fabric = Fabric(accelerator="auto", devices=local or "auto", precision=precision,
                    num_nodes=int(os.environ["WORLD_SIZE"]) // local if local else 1)
    fabric.launch()
    return fabric


def _read_data(config: Config, folder: Path) -> tuple[Index, Index, Classes]:
    """Both splits with labels in the label space of the run, and that."""
    train, val = (config.experiment.data.read(folder, split) for split in _SPLITS)
    difference = train.classes.difference(val.classes)
    if difference:
        raise ValueError(f"in {folder}, training and validation list different classes:\n{difference}")
    classes = resolve_classes(config.experiment.classes, train.classes)
    return train.relabel(classes), val.relabel(classes), classes


def _check_same_run(
    checkpoint: Checkpoint, config: Config, *, classes: Classes, total_steps: int, run: RunFolder
) -> None:
    """ValueError where going on would not be going on with the same run."""
    here, there = config.settings(), checkpoint.settings
    names = [name for name in sorted(here.keys() | there.keys()) if name not in _FREE]
    lines = [f"  {name}: {there.get(name, 'absent')} in the run, {here.get(name, 'absent')} now"
             for name in names if here.get(name) != there.get(name)]
    if lines:
        listed = "\n".join(lines)
        raise ValueError(f"{run.path} was started with other settings; resume with the same config, --sample and "
                         f"--set, or start a new run with another --out:\n{listed}")
    check_classes(classes, checkpoint.classes, what=str(run.last))
    if checkpoint.total_steps != total_steps:
        raise ValueError(f"{run.path} was to have {checkpoint.total_steps} steps, with these data they would be "
                         f"{total_steps}: resume with the data it was started with")


def _backward(
    fabric: Fabric, network: nn.Module, model: Predictor, *, batch: Batch[Any], parts: int
) -> dict[str, float]:
    """Leaves the gradient of the whole step in the parameters, and gives its losses by name and in sum.

    The divisor is counted over all processes and parts, so how a step is split changes nothing but rounding (and
    BatchNorm, which sees the images of a part).
    """
    rows = len(batch.images) // parts
    collected = []
    for part in range(parts):
        def cut(tensor: Tensor, first: int = part * rows) -> Tensor:
            return tensor[first:first + rows]

        images, targets = tree_map_only(Tensor, cut, (batch.images, batch.targets))
        with fabric.no_backward_sync(network, enabled=part < parts - 1):
            raw = network(images.contiguous(memory_format=torch.channels_last))
            losses = model.head.loss(raw, targets)
            sums = torch.stack(list(losses.sums.values()))
            fabric.backward(sums.sum())
        collected.append(torch.cat([sums.detach(), losses.divisor.to(sums.dtype).reshape(1)]))
    *values, divisor = fabric.all_reduce(torch.stack(collected).sum(dim=0), reduce_op="sum").tolist()
    divisor = max(divisor, 1.0)
    # the processes' gradients were averaged, their sum is wanted
    scale = fabric.world_size / divisor
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(scale)
    named = {f"loss/{name}": value / divisor for name, value in zip(losses.sums, values, strict=True)}
    return {"loss": sum(named.values()), **named}


def _diverged(step: int, losses: dict[str, float], *, lr: float, run: RunFolder) -> FloatingPointError:
    parts = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    return FloatingPointError(f"training diverged at step {step}, learning rate {lr:g}: {parts}. {run.last} is from "
                              "before; train with a lower rate (--set optimizer.lr=...) or with --set clip_norm=10")


def _share_buffers(model: nn.Module) -> None:
    """Gives every process the normalisation statistics of the first: each saw its own images."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def _suitable_workers(fabric: Fabric) -> int:
    """Loading processes: half the cores where they also compute, at most 8 for each process."""
    return int(max(1, min(8, (os.cpu_count() or 1) // (2 * fabric.world_size))))


@contextmanager
def _whole() -> Iterator[None]:
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
