"""A manifest as a zip archive behind a file's own bytes, where readers of the file look at what its header tells only.

It is how TensorFlow Lite's metadata carries its associated files; `unzip -p model.tflite detseg.json` shows it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from detseg.export.manifest import edited, no_manifest

NAME = "detseg.json"


def embed(path: Path, text: str) -> None:
    """Appends a manifest to a file that has none."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(NAME, text)


def manifest(path: Path, *, ending: str = NAME) -> str:
    """The manifest in a file that is an archive or ends in one, where its name has this ending. DamagedFileError where
    there is none, or it was edited."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(ending))
            try:
                return archive.read(name).decode("utf-8", "replace")
            except zipfile.BadZipFile:  # its checksum
                raise edited(path) from None
    except (zipfile.BadZipFile, StopIteration):
        raise no_manifest(path) from None


def content(path: Path) -> bytes:
    """The file's own bytes; all, where no manifest is appended."""
    try:
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo(NAME).header_offset
    except (zipfile.BadZipFile, KeyError):
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(start)
