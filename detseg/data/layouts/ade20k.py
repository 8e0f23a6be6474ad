"""Masks as ADE20K's for scene parsing: 0 means nothing, the classes begin with 1.

    images/
      training/
        ADE_train_00000001.jpg
      validation/
    annotations/
      training/
        ADE_train_00000001.png
      validation/
    objectInfo150.txt

objectInfo150.txt names the classes, or a classes.txt as for other masks.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

from detseg.data.label_index import LabelFiles, label_table
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place
from detseg.data.layouts.mask_folders import MaskFolders, mask_folders, pairs, probed_masks, said
from detseg.data.masks import class_file, read_classes
from detseg.structures import VOID, Classes

_FOLDERS = {"train": "training", "val": "validation"}


def find(place: Place) -> Found | None:
    """By the names of the folders."""
    root = place.path
    folders = {split: pair for split, pair in mask_folders(root).items()
               if pair.masks.parent.name == "annotations" and pair.masks.name == _FOLDERS.get(split)
               and any(probed_masks(pair))}
    if not folders:
        return None
    parts: dict[PartName, Part] = {
        split: Part(pair.masks, labels=partial(_read, root, pair)) for split, pair in folders.items()}
    return Found(f"it has {said(folders, root)}", parts)


def _read(root: Path, folders: MaskFolders) -> LabelFiles:
    classes, void = _classes(root)
    found, faults = pairs(root, folders)
    table = label_table(classes.source_ids, void=tuple({0, *void, VOID} - {*classes.source_ids}))
    return replace(LabelFiles.of(classes, root, found, table=table), faults=faults)


def _classes(root: Path) -> tuple[Classes, tuple[int, ...]]:
    """The classes, and values that mean nothing."""
    listing, table = class_file(root), root / "objectInfo150.txt"
    if listing.is_file():
        return read_classes(listing)
    if not table.is_file():
        raise ValueError(f"nothing says what the masks in {root / 'annotations'} mean. Write {listing} with a line "
                         "`ID NAME` for each class, from 1 on, or add ADE20K's objectInfo150.txt")
    rows = list(csv.DictReader(table.read_text("utf-8-sig").splitlines(), delimiter="\t"))
    try:
        # "person, individual, someone" is one class under three names
        names = [row["Name"].split(",")[0].strip() for row in rows]
        ids = [int(row["Idx"]) for row in rows]
        return Classes(tuple(_told_apart(names, ids)), tuple(ids)), ()
    except (KeyError, ValueError, AttributeError):
        raise ValueError(f"{table}: need columns Idx and Name, parted by tabs, as ADE20K has them") from None


def _told_apart(names: list[str], ids: list[int]) -> list[str]:
    return [f"{name} {number}" if names.count(name) > 1 else name for name, number in zip(names, ids, strict=True)]


LAYOUT = Layout("ADE20K", __doc__, "images/training/ and annotations/training/, the same of validation", find,
                label_maps="files")
