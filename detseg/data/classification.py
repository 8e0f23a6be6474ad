"""Images with a class each, ready for a classifier."""

from __future__ import annotations

import numpy as np
import torch

from detseg.data.augment import Augment, ClassSample, Context
from detseg.data.class_index import ClassIndex
from detseg.data.images import channels_first
from detseg.interfaces import Dataset, EvaluationSample, SampleKey, Source, TrainingSample
from detseg.resize import Resize
from detseg.structures import ClassTargets, Pixels


class ClassificationDataset(Dataset[ClassTargets]):
    """The images of an index and their classes.

    Args:
        index: the classes.
        resize: the model's.
        augment: what training does to a sample; it gives images of one size, which may differ from the network's size
            in evaluation. None trains on resized images.
        seed: what happens to a training sample depends on (`seed`, epoch, item) alone.
        num_epochs: of the run, for augmentations that end before it does.
    """

    def __init__(
        self, index: ClassIndex, resize: Resize, *, augment: Augment[ClassSample] | None = None, seed: int = 0,
        num_epochs: int = 1,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed, self.num_epochs = resize, augment, seed, num_epochs

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file, turned as viewers show it."""
        return self.index.image(item)

    def training(self, key: SampleKey) -> TrainingSample[ClassTargets]:
        """The image uint8, augmented or resized, and its class."""
        sample = self._sample(key.item)
        if self.augment is None:
            sample = sample._replace(image=self.resize.apply_rounded(sample.image))
        else:
            (seed,) = np.random.SeedSequence((self.seed, key.epoch, key.item)).generate_state(1).tolist()
            sample = self.augment(sample, Context(
                seed, key.epoch, len(self), self._sample, self.num_epochs, key.item))
        return TrainingSample(channels_first(sample.image), ClassTargets(torch.tensor(sample.label)))

    def evaluation(self, item: int) -> EvaluationSample:
        """The image float32 at the network's size; the metric reads its class from the index."""
        pixels = self.original(item)
        size = (pixels.shape[0], pixels.shape[1])
        source = Source(int(self.index.image_ids[item]), size, self.resize.place(size))
        return EvaluationSample(channels_first(self.resize.apply(pixels)), source, None)

    def _sample(self, item: int) -> ClassSample:
        return ClassSample(self.original(item), int(self.index.labels[item]))
