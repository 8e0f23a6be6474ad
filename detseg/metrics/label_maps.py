"""What every metric of label maps takes in: the label maps of each image, once, of which numbers of pixels are kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detseg.data.label_index import LabelIndex
from detseg.interfaces import Metric
from detseg.structures import ImageLabels, LabelPixels

Counts: TypeAlias = NDArray[np.int64]
"""Numbers of pixels."""


class Collected(NamedTuple):
    """What is known of some images."""

    counts: Counts
    """The sum over them."""
    image_ids: frozenset[int]
    of_image: tuple[tuple[int, float], ...] = ()
    """The number of each, by id, where a metric keeps one."""


class LabelMetric(Metric[ImageLabels]):
    """A metric against the original label maps of `index` that needs sums of pixel counts over the images, and at most
    one number of each image: label maps are not kept.

    shape: of the counts.
    """

    def __init__(self, index: LabelIndex, shape: tuple[int, ...], *, per_class: bool) -> None:
        self.index, self.per_class = index, per_class
        self.counts: Counts = np.zeros(shape, dtype=np.int64)
        """The sum over the images so far."""
        self.of_image: dict[int, float] = {}
        """A number of each image so far, by id, where the metric keeps one."""
        used_ids = index.classes.used.keys()
        self._used = {k: index.classes.names[k] for k, source_id in enumerate(index.classes.source_ids)
                      if source_id in used_ids}
        """Label to name of every class that data can contain."""
        self._waiting = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}

    @abstractmethod
    def _count(self, image_id: int, truth: LabelPixels, labels: LabelPixels) -> Counts:
        """Of an image that has not been there, whose label maps have one size."""

    def update(self, predictions: Sequence[ImageLabels], truths: Sequence[Tensor]) -> None:
        """Takes the label maps of some images and the true ones, uint8 [H, W] each.

        ValueError: an image that was given before or that the index does not have, a label map of another size than
        the true one; the images before it in `predictions` have then been taken.
        """
        for (image_id, labels), truth in zip(predictions, truths, strict=True):
            if image_id not in self._waiting:
                raise ValueError(f"image {image_id} was given twice; give each image once"
                                 if image_id in self.index.image_ids else
                                 f"image {image_id} is not one of the {len(self.index)} images with label maps; "
                                 "evaluate on the data that was predicted")
            if truth.shape != labels.shape:
                raise ValueError(f"the label map of image {image_id} is {labels.shape[0]} x {labels.shape[1]} (height "
                                 f"x width), the true one is {truth.shape[0]} x {truth.shape[1]}")
            self.counts += self._count(image_id, truth.numpy(), labels)
            del self._waiting[image_id]

    def collected(self) -> Collected:
        """The counts and whose they are."""
        image_ids = frozenset(self.index.image_ids.tolist()) - self._waiting.keys()
        return Collected(self.counts, image_ids, tuple(self.of_image.items()))

    def merge(self, collected: Sequence[Collected]) -> None:
        """The sum over processes; an image that two of them have is an error of ours."""
        image_ids = frozenset[int]().union(*(share.image_ids for share in collected))
        assert len(image_ids) == sum(len(share.image_ids) for share in collected), "two processes had the same image"
        self.counts = np.sum([share.counts for share in collected], axis=0)
        self.of_image = {image_id: number for share in collected for image_id, number in share.of_image}
        self._waiting = {image_id: position for position, image_id in enumerate(self.index.image_ids.tolist())
                         if image_id not in image_ids}

    def _check_complete(self, what: str) -> None:
        """A ValueError where images of the index are missing."""
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} of {len(self.index)} images have no prediction, image "
                             f"{min(self._waiting)} is the first; {what} needs all")
