"""Optimisers, learning rate schedules, weight averaging, quantisation-aware training and distillation, as settings.

Schedules are pure functions of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from detseg.settings import Settings

NO_FACTORS: Mapping[nn.Parameter, float] = MappingProxyType({})
_Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


_NOISE_SEED = 42


def _check(name: str, value: float, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Refuses a number outside low..high, the limits included unless `open_low`."""
    inside = low <= value <= high and not (open_low and value == low)
    if not inside:
        limits = f"{'above' if open_low else 'at least'} {low:g}"
        if math.isfinite(high):
            limits += f" and at most {high:g}"
        raise ValueError(f"{name} must be {limits}, got {value!r}")


def _parameter_groups(
    model: nn.Module, factors: Mapping[nn.Parameter, float], *, weight_decay: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """Trainable parameters, each in exactly one group. Those of at most one dimension are the biases and the
    normalisation weights. `lr_factor` is what a group's learning rate is multiplied with."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = decay_norms or parameter.ndim > 1
            groups.setdefault((factors.get(parameter, 1.0), decayed), []).append(parameter)
    return [{"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr_factor": factor}
            for (factor, decayed), parameters in groups.items()]


@dataclass(frozen=True)
class OptimizerSettings(Settings, ABC):
    """What every optimiser has: the peak learning rate, which the schedule scales."""

    lr: float
    backbone_lr: float = field(default=1.0, kw_only=True)
    """The backbone's rate is so many times `lr`."""
    layer_decay: float = field(default=1.0, kw_only=True)
    """Each layer of the backbone has so many times the rate of the one behind it, the last of the head's (Clark et al.
    2020, arXiv 2003.10555, appendix A)."""

    def __post_init__(self) -> None:
        _check("lr", self.lr, low=0.0, open_low=True)
        _check("backbone_lr", self.backbone_lr, low=0.0, open_low=True)
        _check("layer_decay", self.layer_decay, low=0.0, high=1.0, open_low=True)

    @abstractmethod
    def build(self, model: nn.Module, factors: Mapping[nn.Parameter, float] = NO_FACTORS) -> Optimizer:
        """The optimiser of the model's trainable parameters, whose rates are `lr` times the factor that is given."""


@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """Stochastic gradient descent with momentum.

    With `decay_norms` off, normalisation weights and all biases are not decayed.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    decay_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("momentum", self.momentum, low=0.0, high=1.0)
        _check("weight_decay", self.weight_decay, low=0.0)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")

    def build(self, model: nn.Module, factors: Mapping[nn.Parameter, float] = NO_FACTORS) -> Optimizer:
        """torch.optim.SGD."""
        groups = _parameter_groups(model, factors, weight_decay=self.weight_decay, decay_norms=self.decay_norms)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class RMSprop(OptimizerSettings):
    """RMSprop as the MobileNet papers used it.

    `eps` stands outside the root here and under it in TensorFlow: the default is the root of TensorFlow's 0.001.
    TensorFlow starts the mean square at 1, PyTorch at 0, so the first steps are larger here: use a warm-up.
    """

    alpha: float = 0.9
    momentum: float = 0.9
    eps: float = 0.0316
    weight_decay: float = 0.0
    decay_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("alpha", self.alpha, low=0.0, high=1.0)
        _check("momentum", self.momentum, low=0.0, high=1.0)
        _check("eps", self.eps, low=0.0, open_low=True)
        _check("weight_decay", self.weight_decay, low=0.0)

    def build(self, model: nn.Module, factors: Mapping[nn.Parameter, float] = NO_FACTORS) -> Optimizer:
        """torch.optim.RMSprop."""
        groups = _parameter_groups(model, factors, weight_decay=self.weight_decay, decay_norms=self.decay_norms)
        return torch.optim.RMSprop(groups, lr=self.lr, alpha=self.alpha, momentum=self.momentum, eps=self.eps)


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_norms: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("beta1", self.beta1, low=0.0, high=1.0)
        _check("beta2", self.beta2, low=0.0, high=1.0)
        _check("eps", self.eps, low=0.0, open_low=True)
        _check("weight_decay", self.weight_decay, low=0.0)

    def build(self, model: nn.Module, factors: Mapping[nn.Parameter, float] = NO_FACTORS) -> Optimizer:
        """torch.optim.AdamW."""
        groups = _parameter_groups(model, factors, weight_decay=self.weight_decay, decay_norms=self.decay_norms)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps)


@dataclass(frozen=True)
class Schedule(Settings, ABC):
    """How long a run is, and by what factor of the peak learning rate each step is taken.

    The factor rises linearly from `warmup_start` to 1 over `warmup_steps`, then the schedule decides.
    """

    epochs: int
    warmup_steps: int = 0
    warmup_start: float = 0.001
    noise: float = field(default=0.0, kw_only=True)
    """The largest share by which an epoch's factor is off at random, up or down (timm's lr_noise_pct; its MobileNetV3
    has 0.67)."""
    noise_span: tuple[float, float] = field(default=(0.42, 0.9), kw_only=True)
    """From which share of the epochs to which there is noise; the default is timm's MobileNetV3's."""

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, low=1)
        _check("warmup_steps", self.warmup_steps, low=0)
        _check("warmup_start", self.warmup_start, low=0.0, high=1.0)
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"noise must be at least 0 and below 1, got {self.noise!r}")
        if not 0.0 <= self.noise_span[0] <= self.noise_span[1] <= 1.0:
            raise ValueError(f"noise_span is two rising shares of the epochs, 0..1, got {self.noise_span}")

    def factor(self, step: int, total_steps: int) -> float:
        """The factor of step 0..total_steps - 1. ValueError where the warm-up would not end within the run."""
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.warmup_steps}, but the run has only {total_steps} steps: train "
                f"longer, or shorten it, for example --set schedule.warmup_steps={total_steps // 10}")
        if step < self.warmup_steps:
            return self.warmup_start + (1.0 - self.warmup_start) * step / self.warmup_steps
        return self.decayed(step, total_steps) * (1.0 + self._noise(step * self.epochs // total_steps))

    def _noise(self, epoch: int) -> float:
        """Of an epoch: a normal number of std 1 that lies within `noise` (timm draws until one does)."""
        if self.noise == 0 or not self.noise_span[0] <= epoch / self.epochs < self.noise_span[1]:
            return 0.0
        normal, share = NormalDist(), np.random.default_rng((_NOISE_SEED, epoch)).uniform(-1, 1)
        return normal.inv_cdf(0.5 + share * (normal.cdf(self.noise) - 0.5))

    def shortened(self, divisor: int) -> Schedule:
        """The same in a `divisor`-th of the epochs and warm-up steps, at least one epoch."""
        return replace(self, epochs=max(1, self.epochs // divisor), warmup_steps=self.warmup_steps // divisor)

    @abstractmethod
    def decayed(self, step: int, total_steps: int) -> float:
        """The factor of a step after the warm-up."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the end of the warm-up down to `end`, as TensorFlow's `cosine_decay_with_warmup`."""

    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("end", self.end, low=0.0, high=1.0)

    def decayed(self, step: int, total_steps: int) -> float:
        """end + (1 - end) (1 + cos(pi t)) / 2 with t from 0 after the warm-up to 1 at the run's end."""
        progress = (step - self.warmup_steps) / (total_steps - self.warmup_steps)
        return self.end + (1.0 - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Steps(Schedule):
    """The rate times `gamma` at the start of each epoch in `milestones`."""

    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("gamma", self.gamma, low=0.0, high=1.0, open_low=True)
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones are rising epochs from 1 on, got {self.milestones}")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"milestone {self.milestones[-1]} would never come: the run has {self.epochs} epochs")

    def shortened(self, divisor: int) -> Schedule:
        """As of every schedule; milestones move with the epochs, and those that fall together become one."""
        epochs = max(1, self.epochs // divisor)
        moved = {milestone * epochs // self.epochs for milestone in self.milestones} - {0}
        return replace(self, epochs=epochs, warmup_steps=self.warmup_steps // divisor, milestones=tuple(sorted(moved)))

    def decayed(self, step: int, total_steps: int) -> float:
        """gamma ** (milestones passed)."""
        epoch = step * self.epochs // total_steps
        return math.pow(self.gamma, sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True)
class Exponential(Schedule):
    """The rate times `gamma` after every `every` epochs; MobileNetV3's article takes 0.99 every 3 (section 6.1), which
    it calls a decay rate of 0.01."""

    gamma: float = 0.99
    every: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("gamma", self.gamma, low=0.0, high=1.0, open_low=True)
        _check("every", self.every, low=1)

    def decayed(self, step: int, total_steps: int) -> float:
        """gamma ** (times `every` epochs passed)."""
        return math.pow(self.gamma, step * self.epochs // total_steps // self.every)


@dataclass(frozen=True)
class Poly(Schedule):
    """(1 - t) ** power, t the part of the run that is over, warm-up included (DeepLab, arXiv 1606.00915, 4.1)."""

    power: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("power", self.power, low=0.0, open_low=True)

    def decayed(self, step: int, total_steps: int) -> float:
        """(1 - step / total_steps) ** power."""
        return math.pow(1.0 - step / total_steps, self.power)


@dataclass(frozen=True)
class EMA(Settings):
    """An exponential moving average of the weights and of the normalisation statistics; it is what gets evaluated.

    With `ramp`, the decay after n updates is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage with `num_updates`: short runs are not held back by their random start.
    """

    decay: float = 0.9998
    ramp: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay!r}")

    def build(self, model: nn.Module) -> AveragedModel:
        """A copy of the model; each `update_parameters(model)` moves it towards the model."""

        def average(averaged: _Tensors, current: _Tensors, num_averaged: Tensor | int) -> None:
            n = int(num_averaged)
            decay = min(self.decay, (1 + n) / (10 + n)) if self.ramp else self.decay
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, 1.0 - decay)
            else:  # counters and index tables have no average
                for mine, theirs in zip(averaged, current, strict=True):
                    mine.copy_(theirs)

        return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@dataclass(frozen=True)
class Freeze(Settings):
    """What of the backbone keeps its values; nothing, unless it is said.

    stride: all layers whose maps have at most this stride, from the stem on; 0 for none. norms: whether all of its
    BatchNorms normalise by their running statistics, and keep these (mmdetection's `norm_eval`); those of frozen layers
    always do.
    """

    stride: int = 0
    norms: bool = False

    def __post_init__(self) -> None:
        _check("stride", self.stride, low=0)


@dataclass(frozen=True)
class QAT(Settings):
    """Quantisation-aware training: the loss is that of the network as ExecuTorch's 8-bit integers compute it.

    Ranges of activations follow the training images in the first `freeze_observers` of the steps, BatchNorm's
    statistics in the first `freeze_batch_norm`; then they stay, as they do in the exported file, and the weights
    settle to them. Before the first step the ranges come from `calibration_batches`.
    """

    freeze_observers: float = 0.5
    freeze_batch_norm: float = 0.7
    calibration_batches: int = 8

    def __post_init__(self) -> None:
        _check("freeze_observers", self.freeze_observers, low=0.0, high=1.0)
        _check("freeze_batch_norm", self.freeze_batch_norm, low=0.0, high=1.0)
        _check("calibration_batches", self.calibration_batches, low=1)


@dataclass(frozen=True)
class Distill(Settings):
    """Distillation: the loss is also the distance from what a trained network, the teacher, says of the same images.

    Args:
        teacher: a run folder, or a config with `checkpoint`. It predicts the student's classes.
        checkpoint: of that config.
        label_weight: the head's own loss counts so much; 0 learns from the teacher alone.
        output_weight: that of predictions: classes and boxes, or a segmenter's logits.
        feature_weight: that of the feature maps of the same name or stride, through 1 x 1 convolutions.
        temperature: softens a segmenter's softmax.
        min_score: predictions of a detector that is less sure are background.
    """

    teacher: str
    checkpoint: str | None = None
    label_weight: float = 1.0
    output_weight: float = 1.0
    feature_weight: float = 1.0
    temperature: float = 1.0
    min_score: float = 0.1

    def __post_init__(self) -> None:
        for name in ("label_weight", "output_weight", "feature_weight"):
            _check(name, getattr(self, name), low=0.0)
        _check("temperature", self.temperature, low=0.0, open_low=True)
        _check("min_score", self.min_score, low=0.0, high=1.0)
        if self.output_weight == self.feature_weight == 0:
            raise ValueError("output_weight and feature_weight are both 0, so nothing is learned of the teacher; give "
                             "one a weight, or leave the teacher out")
