"""Label maps drawn from the outlines of objects, whatever kind of file these are in."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from detseg.data.box_index import BoxIndex, Segmentation
from detseg.data.faults import Fault
from detseg.data.label_index import LabelIndex, moved_labels
from detseg.structures import Classes, LabelPixels, Size


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnLabels(LabelIndex):
    """Label maps that are drawn when they are asked for; a subclass knows the outlines, and what lies on top."""

    classes: Classes
    boxes: BoxIndex
    """The images, and all objects in them; their labels are without the background."""
    source: str
    """Where the outlines come from: an annotation file, or a folder of them."""
    label_of_class: NDArray[np.uint8]
    """[number of classes of `boxes`]: the label that is drawn for each, in the classes that were read."""
    values: NDArray[np.uint8]
    """[256]: the label that each drawn label has now."""
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def image_ids(self) -> NDArray[np.int64]:  # type: ignore[override]
        """Those of the images."""
        return self.boxes.image_ids

    def path(self, i: int) -> Path:
        """The image file."""
        return self.boxes.path(i)

    def origin(self, i: int) -> str:
        """What the outlines were read from."""
        return f"from {self.source}"

    def size(self, i: int) -> Size:
        """(height, width), as the annotations say."""
        return self.boxes.size(i)

    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size; a ValueError where the annotations say another."""
        if size != self.size(i):
            raise ValueError(f"the image {self.path(i)} is {size[0]} x {size[1]} (height x width), {self.source} says "
                             f"{self.size(i)[0]} x {self.size(i)[1]}; a label map has its image's size")
        drawn: LabelPixels = self.values[
            self._drawn(np.arange(self.boxes.offsets[i], self.boxes.offsets[i + 1]), size)]
        return drawn

    def relabel(self, classes: Classes, /) -> Self:
        """See `LabelIndex`."""
        return replace(self, classes=classes, values=moved_labels(self.classes, classes)[self.values])

    @abstractmethod
    def _drawn(self, rows: NDArray[np.int64], size: Size) -> LabelPixels:
        """The label map of the objects at `rows`, with the labels of `label_of_class`."""


def outlined_pixels(outline: Segmentation, size: Size) -> NDArray[np.bool_]:
    """[H, W]: the pixels inside an outline, by the rule of pycocotools. ValueError where it is for another size."""
    if isinstance(outline, list):
        return decoded_mask(mask.merge(mask.frPyObjects(outline, *size)))
    if outline["size"] != [*size]:
        raise ValueError(f"the image is {size[0]} x {size[1]} (height x width), the run lengths of an outline are for "
                         f"{outline['size']}; export the annotations again from these images")
    return decoded_mask(outline)


def decoded_mask(encoded: dict[str, object]) -> NDArray[np.bool_]:
    """[H, W]: a mask of pycocotools."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 and numpy 2
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        found: NDArray[np.bool_] = mask.decode(encoded).astype(np.bool_)
    return found
