"""COCO as its official site packs it.

    annotations/
      instances_train2017.json
      instances_val2017.json
    train2017/
      000000000009.jpg
    val2017/
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from detseg.data.coco import coco_annotations, coco_images
from detseg.data.layouts.coco_files import coco_part
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, listed

_SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
"""COCO keeps the annotations of its test images to itself; converted data have them."""


def find(place: Place) -> Found | None:
    """By the names of the annotation files."""
    root = place.path
    files: dict[PartName, Path] = {}
    parts: dict[PartName, Part] = {}
    for split in _SPLITS:
        annotations = coco_annotations(root, split)
        if annotations.is_file():
            files[split] = annotations
            parts[split] = coco_part(split, annotations, place.images or coco_images(root, split))
    return Found(f"it has {listed(files, root)}", parts) if parts else None


LAYOUT = Layout("COCO", __doc__, "annotations/instances_train2017.json and train2017/, the same of val2017", find,
                boxes=True, label_maps="outlines")
