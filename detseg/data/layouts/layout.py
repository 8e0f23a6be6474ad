"""What a layout is: how a kind of data set is recognised where it lies, and who reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from detseg.data.box_index import BoxIndex
from detseg.data.class_index import ClassIndex
from detseg.data.label_index import LabelIndex

Split: TypeAlias = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")

PartName: TypeAlias = Literal["train", "val", "test", "whole"]
"""A split, or the whole of a data set that has none."""

_WORDS: Mapping[str, PartName] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

_SPLIT_FOLDER = re.compile(r"[A-Za-z]+(?:20\d\d)?")


class Place(NamedTuple):
    """Where a data set is looked for."""

    path: Path
    """A folder or an annotation file."""
    images: Path | None = None
    """The folder of the images, where somebody says it."""


class Part(NamedTuple):
    """A split as it was found; nothing of it is read before it is asked for."""

    where: Path
    """The file or folder it was found by."""
    boxes: Callable[[], BoxIndex] | None = None
    labels: Callable[[], LabelIndex] | None = None
    classes: Callable[[], ClassIndex] | None = None
    """Of whole images."""


class Found(NamedTuple):
    """A data set that was recognised."""

    why: str
    """What it was recognised by; goes on after "because"."""
    parts: Mapping[PartName, Part]


class Layout(NamedTuple):
    """A kind of data set."""

    title: str
    page: str
    """The docstring of its module: a sentence, and the tree of its files."""
    looks_for: str
    """What it is recognised by, in general."""
    find: Callable[[Place], Found | None]
    """Looks at names and at the beginning of a few files; None where it is another kind."""
    boxes: bool = False
    label_maps: Literal["files", "outlines"] | None = None
    """Label maps lie in files, or are drawn from the objects' outlines."""
    ids_are_names: bool = False
    """Classes have names only; their ids are made up and say nothing."""

    @property
    def tree(self) -> str:
        """How its files lie: the first indented block of its page."""
        lines = self.page.splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith("    ")), len(lines))
        last = next((i for i in range(first, len(lines)) if not lines[i].startswith("    ")), len(lines))
        return "\n".join(line[4:] for line in lines[first:last])


def split_of(name: str) -> PartName | None:
    """The split that a file's or folder's name tells: "train2017", "valid", "instances_Validation.json"; None where it
    tells none, or two."""
    told = {_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _WORDS}
    return told.pop() if len(told) == 1 else None


def split_folders(folder: Path) -> dict[PartName, Path]:
    """The sub-folders whose names tell a split; of two for one split, such as "val" and "valid", neither counts."""
    if not folder.is_dir():
        return {}
    named = [(split_of(path.name), path) for path in sorted(folder.iterdir())
             if path.is_dir() and _SPLIT_FOLDER.fullmatch(path.name)]
    told = [split for split, _ in named]
    return {split: path for split, path in named if split is not None and told.count(split) == 1}


def listed(paths: Mapping[PartName, Path], root: Path) -> str:
    """Files or folders for a sentence, relative to the data set's folder."""
    return ", ".join(path.relative_to(root).as_posix() for path in paths.values())


def parts_of_tree(names: Sequence[str]) -> dict[PartName, list[str]]:
    """Files by the split that one of their folders tells; all of them as a whole where not every file has one."""
    parts: dict[PartName, list[str]] = {}
    for name in names:
        told = {split for folder in name.split("/")[:-1] if _SPLIT_FOLDER.fullmatch(folder)
                and (split := split_of(folder)) is not None}
        if len(told) != 1:
            return {"whole": list(names)}
        parts.setdefault(told.pop(), []).append(name)
    return parts


def as_markdown(layouts: Sequence[Layout]) -> str:
    """A table of the layouts, and the tree of each, for a page."""
    rows = ["| layout | recognised by | boxes | label maps |", "|--|--|--|--|"]
    for layout in layouts:
        labels = {None: "", "files": "yes", "outlines": "from outlines"}[layout.label_maps]
        rows.append(f"| {layout.title} | {layout.looks_for} | {'yes' if layout.boxes else ''} | {labels} |")
    trees = [f"**{layout.title}.** {_sentences(layout.page)}\n\n```\n{layout.tree}\n```" for layout in layouts]
    return "\n\n".join(["\n".join(rows), *trees]) + "\n"


TABLE_MARKS = ("<!-- detseg layout-table docs/your_data.md -->", "<!-- end of the table -->")
"""What stands around the table in a page."""


def with_table(text: str, table: str, *, page: str) -> str:
    """A page's text with this table between its marks. ValueError where it lacks them."""
    start, end = TABLE_MARKS
    if text.count(start) != 1 or start not in text.partition(end)[0]:
        raise ValueError(f"{page} lacks the marks of the table: a line {start}, and later {end}")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{table}{end}{rest.partition(end)[2]}"


def _sentences(page: str) -> str:
    """What a page says around its tree, on one line."""
    return " ".join(line.strip() for line in page.splitlines() if line.strip() and not line.startswith("    "))
