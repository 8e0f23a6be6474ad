"""Black and white masks: 0 is background and 255 the foreground.

    images/
      scan 1.png
    masks/
      scan 1.png

The folders may have splits. A classes.txt with the names alone, one a line, renames the two: background, then
foreground.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from detseg.data.label_index import LabelFiles, label_table, read_label_image
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place
from detseg.data.layouts.mask_folders import MaskFolders, mask_folders, pairs, probed_masks, said
from detseg.data.masks import class_file
from detseg.structures import Classes

_VALUES = (0, 255)
_NAMES = ("background", "foreground")
_COLOURS = ((0, 0, 0), (250, 250, 250))
_HINT = "Black and white masks have 0 and 255 alone: was this one saved as JPEG, or resized with smoothing?"


def find(place: Place) -> Found | None:
    """By the values of a few masks, which are 0 and 255; a classes.txt with numbers means another layout."""
    root = place.path
    if _names(root) is None:
        return None
    folders = {split: pair for split, pair in mask_folders(root).items() if _is_binary(pair)}
    if not folders:
        return None
    parts: dict[PartName, Part] = {
        split: Part(pair.masks, labels=partial(_read, root, pair)) for split, pair in folders.items()}
    return Found(f"the masks of {said(folders, root)} have the values 0 and 255 only", parts)


def _names(root: Path) -> tuple[str, str] | None:
    """Of background and foreground; None where classes.txt is of another kind."""
    listing = class_file(root)
    if not listing.is_file():
        return _NAMES
    names = [line.strip() for line in listing.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
    if not 1 <= len(names) <= 2 or any(name[0].isdigit() or name.startswith("#") for name in names):
        return None
    return (_NAMES[0], names[0]) if len(names) == 1 else (names[0], names[1])


def _is_binary(folders: MaskFolders) -> bool:
    seen: set[int] = set()
    for path in probed_masks(folders):
        try:
            stored, palette = read_label_image(path)
        except (OSError, ValueError):
            continue
        if palette is not None:
            return False
        seen.update(np.unique(stored).tolist())
        if not seen <= {*_VALUES}:
            return False
    return 255 in seen


def _read(root: Path, folders: MaskFolders) -> LabelFiles:
    found, faults = pairs(root, folders)
    classes = Classes(_names(root) or _NAMES, _VALUES, _COLOURS)
    return replace(LabelFiles.of(classes, root, found, table=label_table(_VALUES), hint=_HINT), faults=faults)


LAYOUT = Layout("black and white masks", __doc__, "images/ and masks/ whose values are 0 and 255", find,
                label_maps="files")
