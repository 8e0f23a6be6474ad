"""Quantisation-aware training: the loss is that of the network as 8-bit integers compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_unflatten

from detseg.model import Predictor
from detseg.optim import QAT
from detseg.quantization.pt2e import Simulated, Traced, set_range, trace, watch_next
from detseg.quantization.recorded import Point
from detseg.structures import Size

_MOMENTUM = 0.01
"""Of a step, in the moving average of ranges: that of PyTorch's observers."""


class FakeQuantised(nn.Module):
    """Stands in a training step where the network stood: images to the same raw outputs, by fake quantisation.

    The weights are the network's own, under their names in it; so an optimiser, an average of the weights and a
    checkpoint need to know nothing of quantisation. Weights are rounded by the range that they have at the moment,
    activations by a moving average of theirs.

    Buffers, [activations] each:
        low, high: the ranges.
        seen_low, seen_high: the smallest and largest values since `forget`.
    """

    low: Tensor
    high: Tensor
    seen_low: Tensor
    seen_high: Tensor

    def __init__(self, model: Predictor, traced: Traced, size: Size | None) -> None:
        super().__init__()
        self.graph, self.outputs, self.size = traced.graph, traced.outputs, size
        self.weights, self.points = list(traced.weights.values()), list(traced.points.values())
        self.watches = False
        for name in ("low", "high", "seen_low", "seen_high"):
            self.register_buffer(name, torch.zeros(len(self.points), device=model.device))
        for place, point in enumerate(self.points):
            point.module.disable_observer()  # type: ignore[operator]
            point.module.register_forward_pre_hook(self._watch(place, point))

    def forward(self, images: Tensor, *, with_features: bool = False) -> Any:
        """uint8 [B, 3, H, W] RGB, 0..255, to the head's raw predictions. ValueError for what cannot be had of it."""
        if with_features:
            raise ValueError("an objective that asks for features cannot be trained with qat, whose graph gives raw "
                             "outputs alone; leave out --qat, or the objective")
        size = (images.shape[2], images.shape[3])
        if self.size is not None and size != self.size:
            raise ValueError(f"a training image of {size[0]} x {size[1]} pixels after one of {self.size[0]} x "
                             f"{self.size[1]}: qat needs them of one size")
        for module in self.weights:
            watch_next(module)
        return tree_unflatten(list(self.graph(images)), self.outputs)

    @torch.no_grad()
    def forget(self) -> None:
        """What has been seen."""
        self.seen_low.fill_(torch.inf)
        self.seen_high.fill_(-torch.inf)

    @torch.no_grad()
    def take(self, momentum: float) -> None:
        """Moves the ranges towards what has been seen, and rounds by them from now on."""
        self.low.lerp_(self.seen_low, momentum)
        self.high.lerp_(self.seen_high, momentum)
        self.use()

    @torch.no_grad()
    def use(self) -> None:
        """Rounds by `low` and `high`."""
        for point, low, high in zip(self.points, self.low, self.high, strict=True):
            set_range(point.module, low, high)

    def fake_quantise(self, on: bool) -> None:
        """Whether anything is rounded."""
        for module in (*(point.module for point in self.points), *self.weights):
            module.enable_fake_quant(on)  # type: ignore[operator]

    def _watch(self, place: int, point: Point) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """Keeps the ends of what passes, as far as they matter. One fake quantisation may stand at several places,
        which share a range."""
        least, most = point.limits

        def watch(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if self.watches:
                low, high = (end.clamp(least, most) for end in arguments[0].detach().aminmax())
                self.seen_low[place] = torch.minimum(self.seen_low[place], low)
                self.seen_high[place] = torch.maximum(self.seen_high[place], high)

        return watch


class QuantisationAwareTraining:
    """What a run with `qat` has beside an ordinary one.

    Args:
        model: the network, prepared, on its device.
        settings: when what freezes.
        images: training images, uint8 [B, 3, H, W], of which it takes the size.

    ValueError where the network cannot be recorded.
    """

    def __init__(self, model: Predictor, settings: QAT, *, images: Tensor) -> None:
        self.settings, self.any_size = settings, not model.resize.fixed
        self.norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        example = images[:1].to(model.device).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        traced = trace(model.train(), example, any_size=self.any_size)
        self.names = tuple(traced.points)
        self.network = FakeQuantised(model, traced, None if self.any_size else (images.shape[2], images.shape[3]))
        self._simulated: Simulated | None = None

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], *, together: int | None = None) -> None:
        """Sets the ranges of activations to the mean of those of batches of images; nothing else is learned of them.

        Args:
            batches: each uint8 [B, 3, H, W], as training has them.
            together: images that are computed at once; None for a whole batch.
        """
        network = self.network
        network.fake_quantise(False)
        for norm in self.norms:
            norm.eval()
        network.watches = True
        for number, images in enumerate(batches, start=1):
            network.forget()
            for part in torch.split(images.to(network.low.device), together or len(images)):
                network(part.contiguous(memory_format=torch.channels_last))
            network.take(1.0 / number)
        network.watches = False
        for norm in self.norms:
            norm.train()
        network.fake_quantise(True)

    @contextmanager
    def step(self, number: int, total_steps: int) -> Iterator[None]:
        """Inside, step `number` (from 0) of `total_steps` sees its images, with frozen what is to be frozen.

        In the end the ranges move towards what has passed, over all processes and parts.
        """
        network = self.network
        network.watches = number < self.settings.freeze_observers * total_steps
        for norm in self.norms:
            norm.train(number < self.settings.freeze_batch_norm * total_steps)
        network.forget()
        yield
        if network.watches:
            if distributed.is_initialized():
                distributed.all_reduce(network.seen_low, distributed.ReduceOp.MIN)
                distributed.all_reduce(network.seen_high, distributed.ReduceOp.MAX)
            network.take(_MOMENTUM)
        network.watches = False

    def ranges(self) -> dict[str, Tensor]:
        """[low, high] of each activation by its name."""
        both = torch.stack([self.network.low, self.network.high], dim=1).cpu()
        return dict(zip(self.names, both.unbind(), strict=True))

    @torch.no_grad()
    def load_ranges(self, ranges: Mapping[str, Tensor]) -> None:
        """Goes on with the ranges of a checkpoint. ValueError where they are those of another network."""
        if ranges.keys() != set(self.names):
            other = sorted(ranges.keys() ^ set(self.names))
            raise ValueError(f"the run has ranges of other activations than this network: {', '.join(other[:5])}; "
                             "resume with the versions of detseg and torchao that it was started with")
        for place, name in enumerate(self.names):
            self.network.low[place], self.network.high[place] = ranges[name]
        self.network.use()

    @torch.no_grad()
    def evaluated(self, model: Predictor) -> Simulated:
        """A network of the same make, such as the averaged one, as 8-bit integers compute it, with the ranges of now.

        It is one and the same thing at each call.
        """
        if self._simulated is None:
            self._simulated = Simulated(model, any_size=self.any_size)
        self._simulated.set_weights(model)
        self._simulated.set_ranges(self.ranges())
        return self._simulated
