"""Atomic writes: at any moment a file is the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path, *, failure: str, sync: bool = False) -> Iterator[Path]:
    """Gives a place beside `path` to write to, and moves what was written there to `path` when the block ends well.

    Makes the folder. Whatever fails, what was there before stays, and nothing is left beside it. An OSError, also one
    from the block unless it names another file, names `path` and begins with `failure`, for example "the picture was
    not written". sync: wait for the disk before the move, so that a power failure does not leave an empty file either.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        # A file where the folder should be: opening says so ("Not a directory"), mkdir would say "File exists".
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if sync:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename) not in (path, unfinished, *path.parents):
            raise
        kept = "; the one from before is still whole" if os.path.isfile(path) else ""
        raise OSError(error.errno, f"{failure} ({error.strerror}){kept}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder beside `path` for it and what belongs to it, and moves all that was written there beside when
    the block ends well, `path` last; each replaces what was there. A place that cannot be written to is an OSError at
    once. Whatever fails, nothing is left."""
    folder = path.parent / f".{path.name}.{os.getpid()}.unfinished"
    try:
        folder.mkdir(parents=True)
        yield folder
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            to = path.with_name(file.name)
            if to.is_dir():
                shutil.rmtree(to)
            file.replace(to)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, and its folder, atomically."""
    with atomic_write(path, failure="not written") as unfinished:
        unfinished.write_text(text, "utf-8")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON list with one record a line. Numbers keep every digit; NaN, which JSON has not, is a ValueError."""
    with records_file(path) as add:
        add(records)


@contextlib.contextmanager
def records_file(path: Path) -> Iterator[Callable[[Iterable[Mapping[str, Any]]], None]]:
    """The same, written in portions: gives a function that adds records. The file is there when the block ends well."""
    with (atomic_write(path, failure="the results were not written") as unfinished,
          unfinished.open("w", encoding="utf-8") as file):
        separator = "["

        def add(records: Iterable[Mapping[str, Any]]) -> None:
            nonlocal separator
            for record in records:
                file.write(f"{separator}\n{json.dumps(record, allow_nan=False)}")
                separator = ","

        yield add
        file.write("[]\n" if separator == "[" else "\n]\n")


def check_new_folder(path: Path) -> None:
    """Raises a ValueError unless a folder of this name can be made: there is nothing, or an empty folder."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty; name a folder that is new")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder that is new")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which becomes `path` when the block ends well; otherwise nothing is left.
    ValueError where there is something already."""
    check_new_folder(path)
    unfinished = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if path.is_dir():
            path.rmdir()
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
