"""Annotation files of COCO's kind under any name: one, named itself or alone in its folder, or one for each split.

    train.json
    val.json
    images/
      street.jpg

The files may lie in annotations/, and the images anywhere below the folder or in --images DIR. With `--data FILE.json`
nothing else of the folder matters.
"""

from __future__ import annotations

from pathlib import Path

from detseg.data.layouts.coco_files import coco_part, images_folder, is_coco
from detseg.data.layouts.layout import Found, Layout, PartName, Place, listed, split_folders, split_of


def find(place: Place) -> Found | None:
    """By the files' content. ValueError where several are of the same split."""
    path = place.path
    if path.is_file():
        if not is_coco(path):
            return None
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        folder = images_folder(path, root, subset=path.stem, given=place.images)
        return Found("the file has images and annotations as COCO's", {"whole": coco_part("whole", path, folder)})
    files: dict[PartName, Path] = {}
    for split, file in _files(path):
        if split in files:
            raise ValueError(f"{path} has several annotation files of COCO's kind that are not told apart by train and "
                             f"val in their names, {files[split].relative_to(path)} and {file.relative_to(path)}; name "
                             "one with --data FILE")
        files[split] = file
    if not files:
        return None
    parts = {split: coco_part(split, file, images_folder(file, path, subset=split_folder(path, split),
                                                         given=place.images))
             for split, file in files.items()}
    return Found(f"{listed(files, path)} has images and annotations as COCO's", parts)


def split_folder(root: Path, split: PartName) -> str:
    """The name of a split's folder of images, if it has one."""
    for parent in (root, root / "images"):
        if split in (folders := split_folders(parent)):
            return folders[split].name
    return ""


def _files(root: Path) -> list[tuple[PartName, Path]]:
    """The annotation files of a folder, of annotations/ in it, and of its splits."""
    found: list[tuple[PartName, Path]] = []
    for folder in (root, root / "annotations"):
        if folder.is_dir():
            found += [(split_of(path.stem) or "whole", path) for path in sorted(folder.glob("*.json")) if is_coco(path)]
    for split, folder in split_folders(root).items():
        found += [(split, path) for path in sorted(folder.glob("*.json")) if is_coco(path)]
    named = [(split, path) for split, path in found if path.stem.startswith("instances")]
    return named or found


LAYOUT = Layout("COCO's files", __doc__, "a JSON file with the lists images, annotations and categories, "
                "in the folder or in annotations/", find, boxes=True, label_maps="outlines")
