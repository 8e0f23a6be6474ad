"""A manifest as a zip archive behind a file's own bytes, where readers of the file look at what its header tells only.

It is how TensorFlow Lite's metadata carries its associated files; `unzip -p model.tflite detseg.json` shows it.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from detseg.export.manifest import DamagedFileError

NAME = "detseg.json"


def embed(path: Path, text: str) -> None:
    """Appends a manifest to a file that has none."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(NAME, text)


def manifest(path: Path) -> str:
    """The appended manifest. DamagedFileError where there is none."""
    with _archive(path) as archive:
        try:
            return archive.read(NAME).decode("utf-8")
        except (zipfile.BadZipFile, UnicodeDecodeError):
            raise DamagedFileError(f"{path}: its manifest was edited since it was written; export it again") from None
        except KeyError:
            raise _missing(path) from None


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise _missing(path) from None


def _missing(path: Path) -> DamagedFileError:
    return DamagedFileError(f"{path} has no manifest at its end: it was cut short, or detseg did not write it")


def content(path: Path) -> bytes:
    """The file's own bytes; all, where no manifest is appended."""
    try:
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo(NAME).header_offset
    except (zipfile.BadZipFile, KeyError):
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(start)
