"""The bundles that travel between the parts: targets, predictions, classes.

Shape letters as in `detseg.interfaces`. A box is xyxy in pixels, x to the right, y down, unless its name says
otherwise; a size is always (height, width). Images are RGB with values 0..255, as uint8 or float32. Classes are 0..K-1
with no background in detection; -1 marks padding. A label map holds a class for each pixel, and VOID where none is
known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""

Threshold: TypeAlias = float | Sequence[float]
"""The score from which predictions are shown: one for all classes, or one for each, [K]."""
USUAL_THRESHOLD = 0.4
"""Where nobody has measured a better one."""

Pixels: TypeAlias = NDArray[np.uint8]
"""A decoded image, uint8 [H, W, 3] RGB."""

LabelPixels: TypeAlias = NDArray[np.uint8]
"""The classes of an image's pixels, uint8 [H, W]: 0..K-1, or VOID."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in 0..1, as most published weights expect."""

VOID = 255
"""The label of a pixel of which nothing is known or asked: ignored by the loss and not counted."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set: names, the ids they have in its files, and a colour for pictures.

    Inside, class k is position k; `source_ids` maps back to files (COCO's ids run from 1 to 90 with gaps). A name that
    starts with "unused" is a slot that published networks have and no data uses.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]
    colours: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a data set needs at least one class, got none")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"class names must differ, these stand twice: {', '.join(twice)}")
        if len(self.source_ids) != len(self.names) or len(set(self.source_ids)) != len(self.source_ids):
            raise ValueError(f"{len(self.names)} classes need as many different ids, got {list(self.source_ids)}")
        if not self.colours:
            object.__setattr__(self, "colours", tuple(_distinct_colour(k) for k in range(len(self.names))))
        if len(self.colours) != len(self.names):
            raise ValueError(f"{len(self.names)} classes need as many colours, got {len(self.colours)}")

    def __len__(self) -> int:
        return len(self.names)

    def as_plain(self) -> dict[str, Any]:
        """Lists by name, for files."""
        return {"names": list(self.names), "source_ids": list(self.source_ids),
                "colours": [list(colour) for colour in self.colours]}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The way back. KeyError where a list is missing, ValueError where they make no classes."""
        return cls(names=tuple(values["names"]), source_ids=tuple(values["source_ids"]),
                   colours=tuple((red, green, blue) for red, green, blue in values["colours"]))

    @property
    def used(self) -> dict[int, str]:
        """Source id to name of every class that data can contain."""
        pairs = zip(self.source_ids, self.names, strict=True)
        return {source_id: name for source_id, name in pairs if not name.startswith("unused")}

    def thresholds(self, measured: Mapping[str, float] | None) -> tuple[float, ...]:
        """[K]: the score from which each class is shown; `measured`: by name, where somebody has measured it."""
        return tuple((measured or {}).get(name, USUAL_THRESHOLD) for name in self.names)

    def common(self, other: Classes) -> tuple[str, ...]:
        """The names of the used classes that both have, in this order."""
        theirs = set(other.used.values())
        return tuple(name for name in self.used.values() if name in theirs)

    def difference(self, other: Classes) -> str:
        """What tells two lists of classes apart, for an error message; empty where their used classes agree."""
        mine, theirs = self.used, other.used
        lines = [f"  id {i}: {mine.get(i, 'absent')!r} here, {theirs.get(i, 'absent')!r} there"
                 for i in sorted(mine.keys() | theirs.keys()) if mine.get(i) != theirs.get(i)]
        return "\n".join(lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else []))


def _distinct_colour(k: int) -> tuple[int, int, int]:
    """Bright RGB colours that stay apart: golden-angle steps around the hue circle."""
    import colorsys

    red, green, blue = colorsys.hsv_to_rgb((k * 0.618033988749895) % 1.0, 0.85 - 0.25 * (k % 2), 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


class BoxTargets(NamedTuple):
    """True boxes of one image ([M, ...]) or, padded, of a batch ([B, M, ...])."""

    boxes: Tensor
    """float32 [..., M, 4] xyxy in network pixels; padding is zeros."""
    labels: Tensor
    """int64 [..., M], 0..K-1; padding is -1."""
    crowd: Tensor
    """bool [..., M]: a region ignored by the loss, neither positive nor negative."""
    seed: Tensor | None = None
    """int64 [], of a batch [B]: what a head draws at random for an image follows from it, however a batch is split.
    None draws from torch's random state."""


class DenseBoxes(NamedTuple):
    """A detector's boxes and class probabilities before suppression."""

    boxes: Tensor
    """float [B, N, 4] xyxy in network pixels, clipped to the image; [B, N, K, 4] where each class has its own."""
    scores: Tensor
    """float [B, N, K] in 0..1, no background."""


class Detections(NamedTuple):
    """Finished detections of a batch: R rows for each image, best first, of which the first `num_valid` are valid."""

    boxes: Tensor
    """float [B, R, 4] xyxy in network pixels; unused rows are zeros."""
    scores: Tensor
    """float [B, R]; unused rows are 0."""
    labels: Tensor
    """int64 [B, R]; unused rows are -1."""
    num_valid: Tensor
    """int64 [B]."""


class ImageDetections(NamedTuple):
    """The detections of one image in its original pixels, best first."""

    image_id: int
    boxes: Tensor
    """float [R, 4] xyxy, inside the image."""
    scores: Tensor
    """float [R]."""
    labels: Tensor
    """int64 [R]."""

    def shown(self, threshold: Threshold) -> Tensor:
        """bool [R]: those of at least the threshold, each of its class where there are several."""
        if isinstance(threshold, int | float):
            return self.scores.double() >= threshold
        return self.scores.double() >= self.scores.new_tensor(threshold, dtype=torch.float64)[self.labels]


class LabelTargets(NamedTuple):
    """The label map of one image ([H, W]) or of a batch ([B, H, W])."""

    labels: Tensor
    """uint8 [..., H, W] in network pixels: 0..K-1, or VOID."""


class DenseLogits(NamedTuple):
    """A segmenter's scores, at the cells where it gives them; `ops.resample` enlarges them to the image."""

    logits: Tensor
    """float32 [B, K, h, w]."""
    size: Size
    """Of the network's image."""
    align_corners: bool = False
    """Whether they are enlarged corner to corner, as by `torch.nn.functional.interpolate`."""


class LabelMaps(NamedTuple):
    """The finished label maps of a batch."""

    labels: Tensor
    """uint8 [B, H, W], 0..K-1, in network pixels."""


class ImageLabels(NamedTuple):
    """The label map of one image in its original pixels."""

    image_id: int
    labels: LabelPixels
    """Without VOID: a network has an answer everywhere."""


class ClassTargets(NamedTuple):
    """The class of one image ([]) or of each of a batch ([B])."""

    labels: Tensor
    """int64, 0..K-1, or -1: ignored by the loss."""


class ClassScores(NamedTuple):
    """A classifier's probabilities."""

    scores: Tensor
    """float32 [B, K] in 0..1; they add up to 1."""


class TopClasses(NamedTuple):
    """The finished classes of a batch: R rows for each image, best first."""

    scores: Tensor
    """float [B, R]."""
    labels: Tensor
    """int64 [B, R]."""


class ImageClasses(NamedTuple):
    """The best classes of one image."""

    image_id: int
    scores: Tensor
    """float [R], best first."""
    labels: Tensor
    """int64 [R]."""


class MetricTable(NamedTuple):
    """Numbers in the rows that people of the field are used to, as plain values: for a terminal, a page or a file."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]
    """A float is a number of the metric, NaN where it does not exist."""
    sections: tuple[int, ...] = ()
    """Behind which rows a group of them ends."""
    notes: tuple[str, ...] = ()
    """What to read below the table."""
    more: tuple[MetricTable, ...] = ()
    """Tables to follow."""
