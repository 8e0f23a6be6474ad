"""What an analysis gives: plain values that a terminal, a page and a file show alike."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from detseg.analysis.thresholds import ScoreThresholds
from detseg.atomic import write_text
from detseg.structures import MetricTable


class TitledTable(NamedTuple):
    """A table and what it is about."""

    title: str
    table: MetricTable


@dataclass(frozen=True, kw_only=True)
class Analysis(ABC):
    """Why a network has its score on some images. Numbers that do not exist are NaN, in JSON null."""

    kind: ClassVar[str]
    """"detection" or "segmentation"."""
    num_images: int
    numbers: Mapping[str, float]
    """The official ones, see the task's metric."""
    findings: tuple[str, ...]
    """What stands out and what to do about it, a sentence or two each, the most important first."""

    @abstractmethod
    def tables(self) -> tuple[TitledTable, ...]:
        """Everything but lists of images, for people."""

    def score_thresholds(self, *, weights: str, data: str) -> ScoreThresholds | None:
        """The score from which each class is best shown; None where predictions have none, or nothing right was
        found. Of the digest of the weights, and where the data lie."""
        return None

    def to_json(self) -> str:
        """All of it, by the names of the fields."""
        return json.dumps(_plain({"kind": self.kind, **asdict(self)}), allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Writes `to_json` atomically."""
        write_text(path, self.to_json())


def _plain(value: Any) -> Any:
    """With null where a number does not exist, and no more digits than mean something."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
