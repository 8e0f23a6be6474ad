"""One step of training, as `fit` takes it and `detseg benchmark` times it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only

from detseg.config import Experiment, Objective
from detseg.fine_tuning import freeze, learning_rates
from detseg.interfaces import Losses, TrainingBatch
from detseg.model import Predictor


class TrainingStep:
    """One step of `fit`: gradient, clipping, optimiser, average of the weights.

    Args:
        model: the network, prepared; it moves to the device of `fabric`.
        experiment: how it is trained.
        fabric: launched.
        lr: a fixed learning rate in place of the experiment's; benchmarks take 0, so that every step is alike.
        through: gives the raw outputs in place of `model`, whose parameters it uses, and `model` is a part of it.
        around: of a step's number and how many there are: what its gradient is taken in.
        beside: layers that learn too and are no part of `model`, but of `through`.
        objective: in place of the experiment's.
    """

    def __init__(
        self, model: Predictor, experiment: Experiment, *, fabric: Fabric, lr: float | None = None,
        through: nn.Module | None = None,
        around: Callable[[int, int], AbstractContextManager[object]] | None = None,
        beside: nn.Module | None = None, objective: Objective | None = None,
    ) -> None:
        self.model, self.experiment, self.fabric, self.lr = model, experiment, fabric, lr
        self.around, self.objective = around, experiment.objective if objective is None else objective
        self.forward = model if through is None else through
        self.frozen_norms = freeze(model, experiment.freeze)
        self.averaged: AveragedModel | None = None
        if experiment.ema is not None:
            self.averaged = experiment.ema.build(model).to(fabric.device)
        self.network: nn.Module
        self.optimizer: Optimizer
        learning = model if beside is None else nn.ModuleList([model, beside])
        optimizer = experiment.optimizer.build(learning, learning_rates(model, experiment.optimizer))
        self.network, self.optimizer = cast(Any, fabric.setup(self.forward, optimizer))

    @property
    def evaluated(self) -> Predictor:
        """The network to evaluate: the averaged one where there is one."""
        return self.model if self.averaged is None else cast(Predictor, self.averaged.module)

    def __call__(self, batch: TrainingBatch[Any], *, number: int, total_steps: int) -> dict[str, float]:
        """Takes step `number` (from 0) of `total_steps`, and gives its losses, learning rate and gradient norm.

        FloatingPointError where one is not finite, before the weights are touched.
        """
        experiment, fabric = self.experiment, self.fabric
        state = np.random.SeedSequence((experiment.seed, number, fabric.global_rank)).generate_state(1)
        torch.manual_seed(int(state[0]))
        lr = experiment.optimizer.lr * experiment.schedule.factor(number, total_steps) if self.lr is None else self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)  # older checkpoints have none
        self.optimizer.zero_grad()
        with nullcontext() if self.around is None else self.around(number, total_steps):
            for norm in self.frozen_norms:
                norm.eval()
            losses = self.gradient(fabric.to_device(batch))
        losses["gradient_norm"] = float(fabric.clip_gradients(
            cast(Any, self.network), cast(Any, self.optimizer), max_norm=experiment.clip_norm or math.inf,
            error_if_nonfinite=False))
        if not all(map(math.isfinite, losses.values())):
            parts = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            raise FloatingPointError(f"training diverged at step {number}, learning rate {lr:g}: {parts}")
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return losses | {"lr": lr}

    def gradient(self, batch: TrainingBatch[Any]) -> dict[str, float]:
        """Leaves the gradient of the whole step in the parameters, and gives its losses by name and in sum.

        Sums and counts are added up over all processes and parts, so how a step is split changes nothing but rounding
        (and BatchNorm, which sees the images of a part).
        """
        parts = _split(batch, self.experiment.accumulate)
        collected: list[Tensor] = []
        counts: Tensor | None = None
        for number, part in enumerate(parts):
            with self.fabric.no_backward_sync(cast(Any, self.network), enabled=number < len(parts) - 1):
                losses = self._losses(self.network, part)
                sums = torch.stack([term.sum for term in losses.values()])
                # With one count for all terms its place is behind the sum over parts, and costs nothing. With several,
                # their totals have to be known before the first gradient is taken.
                if not _share_a_count(losses):
                    if counts is None:
                        counts = self._total_counts(losses, parts[1:])
                    sums_to_learn = sums * self.fabric.world_size / counts.clamp(min=1.0)
                else:
                    sums_to_learn = sums
                self.fabric.backward(sums_to_learn.sum())
            collected.append(torch.cat([sums.detach(), _counts(losses)]))
        totals = self.fabric.all_reduce(torch.stack(collected).sum(dim=0), reduce_op="sum")
        values, normalizers = cast(Tensor, totals).chunk(2)
        if counts is None:
            # The processes' gradients were averaged, their sum is wanted.
            scale = self.fabric.world_size / max(float(normalizers[0]), 1.0)
            for parameter in self.forward.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        named = {f"loss/{name}": value / max(count, 1.0)
                 for name, value, count in zip(losses, values.tolist(), normalizers.tolist(), strict=True)}
        return {"loss": sum(named.values()), **named}

    def _losses(self, network: nn.Module, part: TrainingBatch[Any]) -> Losses:
        with self.fabric.autocast():
            return self.objective(network, self.model, part)

    @torch.no_grad()
    def _total_counts(self, first: Losses, others: Sequence[TrainingBatch[Any]]) -> Tensor:
        """[terms]: the counts over all processes and parts. What follows in the loop draws the same random numbers
        again, and BatchNorm learns of no image twice."""
        total = _counts(first)
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices), no_running_statistics(self.model):
            for part in others:
                total = total + _counts(self._losses(self.forward, part))
        return cast(Tensor, self.fabric.all_reduce(total, reduce_op="sum"))


def _split(batch: TrainingBatch[Any], number: int) -> list[TrainingBatch[Any]]:
    """The batch in so many equal parts, images laid out channels-last."""
    rows = len(batch.images) // number
    parts = [tree_map_only(Tensor, operator.itemgetter(slice(first, first + rows)), batch)
             for first in range(0, rows * number, rows)]
    return [part._replace(images=part.images.contiguous(memory_format=torch.channels_last)) for part in parts]


def _share_a_count(losses: Losses) -> bool:
    return len({id(term.count) for term in losses.values()}) == 1


def _counts(losses: Losses) -> Tensor:
    """[terms], of the sums' type."""
    return torch.stack([term.count.detach().to(term.sum.dtype) for term in losses.values()])


@contextmanager
def no_running_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training normalises with the batch as ever, and keeps nothing of it."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
