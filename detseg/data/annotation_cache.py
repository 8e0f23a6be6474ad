"""What was read of a large annotation file, kept until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from detseg.atomic import atomic_write
from detseg.cache import cache_folder

Arrays: TypeAlias = Mapping[str, NDArray[Any]]

MIN_BYTES = 10_000_000
"""Files smaller than this are read anew: that takes a fraction of a second."""

_VERSION = 1
"""Of what the readers make of a file. To be raised with each change to that."""

_STAMP = "stamp"

_ReadT = TypeVar("_ReadT")


def cached(
    path: Path, kind: str, *, read: Callable[[Path], _ReadT], to_arrays: Callable[[_ReadT], Arrays],
    from_arrays: Callable[[Arrays], _ReadT],
) -> _ReadT:
    """What `read` makes of a file; of a large one it is kept in the user's cache folder.

    Args:
        path: the file.
        kind: what is read of it; a file may be read in several ways.
        read: reads it. What it raises is raised.
        to_arrays, from_arrays: what was read as arrays without Python objects, and back.

    A file of another size or time of change is read anew. So is one whose cache is broken, and where the cache cannot
    be written nothing is said: all that is lost is time.
    """
    before = _stamp(path)
    if before is None or before["size"] < MIN_BYTES:
        return read(path)
    name = hashlib.sha256(os.fsencode(before["path"])).hexdigest()[:20]
    place = cache_folder("annotations") / f"{name}.{kind}.npz"
    # zipfile and NumPy raise a dozen things about a damaged file.
    with contextlib.suppress(Exception), place.open("rb") as kept, np.load(kept, allow_pickle=False) as stored:
        if json.loads(stored[_STAMP].tobytes()) == before:
            return from_arrays({name: stored[name] for name in stored.files if name != _STAMP})
    found = read(path)
    if _stamp(path) == before:  # and was not written meanwhile
        stamp = np.frombuffer(json.dumps(before).encode(), np.uint8)
        with (contextlib.suppress(OSError), atomic_write(place, failure="not written") as unfinished,
              unfinished.open("wb") as file):
            np.savez(file, **{_STAMP: stamp}, **to_arrays(found))  # type: ignore[arg-type]
    return found


def _stamp(path: Path) -> dict[str, Any] | None:
    """By what a file is known again; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return {"version": _VERSION, "path": os.path.realpath(path), "size": status.st_size, "time": status.st_mtime_ns}
