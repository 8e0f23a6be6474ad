"""Images with label maps, ready for a segmenter."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.data.images import read_image
from detseg.data.label_index import LabelIndex
from detseg.interfaces import (
    VOID,
    Dataset,
    Draw,
    LabelPixels,
    LabelTargets,
    Pixels,
    Placement,
    Resize,
    Sample,
    Size,
    Source,
)


class LabelAugment(Protocol):
    """What training does to an image and its label map. Everything random comes from `seed`."""

    def __call__(self, image: Pixels, labels: LabelPixels, *, seed: int) -> tuple[Pixels, LabelPixels]:
        """Both [H, W, ...] in original pixels; the same in the size of a training crop, which is always the same."""


class SegmentationDataset(Dataset[LabelTargets]):
    """The images and label maps of an index.

    Without `augment`, for evaluation: the image is float32 at the network's size, resized and not rounded, its label
    map the nearest label of each pixel. With it, for training: a uint8 crop of whatever size the augmentation gives,
    which may differ from the network's size in evaluation; what happens depends on (`seed`, epoch, item) alone.
    """

    def __init__(
        self, index: LabelIndex, resize: Resize, *, augment: LabelAugment | None = None, seed: int = 0
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed = resize, augment, seed

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file."""
        return read_image(self.index.path(item))

    def __getitem__(self, draw: Draw) -> Sample[LabelTargets]:
        pixels = self.original(draw.item)
        size = (pixels.shape[0], pixels.shape[1])
        labels = self.index.labels(draw.item, size)
        source = Source(int(self.index.image_ids[draw.item]), size, self.resize.place(size))
        if self.augment is None:
            image: Pixels | NDArray[np.float32] = self.resize.apply(pixels)
            labels = _placed(labels, source.placement, (image.shape[0], image.shape[1]))
        else:
            state = np.random.SeedSequence((self.seed, draw.epoch, draw.item)).generate_state(1)
            image, labels = self.augment(pixels, labels, seed=int(state[0]))
        channels_first = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Sample(channels_first, LabelTargets(torch.from_numpy(np.ascontiguousarray(labels))), source)


def _placed(labels: LabelPixels, placement: Placement, size: Size) -> LabelPixels:
    """The label map as `placement` puts the image into one of `size`, VOID around it."""
    scale_y, scale_x, offset_y, offset_x = placement
    rows = np.floor((np.arange(size[0]) + 0.5 - offset_y) / scale_y).astype(np.int64)
    columns = np.floor((np.arange(size[1]) + 0.5 - offset_x) / scale_x).astype(np.int64)
    inside_y, inside_x = (rows >= 0) & (rows < labels.shape[0]), (columns >= 0) & (columns < labels.shape[1])
    placed = np.full(size, VOID, dtype=np.uint8)
    placed[np.ix_(inside_y, inside_x)] = labels[np.ix_(rows[inside_y], columns[inside_x])]
    return placed
