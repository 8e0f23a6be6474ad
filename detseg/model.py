"""The whole network: normalisation, backbone, neck, head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.inference import fold
from detseg.interfaces import Backbone, Features, Head, Neck, Task
from detseg.ops.anchors import CachedAnchors, Cells
from detseg.resize import Resize
from detseg.split_execution import split
from detseg.structures import Classes

_AS_TRAINED, _FOLDED = "as trained", "BatchNorm folded"
"""What has been done to a network for inference: its `form`."""


class Predictor(nn.Module):
    """Images 0..255 in, raw predictions out; knows its classes and how an image becomes its input.

    The head is asked for the loss and for decoding.

    Args:
        backbone, head, neck: the parts; each reads the channels from the one before.
        classes: what it predicts.
        resize: used in training, evaluation, prediction and export alike.
        mean, std: of RGB in 0..1, as published with the weights.
        size_divisor: images get rows and columns of zeros at the end, behind the normalisation, until their sides are
            multiples of it, as in torchvision's detectors.
    """

    def __init__(
        self, backbone: Backbone, head: Head[Any, Any, Any], *, classes: Classes, resize: Resize,
        mean: tuple[float, float, float], std: tuple[float, float, float], neck: Neck | None = None,
        size_divisor: int = 1,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.classes, self.resize, self.size_divisor = classes, resize, size_divisor
        self.form = _AS_TRAINED
        self.scale: Tensor
        self.shift: Tensor
        # Part of the state: what a checkpoint was trained with travels with it.
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.set_normalisation(mean, std)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.scale.device

    def weights(self) -> dict[str, Tensor]:
        """The state without how images are normalised, which is no weight in anybody else's files."""
        return {name: tensor for name, tensor in self.state_dict().items() if name not in ("scale", "shift")}

    def set_normalisation(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        """Takes the mean and std (RGB, 0..1) that weights expect."""
        if min(std) <= 0:
            raise ValueError(f"std must be positive, got {std}")
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) * 255 * scale
        with torch.no_grad():
            self.scale.copy_(scale.view(1, 3, 1, 1))
            self.shift.copy_(shift.view(1, 3, 1, 1))

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and std of RGB in 0..1 that `set_normalisation` was given, up to rounding."""
        std = 1 / (255 * self.scale.double().flatten())
        mean = -self.shift.double().flatten() * std
        return tuple(mean.tolist()), tuple(std.tolist())

    def features(self, images: Tensor) -> Features:
        """uint8 or float [B, 3, H, W] RGB, 0..255, to the maps that the head reads."""
        height, width = images.shape[2], images.shape[3]
        normalised = images.to(self.scale.dtype) * self.scale + self.shift
        if height % self.size_divisor or width % self.size_divisor:
            normalised = F.pad(normalised, (0, -width % self.size_divisor, 0, -height % self.size_divisor))
        features: Features = self.backbone(normalised)
        if self.neck is not None:
            features = self.neck(features)
        return features

    def forward(self, images: Tensor, *, with_features: bool = False) -> Any:
        """uint8 or float [B, 3, H, W] RGB, 0..255, to the head's raw predictions, and to the features if asked for."""
        features = self.features(images)
        raw = self.head(features)
        return (raw, features) if with_features else raw

    def decode(self, images: Tensor, *, static: bool = False) -> Any:
        """The same to dense predictions, in the pixels of `images`; `static` as in `Head.decode`."""
        return self.head.decode(self(images), (images.shape[2], images.shape[3]), static=static)

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], *, static: bool = False) -> Any:
        """The same to final predictions of the task; `static` as in `Head.decode`."""
        return task.postprocess(self.decode(images, static=static), static=static)

    def folded(self) -> Predictor:
        """A copy for inference: evaluation mode, no training parts, BatchNorm folded into convolutions, channels last.

        The same answers up to rounding (1e-5 of the largest), in about half the time.
        """
        model = copy.deepcopy(self)
        model.head.drop_training_parts()
        fold(model)
        model.form = _FOLDED
        return model

    def split(self, parts: int) -> Predictor:
        """`folded`, with inverted bottlenecks computed in so many parts of their expanded channels, which takes less
        memory; see `detseg.split_execution`. ValueError without any."""
        model = self.folded()
        split(model, parts)
        model.form = f"{_FOLDED}, bottlenecks in parts: {parts}"
        return model.to(memory_format=torch.channels_last)

    def ready(self) -> Predictor:
        """A copy to predict with on the device it is on: `folded`. A network that is ready is given back."""
        return self.folded() if self.form == _AS_TRAINED else self


@torch.no_grad()
def anchored_maps(model: Predictor) -> tuple[CachedAnchors, Sequence[Tensor]] | None:
    """The anchors of a network's head, and the maps [1, C, H, W] that they lie on for an image of `resize.size`; None
    of a head without anchors."""
    known = [value for value in vars(model.head).values()
             if isinstance(value, CachedAnchors) and not isinstance(value.anchors, Cells)]
    if not known:
        return None
    was_training = model.training
    raw = model.eval()(torch.zeros(1, 3, *model.resize.size, device=model.device))
    model.train(was_training)
    return known[0], raw.logits  # every head with anchors keeps its logits map by map
