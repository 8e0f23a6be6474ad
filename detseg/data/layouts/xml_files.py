"""PASCAL VOC's XML files without lists: beside their images (LabelImg), or apart from them.

    annotations/
      street.xml
    images/
      street.jpg

With folders named train, valid or val in the path of every XML file, these are the splits; else all are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from detseg.data.box_index import BoxIndex
from detseg.data.faults import Fault
from detseg.data.files import FileFinder, list_files, list_images
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, parts_of_tree
from detseg.data.voc import read_voc_files

_PROBED = 5
_PROBED_BYTES = 1 << 12
_BEGIN = re.compile(rb"<annotation[\s>]")


def find(place: Place) -> Found | None:
    """By the beginning of the first XML files."""
    root = place.path
    if not root.is_dir() or not (names := xml_files(root)):
        return None
    return Found(f"{len(names)} XML files hold an annotation, {names[0]} for example",
                 xml_parts(root, parts_of_tree(names), names, images=place.images))


def xml_files(root: Path) -> list[str]:
    """The annotation files of a folder and its sub-folders, relative to it; empty where the first XML files are of
    another kind."""
    names = [name for name in list_files(root, recursive=True) if name.lower().endswith(".xml")]
    return names if any(_is_annotation(root / name) for name in islice(names, _PROBED)) else []


def xml_parts(
    root: Path, splits: dict[PartName, list[str]], names: Sequence[str], *, images: Path | None
) -> dict[PartName, Part]:
    """The splits of XML files: `names` are those of all splits."""
    return {split: Part(root, boxes=partial(_read, root, tuple(own), tuple(names), images))
            for split, own in splits.items()}


def _is_annotation(path: Path) -> bool:
    with path.open("rb") as file:
        return _BEGIN.search(file.read(_PROBED_BYTES).replace(b"\0", b"")) is not None


def _read(root: Path, own: Sequence[str], names: Sequence[str], images: Path | None) -> BoxIndex:
    """An image belongs to an XML file that has its name without the suffix: beside it, else the one of that name."""
    folder = images or root
    finder = FileFinder(folder, images_only=True)
    files: dict[Path, str] = {}
    faults: list[Fault] = []
    for name in own:
        inside = PurePosixPath(name).with_suffix("")
        image = finder.find(str(inside))
        if image is None:
            faults.append(Fault(str(root / name), f"{finder.why_not(str(inside))}; add the image, or remove the file"))
        else:
            files[root / name] = image
    everything = len(list_images(folder, recursive=True))
    notes = []
    if everything > len(names):
        notes.append(f"{everything - len(names)} of {everything} images have no XML file, and are left out: one "
                     "without objects needs a file without them")
    return read_voc_files(folder, files, others=[root / name for name in names], notes=tuple(notes),
                          faults=tuple(faults))


LAYOUT = Layout("XML files", __doc__, "XML files with an annotation, beside the images or apart", find, boxes=True,
                ids_are_names=True)
