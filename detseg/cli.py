"""How every command ends: an exit code, a message instead of a traceback for a mistake, and an answer on stderr."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable


def exit_code(work: Callable[[], None]) -> int:
    """Does the work of a command: 0, or 2 for what the user can change, 1 for what failed on the way, 130 for Ctrl-C.

    What went wrong is said on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of few characters shows others as ?, and nothing is lost
            stream.reconfigure(errors="replace")
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 2
    except (OSError, ArithmeticError) as error:  # FloatingPointError, and files that do not give what they should
        print(f"error: {_readable(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _readable(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
