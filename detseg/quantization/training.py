"""Quantisation-aware training: the loss is that of the network as 8-bit integers compute it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_unflatten

from detseg.model import Predictor
from detseg.optim import QAT
from detseg.quantization.pt2e import Simulated, Traced, parameters, trace
from detseg.structures import Size


class FakeQuantised(nn.Module):
    """Stands in a training step where the network stood: images to the same raw outputs, by fake quantisation.

    The weights are the network's own, under their names in it; so an optimiser, an average of the weights and a
    checkpoint need to know nothing of quantisation. In training, weights are rounded by the range that they have at
    the moment, activations by a moving average of their ranges.
    """

    def __init__(self, traced: Traced, size: Size | None) -> None:
        super().__init__()
        self.graph, self.outputs, self.size = traced.graph, traced.outputs, size
        self.weights = list(traced.weights.values())
        self.points = list(traced.points.values())
        self.observes = True
        for module in self.weights:
            _observer(module).averaging_constant = 1.0

    def forward(self, images: Tensor, *, with_features: bool = False) -> Any:
        """uint8 [B, 3, H, W] RGB, 0..255, to the head's raw predictions. ValueError for what cannot be had of it."""
        if with_features:
            raise ValueError("an objective that asks for features cannot be trained with qat, whose graph gives raw "
                             "outputs alone; leave out --qat, or the objective")
        size = (images.shape[2], images.shape[3])
        if self.size is not None and size != self.size:
            raise ValueError(f"an image of {size[0]} x {size[1]} pixels among training images of {self.size[0]} x "
                             f"{self.size[1]}: qat needs them of one size")
        for module in self.weights:
            low, high = parameters(module)[:2]
            low.fill_(torch.inf)  # and so the range of before counts for nothing
            high.fill_(-torch.inf)
        # What is computed without a gradient is computed twice, and observed the second time.
        self.observe(self.observes and torch.is_grad_enabled())
        return tree_unflatten(list(self.graph(images)), self.outputs)

    def observe(self, on: bool) -> None:
        """Whether the ranges of activations follow what passes."""
        for module in self.points:
            module.enable_observer(on)  # type: ignore[operator]


class QuantisationAwareTraining:
    """What a run with `qat` has beside an ordinary one.

    Args:
        model: the network, prepared, on its device, in training mode.
        settings: when what freezes.
        images: training images, uint8 [B, 3, H, W], of which it takes the size.

    ValueError where the network cannot be recorded.
    """

    def __init__(self, model: Predictor, settings: QAT, *, images: Tensor) -> None:
        self.settings, self.any_size = settings, not model.resize.fixed
        example = images[:1].to(model.device).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        traced = trace(model.train(), example, any_size=self.any_size)
        self.network = FakeQuantised(traced, None if self.any_size else (images.shape[2], images.shape[3]))
        self.points = traced.points
        self.norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._simulated: Simulated | None = None

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets the ranges of activations to the mean of those of batches of images; nothing else is learned of them.

        Each batch is uint8 [B, 3, H, W], as training has them.
        """
        for norm in self.norms:
            norm.eval()
        for module in (*self.network.points, *self.network.weights):
            module.enable_fake_quant(False)  # type: ignore[operator]
        for module in self.network.points:
            _observer(module).reset_min_max_vals()
        usual = {module: _observer(module).averaging_constant for module in self.network.points}
        self.network.observe(True)
        for number, images in enumerate(batches, start=1):
            for module in self.network.points:
                _observer(module).averaging_constant = 1.0 / number
            self.network.graph(images.contiguous(memory_format=torch.channels_last))
        for module, constant in usual.items():
            _observer(module).averaging_constant = constant
        for module in (*self.network.points, *self.network.weights):
            module.enable_fake_quant()  # type: ignore[operator]
        for norm in self.norms:
            norm.train()

    def begin(self, step: int, total_steps: int) -> None:
        """Freezes what is to be frozen in step `step` (from 0) of `total_steps`."""
        self.network.observes = step < self.settings.freeze_observers * total_steps
        for norm in self.norms:
            norm.train(step < self.settings.freeze_batch_norm * total_steps)

    def ranges(self) -> dict[str, Tensor]:
        """[4] by name: the smallest and largest value of each activation, the scale and the zero point."""
        return {name: torch.stack([value.detach().reshape(()).float().cpu() for value in parameters(module)])
                for name, module in self.points.items()}

    def load_ranges(self, ranges: Mapping[str, Tensor]) -> None:
        """Goes on with the ranges of a checkpoint. ValueError where they are those of another network."""
        if ranges.keys() != self.points.keys():
            other = sorted(ranges.keys() ^ self.points.keys())
            raise ValueError(f"the run has ranges of other activations than this network: {', '.join(other[:5])}; "
                             "resume with the versions of torchao and executorch that it was started with")
        for name, module in self.points.items():
            for own, value in zip(parameters(module), ranges[name], strict=True):
                own.resize_(own.shape if own.numel() else ()).copy_(value)

    def evaluated(self, model: Predictor) -> Simulated:
        """A network of the same make, such as the averaged one, as 8-bit integers compute it, with the ranges of now.

        It is one and the same thing at each call.
        """
        if self._simulated is None:
            self._simulated = Simulated(model, any_size=self.any_size)
        self._simulated.set_weights(model)
        self._simulated.set_ranges(self.ranges())
        return self._simulated


def _observer(module: nn.Module) -> Any:
    return module.activation_post_process
