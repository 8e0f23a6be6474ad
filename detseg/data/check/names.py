"""Class names that are likely one name written in two ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

_SEPARATORS = re.compile(r"[\s_.-]+")
_LONG = 6
"""Letters from which one that differs is rather a slip than another word."""


def near_names(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs that differ in case, separators, a plural s or, if they are long, in one letter that is no digit."""
    folded = [_SEPARATORS.sub("", unicodedata.normalize("NFKC", name).casefold()) for name in names]
    for i, first in enumerate(folded):
        for k in range(i + 1, len(folded)):
            second = folded[k]
            if not first or not second:
                continue
            if first == second or f"{first}s" == second or first == f"{second}s" or _one_slip(first, second):
                yield names[i], names[k]


def _one_slip(first: str, second: str) -> bool:
    """Whether one letter is another, is missing, or two have changed places."""
    if max(len(first), len(second)) < _LONG or abs(len(first) - len(second)) > 1:
        return False
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    a, b = first[start:], second[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    if any(letter.isdigit() for letter in a + b):
        return False
    return (len(a) <= 1 and len(b) <= 1) or (len(a) == 2 and a == b[::-1])
