"""CVAT's COCO export, and what is named like it.

    annotations/
      instances_default.json
    images/
      frame_000001.png

A project with subsets has annotations/instances_train.json and images/train/ for each of them.
"""

from __future__ import annotations

from pathlib import Path

from detseg.data.layouts.coco_files import coco_part, images_folder, is_coco
from detseg.data.layouts.layout import Found, Layout, PartName, Place, listed, split_of

_START = "instances_"


def find(place: Place) -> Found | None:
    """By the beginning of the annotation files' names and their content."""
    root = place.path
    files: dict[PartName, Path] = {}
    for path in sorted((root / "annotations").glob(f"{_START}*.json")):
        split = split_of(path.stem)
        name: PartName = split or "whole"
        if not is_coco(path):
            continue
        if name in files:
            return None  # which of the two is meant is for the user to say
        files[name] = path
    if not files:
        return None
    parts = {split: coco_part(split, path, images_folder(path, root, subset=path.stem.removeprefix(_START),
                                                         given=place.images))
             for split, path in files.items()}
    return Found(f"it has {listed(files, root)}", parts)


LAYOUT = Layout("CVAT, COCO", __doc__, "annotations/instances_default.json and images/", find, boxes=True,
                label_maps="outlines")
