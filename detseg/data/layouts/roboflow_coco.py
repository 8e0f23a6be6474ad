"""Roboflow's COCO export: an annotation file beside the images of each split.

    train/
      _annotations.coco.json
      IMG_0001_jpg.rf.4f0f1d.jpg
    valid/
      _annotations.coco.json
    test/
"""

from __future__ import annotations

from pathlib import Path

from detseg.data.layouts.coco_files import coco_part
from detseg.data.layouts.layout import Found, Layout, PartName, Place, listed, split_folders

_NAME = "_annotations.coco.json"


def find(place: Place) -> Found | None:
    """By the name of the annotation files, in the folder itself or in its splits."""
    root = place.path
    folders: dict[PartName, Path] = {"whole": root} if (root / _NAME).is_file() else split_folders(root)
    files = {split: path / _NAME for split, path in folders.items() if (path / _NAME).is_file()}
    if not files:
        return None
    parts = {split: coco_part(split, path, place.images or path.parent) for split, path in files.items()}
    return Found(f"it has {listed(files, root)}", parts)


LAYOUT = Layout("Roboflow, COCO", __doc__, f"train/{_NAME}, valid/{_NAME}", find, boxes=True, label_maps="outlines")
