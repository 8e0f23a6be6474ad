"""Synthetic images, targets and weights, to measure networks with as if they were in use.

A new network's activations vanish and its scores tie: what follows it then takes another time than in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from detseg.data.images import channels_first
from detseg.data.loading import collate_training
from detseg.interfaces import Backbone, Features, FeatureSpec, Task, TrainingBatch, TrainingSample
from detseg.layers import ConvNormAct, Norm
from detseg.model import Predictor
from detseg.structures import VOID, BoxTargets, ClassTargets, LabelTargets, Pixels, Size
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation

_CLASS_STD, _STD = 1.0, 0.1
"""Of what the head's layers for classes put out, and its others. With larger ones a random network makes so much of
small differences that rounding shows in its results."""


def textures(number: int, size: Size, *, seed: int) -> list[Pixels]:
    """Images with structure at every scale, a pure function of the arguments."""
    random = np.random.default_rng(seed)
    height, width = size
    images = []
    for _ in range(number):
        image = np.full((height, width, 3), 128.0)
        for cells, strength in ((3, 60.0), (12, 40.0), (48, 25.0)):
            coarse = random.normal(0.0, strength, (cells, cells, 3))
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        images.append(image.clip(0, 255).astype(np.uint8))
    return images


def inputs(model: Predictor, images: Sequence[Pixels]) -> Tensor:
    """Images of one size as the network takes them, float32 [B, 3, H, W], channels last."""
    return torch.from_numpy(np.stack([model.resize.apply(image) for image in images])).permute(0, 3, 1, 2)


def batch(model: Predictor, task: Task[Any, Any, Any, Any], number: int) -> TrainingBatch[Any]:
    """A training batch of textures of the network's size, with synthetic targets."""
    size = model.resize.size
    return collate_training([
        TrainingSample(channels_first(image), targets(task, size, len(model.classes), seed=position))
        for position, image in enumerate(textures(number, size, seed=3))], task=task, fill=model.resize.fill)


@singledispatch
def targets(task: Any, size: Size, num_classes: int, *, seed: int) -> Any:
    """Targets such as an image of `size` may have, a pure function of the arguments.

    A task of your own registers its targets: `@targets.register`.
    """
    raise TypeError(f"there are no synthetic targets for {type(task).__name__}")


@targets.register
def _(task: Detection, size: Size, num_classes: int, *, seed: int) -> BoxTargets:
    """1 to 12 boxes, with consecutive seeds one more each."""
    random, (height, width) = np.random.default_rng(seed), size
    num_boxes = 1 + seed % 12
    sides = random.uniform(0.05, 0.6, (num_boxes, 2)) * (width, height)
    corners = random.uniform(0.0, 1.0, (num_boxes, 2)) * ((width, height) - sides)
    labels = torch.from_numpy(random.integers(0, num_classes, num_boxes))
    return BoxTargets(torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float(), labels,
                      torch.zeros(num_boxes, dtype=torch.bool), torch.tensor(seed))


@targets.register
def _(task: Segmentation, size: Size, num_classes: int, *, seed: int) -> LabelTargets:
    """8 x 8 patches, a twentieth of them VOID."""
    random, (height, width) = np.random.default_rng(seed), size
    patches = random.integers(0, num_classes, (8, 8))
    patches[random.uniform(size=(8, 8)) < 0.05] = VOID
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return LabelTargets(torch.from_numpy(patches.astype(np.uint8)[rows[:, None], columns]))


@targets.register
def _(task: Classification, size: Size, num_classes: int, *, seed: int) -> ClassTargets:
    """Consecutive seeds have consecutive classes."""
    return ClassTargets(torch.tensor(seed % num_classes))


class OneConvolution(Backbone):
    """In place of another backbone: one strided convolution for each of its taps, for what only asks about heads."""

    def __init__(self, specs: Mapping[str, FeatureSpec]) -> None:
        super().__init__()
        self.specs = dict(specs)
        self.convs = nn.ModuleList(
            ConvNormAct(3, spec.channels, kernel=3, stride=spec.stride, norm=Norm(momentum=0.1, eps=1e-5),
                        activation="relu") for spec in specs.values())

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] to the maps by name."""
        return {name: conv(images) for name, conv in zip(self.specs, self.convs, strict=True)}


@torch.no_grad()
def enliven(model: Predictor, size: Size) -> None:
    """Gives a new network what training gives: outputs that differ from place to place, and BatchNorm's statistics of
    images, here of textures of `size`. Leaves it in evaluation mode.

    The layers of the head that no norm follows are scaled one after the other to one std, as Mishkin and Matas do
    (2015, arXiv 1511.06422); channels of those for classes get a mean of 0, so that no class is everywhere.
    """
    parts = inputs(model, textures(8, size, seed=0)).chunk(2)
    model.train()
    of_classes = {model.head.get_submodule(name) for name in model.head.class_layers}
    hooks = [layer.register_forward_hook(_Scaling(for_classes=layer in of_classes)) for layer in model.head.modules()
             if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None]
    model.decode(parts[0])  # a second stage runs in decoding
    for hook in hooks:
        hook.remove()

    calibrate(model, parts)


def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Gives BatchNorm the statistics of these images, the plain mean over the batches, and goes to evaluation mode."""
    update_bn(batches, network)
    network.eval()


class _Scaling:
    """Scales a layer when it is first called."""

    def __init__(self, *, for_classes: bool) -> None:
        self.for_classes, self.done = for_classes, False

    def __call__(self, layer: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """The output of the scaled layer."""
        if self.done:
            return out
        self.done = True
        if self.for_classes:
            channel = 1 if isinstance(layer, nn.Conv2d) else out.dim() - 1
            means = out.transpose(0, channel).flatten(1).mean(1)
            layer.bias.sub_(means)
            out = layer.forward(*given)
        scale = (_CLASS_STD if self.for_classes else _STD) / out.std(correction=0).clamp(min=1e-6)
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
        scaled: Tensor = layer.forward(*given)
        return scaled


@torch.no_grad()
def lower_scores(model: Predictor, image: Pixels, share: float, *, threshold: float) -> float:
    """Moves the biases of a detector's classes, background aside, until `share` of the image's scores exceed the
    threshold; gives the share it came to, for where scores add up to 1 not every one is possible.

    What suppression costs depends on how many scores enter it.
    """
    head, images = model.head, inputs(model, [image])
    background = head.num_outputs - len(model.classes)
    biases = [head.get_parameter(f"{layer}.bias").view(-1, head.num_outputs)[:, background:]
              for layer, num_rows in head.class_layers.items() if num_rows == 1]

    def above() -> float:
        return float((model.decode(images).scores > threshold).double().mean())

    step = 16.0
    while step > 0.01:
        change = -step if above() > share else step
        for bias in biases:
            bias.add_(change)
        step /= 2
    return above()
