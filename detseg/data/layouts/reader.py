"""Reads a split in the first of some layouts that is recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from detseg.data.box_index import BoxIndex
from detseg.data.class_index import ClassIndex
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, Split

IndexT = TypeVar("IndexT", bound=BoxIndex | LabelIndex | ClassIndex)

_SHOWN = 12
"""Entries of a folder that a message names."""


@dataclass(frozen=True)
class Recognised(Generic[IndexT]):
    """A data set, and the layout it is in; nothing of it is read yet."""

    place: Place
    layout: Layout
    why: str
    parts: dict[PartName, Callable[[], IndexT]]

    def __str__(self) -> str:
        return f"{self.layout.title}, because {self.why}"

    @property
    def has(self) -> str:
        """Which splits there are, for a message."""
        return "no splits" if [*self.parts] == ["whole"] else f"only {' and '.join(self.parts)}"

    def validation(self) -> tuple[PartName | None, str]:
        """The split that networks are measured on, and a note where it is not named so. `test` is the last resort,
        because a network that is chosen by it has seen it."""
        if "val" in self.parts:
            return "val", ""
        if "test" in self.parts:
            return "test", ("there is no validation split, so the test split takes its place: best.pt is chosen by it, "
                            "and its score no longer says how good the network is on images never looked at; "
                            "--val-share 0.1 keeps a part of train for validation instead")
        return None, ""


@dataclass(frozen=True)
class LayoutReader(Generic[IndexT]):
    """A function `(place, split) -> index`, as configs name it: `Data(read=read_boxes, ...)`.

    Args:
        layouts: in the order in which they are looked for.
        pick: what of a split is read.
        what: "data", "label maps" or "classes", for messages.
        hint: how to get some, for the message where there are none.
    """

    layouts: Sequence[Layout]
    pick: Callable[[Part], Callable[[], IndexT] | None]
    what: str
    hint: str

    def __call__(self, folder: Path, split: Split, /) -> IndexT:
        """The annotations of a split. See `find`, and FileNotFoundError where there is no such split."""
        found = self.find(Place(folder), wanted=split)
        name: PartName | None = split if split == "train" else found.validation()[0]
        if name not in found.parts:
            raise FileNotFoundError(f"no {split} {self.what} in {folder}: it is in the layout {found}, and has "
                                    f"{found.has}")
        assert name is not None
        return found.parts[name]()

    def find(self, place: Place, *, wanted: str = "") -> Recognised[IndexT]:
        """What lies at a place.

        FileNotFoundError that says what was looked for, what is there, and how to get data; `wanted` is the split for
        its first line. ValueError where a layout is recognised and two files are of the same split.
        """
        for layout in self.layouts:
            if (found := layout.find(place)) is not None and (parts := self._parts(found)):
                return Recognised(place, layout, found.why, parts)
        raise FileNotFoundError(self._nothing(place.path, wanted))

    def recognises(self, place: Place) -> Recognised[IndexT] | None:
        """`find`, or None where there is nothing."""
        try:
            return self.find(place)
        except FileNotFoundError:
            return None

    def _parts(self, found: Found) -> dict[PartName, Callable[[], IndexT]]:
        return {name: read for name, part in found.parts.items() if (read := self.pick(part)) is not None}

    def _nothing(self, path: Path, wanted: str) -> str:
        missing = "" if path.exists() else f" (no such {'file' if path.suffix else 'folder'})"
        looked = [f"  {layout.title}: {layout.looks_for}" for layout in self.layouts]
        there = [f"What is there: {_entries(path)}"] if path.is_dir() else []
        what = f"{wanted} {self.what}".strip()
        return "\n".join([f"no {what} in {path}{missing}. Looked for", *looked, *there, self.hint])


def _entries(folder: Path) -> str:
    """What lies in a folder: its sub-folders, and its files by kind."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kinds = Counter(path.suffix.lower() or path.name for path in entries if not path.is_dir())
    few = {kind for kind, number in kinds.items() if number <= 2}
    shown = [f"{path.name}/" for path in entries if path.is_dir()]
    shown += [path.name for path in entries if not path.is_dir() and (path.suffix.lower() or path.name) in few]
    shown = shown[:_SHOWN] + ([f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else [])
    shown += [f"{number} files *{kind}" for kind, number in sorted(kinds.items()) if kind not in few]
    return ", ".join(shown) or "nothing"
