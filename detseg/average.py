"""One network out of several checkpoints of a run: the mean of their weights, BatchNorm's statistics measured anew.

Late checkpoints lie around a better place than any of them (Izmailov et al. 2018, stochastic weight averaging, arXiv
1803.05407); the statistics of a mean are not the mean of statistics, so training images pass through it once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from detseg.api import Model, load_model
from detseg.checkpoint import fingerprint_differences, load, restore_model, save
from detseg.config import Experiment
from detseg.data.loading import steps_per_epoch, training_batches
from detseg.data.location import read_training
from detseg.data.screening import screened
from detseg.model import Predictor
from detseg.run_folder import RunFolder


class Averaged(NamedTuple):
    """What came of it."""

    model: Model
    """As it was written."""
    images: int
    """That BatchNorm's statistics were measured on; 0 without BatchNorm."""


def chosen_checkpoints(run: RunFolder, *, last: int | None, steps: Sequence[int]) -> list[Path]:
    """The newest `last` of the checkpoints that a run has kept, or those of `steps`; all, where neither is said.
    ValueError where that are not two or more."""
    kept = run.kept
    if not kept:
        raise ValueError(f"{run.path} has kept no checkpoints of earlier steps; train with --set keep_every=EPOCHS")
    known = ", ".join(map(str, kept))
    missing = [step for step in steps if step not in kept]
    if missing:
        raise ValueError(f"{run.path} has kept no checkpoint of step {missing[0]}, but of {known}")
    if last is not None and last > len(kept):
        raise ValueError(f"{run.path} has kept {len(kept)} checkpoints, of the steps {known}; {last} were asked for")
    chosen = list(steps) or list(kept)[-(last or len(kept)):]
    if len(set(chosen)) < 2:
        raise ValueError(f"a mean takes two checkpoints or more; {run.path} has kept the steps {known}")
    return [kept[step] for step in sorted(set(chosen))]


def average(
    run: RunFolder, checkpoints: Sequence[Path], out: Path, *, images: int, say: Callable[[str], None] = lambda _: None
) -> Averaged:
    """Writes the mean of checkpoints of a run as another one.

    Args:
        run: whose they are; it says the config and the data.
        checkpoints: of the same network.
        out: the file to write, which replaces one that is there.
        images: training images, as they are augmented in the last epoch, for BatchNorm's statistics; all where there
            are fewer.
        say: hears what is going on.
    """
    first, *others = [load(path) for path in checkpoints]
    for path, other in zip(checkpoints[1:], others, strict=True):
        differences = fingerprint_differences(other.fingerprint or {}, first.fingerprint or {})
        if differences:
            raise ValueError("\n".join([f"{path} is another network than {checkpoints[0]}:", *differences]))
    model = load_model(run.path, checkpoints[-1])
    network, config = model.loaded, model.config
    assert isinstance(network, Predictor)
    assert config is not None
    restore_model(network, _mean([first.weights, *(other.weights for other in others)]), what="the mean")
    seen = 0
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        say(f"measuring BatchNorm's statistics on up to {images} training images")
        seen = _measure(network, _batches(run, network, config.experiment, images=images))
    save(out, replace(others[-1], model=network.state_dict(), ema=None, optimizer={}, validated=0, numbers={}, best={},
                      ranges=None))
    return Averaged(load_model(run.path, out), seen)


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """In double precision; of counters and tables the last."""
    return {name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
            if tensor.is_floating_point() else tensor for name, tensor in states[-1].items()}


def _batches(run: RunFolder, model: Predictor, experiment: Experiment, *, images: int) -> Iterator[Tensor]:
    """Training images of the last epoch, uint8 [B, 3, H, W]."""
    location = run.location
    if location is None:
        raise ValueError(f"{run.path} does not say where its data lie, and BatchNorm's statistics need training images")
    index, _ = screened(read_training(experiment.data.read, location, kept=run.kept_split), whole=False)
    dataset = experiment.training_set(index.relabel(model.classes), model.resize)
    batch_size = min(experiment.batch_size, len(dataset))
    epoch_steps = steps_per_epoch(len(dataset), batch_size=batch_size)
    first = (experiment.schedule.epochs - 1) * epoch_steps
    number = min(epoch_steps, max(1, images // batch_size))
    for batch in training_batches(
        dataset, experiment.task, batch_size=batch_size, seed=experiment.seed, fill=model.resize.fill,
        first_step=first, last_step=first + number, workers=0, skipped=lambda _: None,
    ):
        yield batch.images


def _measure(model: Predictor, batches: Iterator[Tensor]) -> int:
    """How many images passed through it."""
    seen = 0

    def counted() -> Iterator[Tensor]:
        nonlocal seen
        for images in batches:
            seen += len(images)
            yield images.contiguous(memory_format=torch.channels_last)

    update_bn(counted(), model)
    model.eval()
    return seen
