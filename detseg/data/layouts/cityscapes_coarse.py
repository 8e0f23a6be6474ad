"""Cityscapes' coarse label maps, where there are no fine ones.

    leftImg8bit/
      train/
      train_extra/
        erlangen/
          erlangen_000000_000000_leftImg8bit.png
      val/
    gtCoarse/
      train/
      train_extra/
        erlangen/
          erlangen_000000_000000_gtCoarse_labelIds.png
      val/

The split train_extra is trained on where there is no train; or name gtCoarse/ itself with --data, and the fine
validation images with --val.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from detseg.data.cityscapes import cityscapes_images, cityscapes_maps, read_cityscapes
from detseg.data.label_index import LabelIndex
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, listed

_MAPS: Literal["gtCoarse"] = "gtCoarse"
_Split = Literal["train", "train_extra", "val"]


def find(place: Place) -> Found | None:
    """By the folders of the label maps."""
    root = place.path.parent if place.path.name == _MAPS else place.path
    there: dict[PartName, _Split] = {}
    wanted: tuple[tuple[PartName, _Split], ...] = (("train", "train_extra"), ("train", "train"), ("val", "val"))
    for split, name in wanted:
        if cityscapes_maps(root, name, maps=_MAPS).is_dir() and cityscapes_images(root, name).is_dir():
            there[split] = name
    if not there:
        return None
    folders = {split: cityscapes_maps(root, name, maps=_MAPS) for split, name in there.items()}
    return Found(f"it has {listed(folders, root)}", {
        split: Part(folders[split], labels=partial(_read, root, name)) for split, name in there.items()})


def _read(root: Path, split: _Split) -> LabelIndex:
    return read_cityscapes(root, split, maps=_MAPS)


LAYOUT = Layout("Cityscapes, coarse", __doc__, "gtCoarse/train/ (or train_extra) and leftImg8bit/train/", find,
                label_maps="files")
