"""A manifest as a JSON file beside a file whose format has no place for it."""

from __future__ import annotations

from pathlib import Path

from detseg.export.manifest import DamagedFileError


def place(path: Path) -> Path:
    """Where it lies."""
    return path.with_name(f"{path.name}.json")


def embed(path: Path, text: str) -> None:
    """Writes it."""
    place(path).write_text(text, "utf-8")


def manifest(path: Path) -> str:
    """Reads it. DamagedFileError where it is not there."""
    try:
        return place(path).read_text("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise DamagedFileError(
            f"{path} needs its manifest {place(path).name} beside it: copy both, or export it again") from None
