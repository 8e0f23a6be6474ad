"""What a check finds, as data: a terminal and a page show the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from detseg.structures import Size

Level: TypeAlias = Literal["problem", "note"]


IN_TWO_SPLITS = "images in two splits"
"""The kind of what does not keep anybody from training, and from which the score follows."""


class MarkedBox(NamedTuple):
    """A box to draw."""

    xyxy: tuple[float, float, float, float]
    """In the pixels of the original image; possibly beyond it."""
    name: str


class Spot(NamedTuple):
    """One place where something was found."""

    where: str
    """In words: a file, and what of it."""
    image: Path | None = None
    """To show, if it can be decoded."""
    size: Size | None = None
    """(height, width) that its annotations are for."""
    boxes: tuple[MarkedBox, ...] = ()


class Finding(NamedTuple):
    """Something that a person should know. With a problem training refuses the data or learns what is wrong; a note is
    worth a look."""

    level: Level
    kind: str
    """A few words that are the same wherever this is found."""
    text: str
    split: str = ""
    """Where; empty for what concerns several."""
    spots: tuple[Spot, ...] = ()
    """Every place."""

    @property
    def num_places(self) -> int:
        """How many places."""
        return max(1, len(self.spots))

    def __str__(self) -> str:
        return f"{self.split}: {self.text}" if self.split else self.text


class Table(NamedTuple):
    """Numbers, as texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """Everything that a check has found."""

    place: str
    layouts: tuple[str, ...]
    """How the data were recognised."""
    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]
    """The problems first."""
    num_images: int
    """That were decoded."""

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What has to be mended."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is worth a look."""
        return tuple(finding for finding in self.findings if finding.level == "note")

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.problems:
            notes = f"; {counted(len(self.notes), 'note')} worth a look" if self.notes else ""
            too_good = any(finding.kind == IN_TWO_SPLITS for finding in self.findings)
            return f"it can be trained on{', but its score will be too good' if too_good else ''}{notes}"
        counts: dict[str, int] = {}
        for finding in self.problems:
            counts[finding.kind] = counts.get(finding.kind, 0) + finding.num_places
        listed = ", ".join(f"{kind} {number}" for kind, number in counts.items())
        way_out = "; or go on without what is broken: train with --skip-broken, or a copy by --fix DIR" if any(
            kind.startswith("broken") for kind in counts) else ""
        return f"mend first: {counted(sum(counts.values()), 'problem')} ({listed}){way_out}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
