"""Folders of images and masks, with a file that says what the masks' values mean: see `detseg.data.masks`.

    images/
      train/
        street 1.jpg
      val/
    masks/
      train/
        street 1.png
      val/
    classes.txt

Or without folders for the splits, or in train/images/ and train/masks/.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from detseg.data.label_index import LabelFiles, LabelIndex, label_table
from detseg.data.layouts.layout import Found, Layout, Part, PartName, Place, listed, split_folders
from detseg.data.layouts.mask_folders import MaskFolders, mask_folders, pairs, probed_masks, said
from detseg.data.masks import class_file, image_folder, mask_folder, read_classes, read_masks
from detseg.structures import VOID


def find(place: Place) -> Found | None:
    """By the folders of the masks; those under other names than masks/SPLIT/ only with a classes.txt."""
    root = place.path
    plain: dict[PartName, Path] = split_folders(root / "masks")
    folders = {split: pair for split, pair in mask_folders(root).items() if any(probed_masks(pair))}
    if plain and (not folders or any(image_folder(root, path.name).is_dir() for path in plain.values())):
        return Found(f"it has {listed(plain, root)}", {
            split: Part(path, labels=partial(_read_plain, root, path.name)) for split, path in plain.items()})
    if not folders or not class_file(root).is_file():
        return None
    return Found(f"it has classes.txt and {said(folders, root)}", {
        split: Part(pair.masks, labels=partial(_read, root, pair)) for split, pair in folders.items()})


def _read_plain(root: Path, split: str) -> LabelIndex:
    if not (images := image_folder(root, split)).is_dir():
        raise FileNotFoundError(f"{mask_folder(root, split)} is there, but the folder {images} with its images is not")
    return read_masks(root, split)


def _read(root: Path, folders: MaskFolders) -> LabelIndex:
    classes, void = read_classes(class_file(root))
    found, faults = pairs(root, folders)
    everywhere = void if VOID in classes.source_ids else {*void, VOID}
    table = label_table(classes.source_ids, void=tuple(everywhere))
    return replace(LabelFiles.of(classes, root, found, table=table), faults=faults)


LAYOUT = Layout("masks", __doc__, "masks/train/, images/train/ and classes.txt, the same of val", find,
                label_maps="files")
