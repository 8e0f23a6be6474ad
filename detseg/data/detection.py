"""Images with boxes, ready for a detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from detseg.data.augment import Augment, BoxSample, Context, Mask
from detseg.data.box_index import BoxIndex, FindOutline
from detseg.data.drawn_labels import outlined_pixels
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
        num_epochs: of the run, for augmentations that end before it does.
        masks: whether the augmentation is to have the objects' outlines as masks. They are read at once, so that
            processes that are forked later share them.

    Boxes of no area are left out and the rest clipped.
    """

    def __init__(
        self, index: BoxIndex, resize: Resize, *, augment: Augment[BoxSample] | None = None, seed: int = 0,
        num_epochs: int = 1, masks: bool = False,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of the data must be at least 0, got {seed}")
        if masks and index.outlines is None:
            raise ValueError(f"masks are drawn from outlines, and the data in {index.folder} have boxes only; take "
                             "data with outlines (COCO's segmentation, polygons of YOLO or labelme), or leave out "
                             "masks=True and copy-paste")
        self.index, self.classes = index, index.classes
        self.resize, self.augment, self.seed = resize, augment, seed
        self.num_epochs, self.masks = num_epochs, masks and augment is not None
        self._found: FindOutline | None = None
        if self.masks:
            self._find_outline()

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
            sample = self.augment(sample, Context(
                for_augment, key.epoch, len(self), self._sample, self.num_epochs, key.item,
                self._masks if self.masks else None))
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

    def _masks(self, item: int) -> list[Mask | None]:
        find, size = self._find_outline(), self.index.size(item)
        outlines = (find(annotation_id) for annotation_id in self.index.target_ids(item).tolist())
        try:
            return [None if outline is None else outlined_pixels(outline, size) for outline in outlines]
        except ValueError as problem:
            raise ValueError(f"{self.index.path(item)}: {problem}") from None

    def _find_outline(self) -> FindOutline:
        if self._found is None:
            assert self.index.outlines is not None
            self._found = self.index.outlines()
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        """A process that is not forked reads the outlines itself: what finds them is a function, which does not
        travel."""
        return self.__dict__ | {"_found": None}
