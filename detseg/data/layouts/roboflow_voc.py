"""Roboflow's PASCAL VOC export: XML files beside the images of each split.

    train/
      IMG_0001_jpg.rf.4f0f1d.jpg
      IMG_0001_jpg.rf.4f0f1d.xml
    valid/
    test/
"""

from __future__ import annotations

from detseg.data.layouts.layout import Found, Layout, Place, split_folders
from detseg.data.layouts.xml_files import xml_files, xml_parts


def find(place: Place) -> Found | None:
    """By the XML files in the folders of the splits."""
    root = place.path
    splits = {split: [f"{folder.name}/{name}" for name in xml_files(folder)]
              for split, folder in split_folders(root).items()}
    there = {split: names for split, names in splits.items() if names}
    if not there:
        return None
    names = [name for own in there.values() for name in own]
    folders = ", ".join(own[0].partition("/")[0] + "/" for own in there.values())
    return Found(f"there are XML files with an annotation in {folders}",
                 xml_parts(root, there, names, images=place.images))


LAYOUT = Layout("Roboflow, PASCAL VOC", __doc__, "XML files beside the images in train/ and valid/", find, boxes=True,
                ids_are_names=True)
