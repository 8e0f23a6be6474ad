"""The score from which each class is shown: found on validation images, kept beside the checkpoint it belongs to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from detseg.atomic import write_text
from detseg.structures import Classes


@dataclass(frozen=True, kw_only=True)
class ScoreThresholds:
    """For each class the score from which F1 at IoU 0.5 was largest, and what it was measured with."""

    weights: str
    """SHA-256 of the network's tensors, see `detseg.export.convert.weights_digest`."""
    data: str
    num_images: int
    all_classes: float
    """Of all detections together: what a class gets of which nothing right was found."""
    classes: Mapping[str, float]
    """By name."""

    def __post_init__(self) -> None:
        for value in (self.all_classes, *self.classes.values()):
            if not 0 <= value <= 1:
                raise ValueError(f"a score threshold lies in 0 to 1, got {value:g}")

    @classmethod
    def of(
        cls, measured: Mapping[str, float], all_classes: float, *, weights: str, data: str, num_images: int
    ) -> Self | None:
        """Of thresholds by class, NaN where there is none; None where no class has one."""
        if math.isnan(all_classes):
            return None
        return cls(weights=weights, data=data, num_images=num_images, all_classes=all_classes,
                   classes={name: value for name, value in measured.items() if not math.isnan(value)})

    def by_class(self, classes: Classes) -> tuple[float, ...]:
        """[K]: one for each class."""
        return tuple(self.classes.get(name, self.all_classes) for name in classes.names)

    def write(self, path: Path) -> None:
        """Writes it atomically, for `read`."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The way back. ValueError where the file is damaged."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged; delete it, or let detseg analyze write it again") from None
