"""How every command ends: an exit code, a message instead of a traceback for a mistake, and whole files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from detseg.files import whole_file


def exit_code(work: Callable[[], None]) -> int:
    """Does the work of a command: 0, or 2 for what the user can change, 1 for what failed on the way, 130 for Ctrl-C.

    What went wrong is said on stderr.
    """
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except (OSError, FloatingPointError) as error:
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, and its folder, so that the file is the old one or the new one, whole."""
    with whole_file(path, failure="not written") as unfinished:
        unfinished.write_text(text, "utf-8")


def _readable(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
