"""Without what converters and runtimes tell of themselves while they work; their errors are exceptions."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log, nothing that is printed or that native code writes to stderr. A console that was made with
    the standard output of before still writes there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    kept = os.dup(2)
    try:
        with (warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()),
              contextlib.redirect_stderr(io.StringIO()), open(os.devnull, "w") as nowhere):
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(before)


@contextlib.contextmanager
def silent_programs() -> Iterator[None]:
    """The same for programs that are started, which write to file descriptors of this process."""
    kept = os.dup(1)
    try:
        with quiet(), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
