"""A copy of a data set without what a check has found broken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detseg.atomic import new_folder
from detseg.data.box_index import BoxIndex
from detseg.data.check import Checked
from detseg.data.check.boxes import same_boxes
from detseg.data.convert import PutImage, write_coco, write_masks
from detseg.data.images import read_image
from detseg.data.layouts.layout import PartName
from detseg.structures import Size

_IDENTICAL = 0.99
"""IoU from which a second box of a class on an object is left out."""
_QUALITY = 95
"""Of a JPEG that is written upright."""
_KEPT = ("images in two splits", "near copies in two splits", "unequal classes", "near names", "nothing to learn",
         "two classes", "unreadable split")
"""What nobody but a person can decide."""


def write_clean(folder: Path, checked: Checked) -> str:
    """Writes what was checked into a folder that is new: boxes in COCO's layout, label maps as a folder of masks, both
    in folders of their own where there are both.

    Left out are broken images and records, boxes without an area inside their image, and a second box of a class on
    one object; other boxes are clipped, and images that EXIF data turn are written upright. changes.txt lists all that,
    and what a person has to decide. Gives a sentence. ValueError where nothing is left, or the folder is not empty.
    """
    changes: list[str] = []
    with new_folder(folder) as unfinished:
        both = checked.boxes is not None and checked.labels is not None
        put = _upright(checked)
        if checked.boxes is not None:
            boxes = {name: index for name, whole in checked.boxes.indexes.items()
                     if len(index := _clean_boxes(whole, name, checked, changes))}
            write_coco(_inside(unfinished, "boxes" if both else ""), _not_empty(boxes, folder), put)
        if checked.labels is not None:
            labels = {}
            for name, whole in checked.labels.indexes.items():
                changes += (f"{name}: {fault}: left out" for fault in whole.faults)
                good = [i for i in range(len(whole)) if whole.path(i) not in checked.broken]
                changes += (f"{name}: {whole.path(i)}: the image and its label map left out, one of them is broken"
                            for i in range(len(whole)) if whole.path(i) in checked.broken)
                if good:
                    labels[name] = whole.select(good)
            write_masks(_inside(unfinished, "label_maps" if both else ""), _not_empty(labels, folder), put)
        changes += (f"{path}: written upright" for path in sorted(checked.turned - checked.broken))
        left = [f"{finding.kind}: {finding}" for finding in checked.report.findings if finding.kind in _KEPT]
        text = "\n".join([*(changes or ["nothing was changed"]), *(["", "left as it is, for you to decide:", *left]
                                                                    if left else [])])
        (unfinished / "changes.txt").write_text(f"{text}\n", "utf-8", "surrogateescape")
    return f"written: {folder}, a copy with {len(changes)} changes, which its changes.txt lists"


def _not_empty(parts: Mapping[PartName, object], folder: Path) -> Mapping[PartName, Any]:
    if not parts:
        raise ValueError(f"{folder} was not written: no image is left")
    return parts


def _inside(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


def _clean_boxes(index: BoxIndex, split: str, checked: Checked, changes: list[str]) -> BoxIndex:
    changes += (f"{split}: {fault}: left out" for fault in index.faults)
    changes += (f"{split}: {index.path(i)}: left out, it is broken" for i in range(len(index))
                if index.path(i) in checked.broken)
    sound = index.select([i for i in range(len(index)) if index.path(i) not in checked.broken])
    image_of_box = sound.image_of_box()
    corners = sound.corners()
    clipped = np.clip(corners, 0, np.tile(sound.sizes[image_of_box][:, ::-1], 2).reshape(-1, 4))
    clipped = np.where(np.all(sound.boxes[:, 2:] > 0, axis=1)[:, None], clipped, corners)
    boxes = np.concatenate([clipped[:, :2], clipped[:, 2:] - clipped[:, :2]], axis=1)
    empty = np.any(boxes[:, 2:] <= 0, axis=1)
    moved = np.any(clipped != corners, axis=1) & ~empty
    again = np.zeros(len(boxes), np.bool_)
    for _, (first, second) in same_boxes(sound, least=_IDENTICAL):
        again[second] |= sound.labels[first] == sound.labels[second]
    for row in np.flatnonzero(empty | moved | again).tolist():
        what = ("left out, it has no area inside the image" if empty[row] else
                "left out, there is another of its class on the same object" if again[row] else
                f"clipped from {_shown(sound.boxes[row])} to {_shown(boxes[row])}")
        changes.append(f"{split}: {sound.path(int(image_of_box[row]))}: annotation {sound.annotation_ids[row]} "
                       f"({sound.classes.names[sound.labels[row]]}): {what}")
    kept = ~empty & ~again
    cleaned = BoxIndex.of(
        sound.classes, sound.folder, image_ids=sound.image_ids, sizes=sound.sizes,
        names=[os.path.relpath(sound.path(i), sound.folder) for i in range(len(sound))],
        image_of_box=image_of_box[kept], boxes=np.where(moved[:, None], boxes, sound.boxes)[kept],
        labels=sound.labels[kept], crowd=sound.crowd[kept],
        areas=np.where(moved & (sound.areas > boxes.prod(axis=1)), boxes.prod(axis=1), sound.areas)[kept],
        annotation_ids=sound.annotation_ids[kept])
    return replace(cleaned, outlines=sound.outlines)


def _shown(box_xywh: Any) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box_xywh.tolist()) + "]"


def _upright(checked: Checked) -> PutImage:
    """Copies an image; one that EXIF data turn is written as its annotations see it, without these data."""
    def put(source: Path, size: Size, target: Path) -> None:
        if source not in checked.turned:
            shutil.copyfile(source, target)
            return
        known = Image.registered_extensions().get(target.suffix.lower(), "")
        # Readers go by the content, so a PNG under any name is read.
        Image.fromarray(read_image(source, size=size)).save(
            target, format="JPEG" if known in ("JPEG", "MPO") else "PNG", quality=_QUALITY, subsampling=0)

    return put
