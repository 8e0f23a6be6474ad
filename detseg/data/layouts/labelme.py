"""labelme's files: a JSON file for each image, beside it or elsewhere.

    train/
      street.jpg
      street.json
    val/
    test/

Without folders for the splits, all files together are one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from detseg.data.files import list_files
from detseg.data.labelme import LabelmeSplit, read_labelme, read_labelme_labels
from detseg.data.layouts.layout import Found, Layout, Part, Place, parts_of_tree

_PROBED = 5
_PROBED_BYTES = 1 << 16


def find(place: Place) -> Found | None:
    """By the content of the first JSON files."""
    root = place.path
    if not root.is_dir():
        return None
    names = [name for name in list_files(root, recursive=True) if name.lower().endswith(".json")]
    # Of another kind's thousand files a few are enough to know it.
    if not any(_is_labelme(root / name) for name in names[:_PROBED]):
        return None
    names = [name for name in names if _is_labelme(root / name)]
    everything = tuple(root / name for name in names)
    parts = {}
    for split, own in parts_of_tree(names).items():
        data = LabelmeSplit(root, tuple(root / name for name in own), everything, place.images)
        parts[split] = Part(root, boxes=partial(read_labelme, data), labels=partial(read_labelme_labels, data))
    return Found(f"{len(names)} JSON files have shapes, as labelme writes them, {names[0]} for example", parts)


def _is_labelme(path: Path) -> bool:
    """By the beginning and the end: the image inside may be large."""
    with path.open("rb") as file:
        probed = file.read(_PROBED_BYTES)
        file.seek(max(_PROBED_BYTES, path.stat().st_size - _PROBED_BYTES))
        probed += file.read()
    return b'"shapes"' in probed and (b'"imagePath"' in probed or b'"imageData"' in probed)


LAYOUT = Layout("labelme", __doc__, "JSON files with shapes and imagePath", find, boxes=True, label_maps="outlines",
                ids_are_names=True)
