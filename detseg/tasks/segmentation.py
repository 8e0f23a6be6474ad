"""What is particular to segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from detseg.interfaces import Source, Task
from detseg.ops.resample import label_map
from detseg.structures import VOID, DenseLogits, ImageLabels, LabelMaps, LabelTargets, Size


@dataclass(frozen=True)
class Segmentation(Task[LabelTargets, DenseLogits, LabelMaps, ImageLabels]):
    """A class for every pixel."""

    scored: ClassVar[bool] = False
    label_maps: ClassVar[bool] = True

    def collate_targets(self, targets: Sequence[LabelTargets], size: Size) -> LabelTargets:
        """Label maps stacked, smaller ones padded at the end with VOID."""
        labels = torch.full((len(targets), *size), VOID, dtype=torch.uint8)
        for row, one in enumerate(targets):
            height, width = one.labels.shape
            labels[row, :height, :width] = one.labels
        return LabelTargets(labels)

    def postprocess(self, dense: DenseLogits, *, static: bool = False) -> LabelMaps:
        """The class of the highest score, the first of equals."""
        return LabelMaps(label_map(dense, static=static))

    def to_original(self, finished: LabelMaps, sources: Sequence[Source]) -> list[ImageLabels]:
        """Label maps of the original size: each pixel has the label of the network's pixel in which its centre lies."""
        return [ImageLabels(source.image_id, source.placement.labels_to_original(labels.numpy(), source.size))
                for labels, source in zip(finished.labels.cpu(), sources, strict=True)]
