"""Images with label maps, ready for a segmenter."""

from __future__ import annotations

import numpy as np
import torch

from detseg.data.augment import Augment, Context, LabelSample
from detseg.data.images import channels_first
from detseg.data.label_index import LabelIndex
from detseg.interfaces import Dataset, EvaluationSample, SampleKey, Source, TrainingSample
from detseg.resize import Resize
from detseg.structures import LabelTargets, Pixels


class SegmentationDataset(Dataset[LabelTargets]):
    """The images and label maps of an index.

    Args:
        index: the label maps.
        resize: the model's.
        augment: what training does to a sample; it gives crops of one size, which may differ from the network's size in
            evaluation. None trains on resized images.
        seed: what happens to a training sample depends on (`seed`, epoch, item) alone.
        num_epochs: of the run, for augmentations that end before it does.
    """

    def __init__(
        self, index: LabelIndex, resize: Resize, *, augment: Augment[LabelSample] | None = None, seed: int = 0,
        num_epochs: int = 1,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed, self.num_epochs = resize, augment, seed, num_epochs

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file, turned as its label map is."""
        return self.index.image(item)

    def training(self, key: SampleKey) -> TrainingSample[LabelTargets]:
        """The image uint8 and its label map, augmented or resized."""
        image, labels = self._sample(key.item)
        if self.augment is None:
            placement = self.resize.place((image.shape[0], image.shape[1]))
            image = self.resize.apply_rounded(image)
            labels = placement.labels_to_network(labels, (image.shape[0], image.shape[1]))
        else:
            (seed,) = np.random.SeedSequence((self.seed, key.epoch, key.item)).generate_state(1).tolist()
            image, labels = self.augment(LabelSample(image, labels), Context(
                seed, key.epoch, len(self), self._sample, self.num_epochs, key.item))
        return TrainingSample(channels_first(image), LabelTargets(torch.from_numpy(np.ascontiguousarray(labels))))

    def evaluation(self, item: int) -> EvaluationSample:
        """The image float32 at the network's size, and its label map in original pixels as the truth."""
        pixels, labels = self._sample(item)
        size = (pixels.shape[0], pixels.shape[1])
        source = Source(int(self.index.image_ids[item]), size, self.resize.place(size))
        return EvaluationSample(channels_first(self.resize.apply(pixels)), source, torch.from_numpy(labels))

    def _sample(self, item: int) -> LabelSample:
        image = self.original(item)
        return LabelSample(image, self.index.labels(item, (image.shape[0], image.shape[1])))
