"""The label maps of a split, whatever kind of files they are read from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from detseg.interfaces import VOID, Classes, LabelPixels, Size


class LabelIndex(ABC):
    """Images by position, each with its label map; labels are positions in `classes`, or VOID."""

    classes: Classes
    notes: tuple[str, ...]
    """What a person should know about these label maps and that is no error."""
    image_ids: NDArray[np.int64]
    """[number of images], each different."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @abstractmethod
    def path(self, i: int) -> Path:
        """The image file."""

    @abstractmethod
    def labels(self, i: int, size: Size) -> LabelPixels:
        """The label map of an image of this size; a ValueError where the two differ in size, or a label is unknown."""

    @abstractmethod
    def relabel(self, classes: Classes, /) -> Self:
        """The same label maps with labels that are positions in `classes`, matched by source id; a ValueError where a
        class is not among them."""


def label_table(classes: Classes, void: Sequence[int] = ()) -> NDArray[np.int16]:
    """[256]: the label that a source id means, VOID for the ids in `void`, -1 for ids that are neither."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(void)] = VOID
    table[list(classes.source_ids)] = np.arange(len(classes))
    return table


def to_labels(source_ids: LabelPixels, table: NDArray[np.int16], *, classes: Classes, what: str) -> LabelPixels:
    """An image of source ids to labels. A ValueError with the histogram where `table` does not know one."""
    mapped = table[source_ids]
    if mapped.min(initial=0) < 0:
        raise ValueError(unknown_labels(what, source_ids, table, classes.used))
    return mapped.astype(np.uint8)


def unknown_labels(what: str, source_ids: LabelPixels, table: NDArray[np.int16], known: Mapping[int, str]) -> str:
    """The message about label values that no class has: which values the file has, and how many pixels of each."""
    values, counts = np.unique(source_ids, return_counts=True)
    histogram = ", ".join(f"{value} x {count}{'' if table[value] >= 0 else ' (unknown)'}"
                          for value, count in zip(values.tolist(), counts.tolist(), strict=True))
    classes = ", ".join(f"{source_id} {name}" for source_id, name in known.items())
    return (f"{what} has label values that are no class. Values and their numbers of pixels: {histogram}. "
            f"Classes: {classes}")
