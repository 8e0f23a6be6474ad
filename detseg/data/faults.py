"""What is broken in a data set: every place of it, so that all is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LISTED = 50
"""Places that a message names; a file names the rest."""


class Fault(NamedTuple):
    """One image, record or label that cannot be used, and why. The reader has left it out of its index."""

    where: str
    """The file, and which of its records."""
    reason: str
    """What is wrong, and the way out."""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def check_faults(faults: Sequence[Fault], what: str) -> None:
    """Raises a ValueError that lists the broken places of `what`, where there are any."""
    if not faults:
        return
    lines = [f"  {fault}" for fault in faults[:_LISTED]]
    if more := len(faults) - _LISTED:
        lines += [f"  ... and {more} more"] if more > 0 else []
    count = f"{len(faults)} place{'s are' if len(faults) > 1 else ' is'} broken"
    raise ValueError("\n".join([f"{what}: {count}; mend them, or leave them out with --skip-broken:", *lines]))
