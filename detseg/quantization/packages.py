"""The packages that quantise: whether they are there, and without what they tell of themselves."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PACKAGES = ("torchao",)
"""On which the result of quantisation-aware training depends."""


def check_packages(packages: Sequence[str], *, extra: str) -> None:
    """ValueError with the line that installs what is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"quantisation needs {' and '.join(missing)}: pip install 'detseg[{extra}]'")


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log of theirs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
