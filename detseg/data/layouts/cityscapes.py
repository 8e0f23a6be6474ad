"""Cityscapes' fine label maps.

    leftImg8bit/
      train/
        aachen/
          aachen_000000_000019_leftImg8bit.png
      val/
    gtFine/
      train/
        aachen/
          aachen_000000_000019_gtFine_labelIds.png
      val/
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detseg.data.cityscapes import cityscapes_images, cityscapes_maps, read_cityscapes
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import SPLITS, Found, Layout, Part, PartName, Place, Split, listed


def find(place: Place) -> Found | None:
    """By the folders of the label maps."""
    root = place.path
    folders: dict[PartName, Path] = {
        split: path for split in SPLITS if (path := cityscapes_maps(root, split)).is_dir()}
    if not folders:
        return None
    return Found(f"it has {listed(folders, root)}", {
        split: Part(cityscapes_maps(root, split), labels=partial(_read, root, split))
        for split in SPLITS if split in folders})


def _read(root: Path, split: Split) -> LabelIndex:
    if not (images := cityscapes_images(root, split)).is_dir():
        raise FileNotFoundError(f"{cityscapes_maps(root, split)} is there, but the folder {images} with its images is "
                                "not; unpack leftImg8bit_trainvaltest.zip there")
    return read_cityscapes(root, split)


LAYOUT = Layout("Cityscapes", __doc__, "gtFine/train/ and leftImg8bit/train/, the same of val", find,
                label_maps="files")
