"""Images with boxes, ready for a detector."""

from __future__ import annotations

import numpy as np
import torch

from detseg.data.augment import Augment, BoxSample, Context
from detseg.data.box_index import BoxIndex
from detseg.data.images import channels_first, read_image
from detseg.interfaces import Dataset, EvaluationSample, SampleKey, Source, TrainingSample
from detseg.resize import Resize
from detseg.structures import BoxTargets, Pixels


class DetectionDataset(Dataset[BoxTargets]):
    """The images and boxes of an index at the network's size.

    Args:
        index: the annotations.
        resize: the model's.
        augment: what training does to a sample; None trains on resized images.
        seed: what happens to a training sample depends on (`seed`, epoch, item) alone.

    Boxes of no area are left out and the rest clipped.
    """

    def __init__(
        self, index: BoxIndex, resize: Resize, *, augment: Augment[BoxSample] | None = None, seed: int = 0
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed = resize, augment, seed

    def __len__(self) -> int:
        return len(self.index)

    def original(self, item: int) -> Pixels:
        """The image file, turned as its annotations are."""
        return read_image(self.index.path(item), size=self.index.size(item))

    def training(self, key: SampleKey) -> TrainingSample[BoxTargets]:
        """The image uint8 and its boxes, augmented or resized."""
        sample = self._sample(key.item)
        for_augment, for_head = np.random.SeedSequence((self.seed, key.epoch, key.item)).generate_state(2).tolist()
        if self.augment is None:
            placement = self.resize.place(self.index.size(key.item))
            sample = sample._replace(
                image=self.resize.apply_rounded(sample.image),
                boxes=placement.boxes_to_network(sample.boxes).astype(np.float32))
        else:
            sample = self.augment(sample, Context(for_augment, key.epoch, len(self), self._sample))
        assert not self.resize.fixed or sample.image.shape == (*self.resize.size, 3), (
            f"augmented to {sample.image.shape}, the network's is {self.resize.size}")
        boxes, labels, crowd = (torch.from_numpy(np.ascontiguousarray(values)) for values in sample[1:])
        targets = BoxTargets(boxes, labels, crowd, torch.tensor(for_head))
        return TrainingSample(channels_first(sample.image), targets)

    def evaluation(self, item: int) -> EvaluationSample:
        """The image; the metric reads the annotations from the index."""
        size = self.index.size(item)
        source = Source(int(self.index.image_ids[item]), size, self.resize.place(size))
        return EvaluationSample(channels_first(self.resize.apply(self.original(item))), source, None)

    def _sample(self, item: int) -> BoxSample:
        return BoxSample(self.original(item), *self.index.targets(item))
