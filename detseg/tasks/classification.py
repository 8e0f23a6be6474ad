"""What is particular to the classification of whole images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from detseg.interfaces import Source, Task
from detseg.structures import ClassScores, ClassTargets, ImageClasses, Size, TopClasses


@dataclass(frozen=True)
class Classification(Task[ClassTargets, ClassScores, TopClasses, ImageClasses]):
    """A class for every image.

    top: so many classes are told of each, the best; all, where there are fewer.
    """

    scored: ClassVar[bool] = False
    """An image always has its best classes: no threshold leaves them out."""
    top: int = 5

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top is the number of classes that are told of an image, at least 1, got {self.top}")

    def collate_targets(self, targets: Sequence[ClassTargets], size: Size) -> ClassTargets:
        """The classes of all images."""
        return ClassTargets(torch.stack([one.labels for one in targets]))

    def postprocess(self, dense: ClassScores, *, static: bool = False) -> TopClasses:
        """The best classes; no shape depends on a value in either form."""
        scores, labels = dense.scores.topk(min(self.top, dense.scores.shape[1]), dim=1)
        return TopClasses(scores, labels)

    def to_original(self, finished: TopClasses, sources: Sequence[Source]) -> list[ImageClasses]:
        """The rows of each image; a class has no place in it."""
        return [ImageClasses(source.image_id, scores, labels)
                for source, scores, labels in zip(sources, finished.scores, finished.labels, strict=True)]
