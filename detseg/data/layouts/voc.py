"""PASCAL VOC, and CVAT's export of it, whose one list is default.txt.

    Annotations/
      2007_000027.xml
    JPEGImages/
      2007_000027.jpg
    ImageSets/
      Main/
        train.txt
        val.txt
"""

from __future__ import annotations

from functools import partial

from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, listed
from detseg.data.voc import read_voc

_LISTS: dict[str, PartName] = {"train": "train", "val": "val", "test": "test", "default": "whole"}


def find(place: Place) -> Found | None:
    """By the lists of images. Of a set with trainval.txt and no train.txt, that is the training split; a list itself
    may be named."""
    path = place.path
    if path.is_file():
        if path.suffix != ".txt" or path.parent.parent.name != "ImageSets":
            return None
        root, files = path.parent.parent.parent, {path.stem: path}
        wanted: dict[str, PartName] = {path.stem: "whole"}
    else:
        root = path
        files = {file.stem: file for file in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
        wanted = dict(_LISTS)
        if "train" not in files:
            wanted["trainval"] = "train"
    parts: dict[PartName, Part] = {
        name: Part(files[stem], boxes=partial(read_voc, root, stem)) for stem, name in wanted.items() if stem in files}
    if not parts or not (root / "Annotations").is_dir():
        return None
    return Found(f"it has {listed({name: part.where for name, part in parts.items()}, root)} and Annotations/", parts)


LAYOUT = Layout("PASCAL VOC", __doc__, "ImageSets/Main/train.txt (or val, trainval, test, default) and Annotations/",
                find, boxes=True, ids_are_names=True)
