"""All splits of a data set at once, for who checks or converts it."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from detseg.data.box_index import BoxIndex
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Layout, PartName, Place
from detseg.data.layouts.reader import LayoutReader
from detseg.data.location import Location, agreeing, read_splits

IndexT = TypeVar("IndexT", BoxIndex, LabelIndex)


class Parts(NamedTuple, Generic[IndexT]):
    """The splits that could be read, and those that could not."""

    layout: Layout
    lines: tuple[str, ...]
    """How the data were recognised, and split."""
    indexes: dict[PartName, IndexT]
    """By split; "whole" where there is none."""
    failures: dict[PartName, str]
    """Why a split cannot be read."""


def read_parts(reader: LayoutReader[IndexT], location: Location) -> Parts[IndexT]:
    """Every split that lies at a location, or with its `val` or `val_share` those that it makes; then a split named
    test is given too.

    Raises what the reader's `find` and `read_splits` do.
    """
    split_here = location.val is not None or location.val_share is not None
    found = reader.find(Place(location.path, location.images))
    indexes: dict[PartName, IndexT] = {}
    failures: dict[PartName, str] = {}
    lines: tuple[str, ...] = (f"layout of {location}: {found}",)
    if split_here:
        splits = read_splits(reader, location)
        indexes, lines = {"train": splits.train, "val": splits.val}, splits.lines
    for name, read in found.parts.items():
        if split_here and name != "test":
            continue
        try:
            indexes[name] = read()
        except (OSError, ValueError) as problem:
            failures[name] = str(problem)
    if found.layout.ids_are_names and len(indexes) > 1:
        indexes = dict(zip(indexes, agreeing([*indexes.values()]), strict=True))
    return Parts(found.layout, lines, indexes, failures)
