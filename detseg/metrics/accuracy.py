"""Top-1 and top-5 accuracy of whole images' classes, in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detseg.data.class_index import ClassIndex
from detseg.interfaces import Metric
from detseg.structures import ImageClasses, MetricTable

_TOP = 5


class Collected(NamedTuple):
    """What is known of some images."""

    ranks: NDArray[np.int64]
    """[n] of every image of the index: at which place its class was told, from 0 on; -1 where it was not among those
    told, -2 where there is no prediction yet."""
    told: NDArray[np.int64]
    """[n]: the best class; -1 where there is no prediction yet."""
    fewest: int | None
    """Classes that were told of an image, the fewest of all; None before the first."""


class Accuracy(Metric[ImageClasses]):
    """The share of images whose class is the best one told, `top1`, or among the best five, `top5`, against the
    classes of `index`.

    As fractions, over all images; with `per_class` also `top1/<class name>`, NaN for a class without images. `top5` is
    NaN where no more than five classes are known, because it would be 1 for any network, and where fewer than five
    are told of an image. There is one implementation, so `reference` changes nothing.
    """

    main = "top1"

    def __init__(self, index: ClassIndex, *, per_class: bool = False, reference: bool = False) -> None:
        self.index = index
        self.per_class = per_class
        self._ranks = np.full(len(index), -2, np.int64)
        self._told = np.full(len(index), -1, np.int64)
        self._fewest: int | None = None
        self._position = {image_id: position for position, image_id in enumerate(index.image_ids.tolist())}

    def update(self, predictions: Sequence[ImageClasses], truths: Sequence[Any]) -> None:
        """Takes the best classes of some images; the true ones are known.

        ValueError: an image that was given before or that the index does not have; the images before it in
        `predictions` have then been taken.
        """
        for image_id, _, labels in predictions:
            position = self._position.get(image_id)
            if position is None:
                raise ValueError(f"image {image_id} is not one of the {len(self.index)} images with classes; evaluate "
                                 "on the data that was predicted")
            if self._ranks[position] != -2:
                raise ValueError(f"image {image_id} was given twice; give each image once")
            found = np.flatnonzero(labels.numpy() == self.index.labels[position])
            self._ranks[position] = found[0] if len(found) else -1
            self._told[position] = int(labels[0])
            self._fewest = len(labels) if self._fewest is None else min(self._fewest, len(labels))

    def collected(self) -> Collected:
        """The place at which every image's class was told, and what was told first."""
        return Collected(self._ranks, self._told, self._fewest)

    def merge(self, collected: Sequence[Collected]) -> None:
        """The images of all processes; an image that two of them have is an error of ours."""
        shares = np.stack([share.ranks for share in collected])
        assert ((shares != -2).sum(0) <= 1).all(), "two processes had the same image"
        self._ranks = shares.max(0, where=shares != -2, initial=-2)
        self._told = np.stack([share.told for share in collected]).max(0)
        self._fewest = min((share.fewest for share in collected if share.fewest is not None), default=None)

    def compute(self) -> dict[str, float]:
        """Every number by name. A ValueError where images of the index are missing."""
        missing = self._ranks == -2
        if missing.any():
            raise ValueError(f"{int(missing.sum())} of {len(self.index)} images have no prediction, image "
                             f"{self.index.image_ids[missing].min()} is the first; accuracy needs all")
        top5 = len(self.index.classes) > _TOP and self._fewest is not None and self._fewest >= _TOP
        numbers = {"top1": _share(self._ranks == 0),
                   "top5": _share((self._ranks >= 0) & (self._ranks < _TOP)) if top5 else math.nan}
        if self.per_class:
            names = self.index.classes.names
            numbers |= {f"top1/{name}": _share(self._ranks[self.index.labels == names.index(name)] == 0)
                        for name in self.index.classes.used.values()}
        return numbers

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """Both numbers and the classes that `numbers` has, best first.

        Where images have been taken, it also says how many images each class has and what those that were missed are
        most often taken for, and names the classes without images.
        """
        by_class = {name: value for name, value in numbers.items() if name.startswith("top1/")}
        rows: list[tuple[str | float, ...]] = [(name, value) for name, value in numbers.items() if name not in by_class]
        end = len(rows) - 1
        for name, value in sorted(by_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])):
            rows.append((name, value, *self._of_class(name.removeprefix("top1/"))))
        absent = self._absent() if by_class else []
        return MetricTable(
            ("measure", "value", *(("images", "most often taken for") if by_class else ())), tuple(rows),
            sections=(end,), notes=(f"no images of: {', '.join(absent)}",) if absent else ())

    def _absent(self) -> list[str]:
        """Which classes have no image."""
        counts = np.bincount(self.index.labels, minlength=len(self.index.classes))
        return [name for name in self.index.classes.used.values()
                if not counts[self.index.classes.names.index(name)]]

    def _of_class(self, name: str) -> tuple[str, str]:
        """How many images the class has; what most of those missed were taken for, and how often of all."""
        of_class = self.index.labels == self.index.classes.names.index(name)
        total, missed = int(of_class.sum()), self._told[of_class & (self._ranks != 0) & (self._told >= 0)]
        if not len(missed):
            return str(total), ""
        counts = np.bincount(missed)
        return str(total), f"{self.index.classes.names[counts.argmax()]} {counts.max() / total:.0%}"


def _share(hits: NDArray[np.bool_]) -> float:
    return int(hits.sum()) / len(hits) if len(hits) else math.nan
