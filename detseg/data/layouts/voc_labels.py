"""PASCAL VOC's label maps: palette images with VOC's 21 classes.

    SegmentationClass/
      2007_000032.png
    JPEGImages/
      2007_000032.jpg
    ImageSets/
      Segmentation/
        train.txt
        val.txt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detseg.data.layouts.layout import SPLITS, Found, Layout, Part, PartName, Place, listed
from detseg.data.voc import read_voc_labels, voc_segmentation_list


def find(place: Place) -> Found | None:
    """By the lists of images."""
    files: dict[PartName, Path] = {
        split: path for split in SPLITS if (path := voc_segmentation_list(place.path, split)).is_file()}
    if not files:
        return None
    return Found(f"it has {listed(files, place.path)}", {
        split: Part(path, labels=partial(read_voc_labels, place.path, split)) for split, path in files.items()})


LAYOUT = Layout("PASCAL VOC's label maps", __doc__, "ImageSets/Segmentation/train.txt and SegmentationClass/", find,
                label_maps="files")
