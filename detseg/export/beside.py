"""What lies beside a file: its weights, or a manifest as JSON where a format has no place for it."""

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
    return read(path, place(path), what="manifest").decode("utf-8", "replace")


def read(path: Path, other: Path, *, what: str) -> bytes:
    """What lies beside `path`, and is called `what` for people. DamagedFileError where it is not there."""
    try:
        return other.read_bytes()
    except FileNotFoundError:
        raise DamagedFileError(
            f"{path} needs its {what} {other.name} beside it: copy both, or export it again") from None
