"""Freed memory is kept, and nothing else changes. Measured in processes of their own: it cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import cache
from typing import NamedTuple

import pytest

_GLIBC = platform.libc_ver()[0] == "glibc"

_MEASURE = """
import resource, sys, threading
import numpy as np
from detseg.memory import keep_freed_memory

kept = [keep_freed_memory() for _ in range(2)] if sys.argv[1] == "kept" else []

def step():
    random = np.random.default_rng(0)
    blocks = [random.random(megabytes << 17) for megabytes in (48, 3, 96, 1)]
    return sum(float(block.sum()) for block in blocks)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
results = {step() for _ in range(5)}
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
thread = threading.Thread(target=lambda: results.add(step()))
thread.start()
thread.join()
print(*kept, sep=",")
print(faults)
print(*results)
"""


class _Measured(NamedTuple):
    said: list[str]
    """What each of two calls gave."""
    faults: int
    results: str
    """Distinct results of six steps, the last of them in a thread."""


@cache
def _measured(mode: str) -> _Measured:
    ran = subprocess.run([sys.executable, "-c", _MEASURE, mode], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    said, faults, results = ran.stdout.splitlines()
    return _Measured(said.split(","), int(faults), results)


def test_results_are_the_same_and_it_says_whether_it_could() -> None:
    """Only glibc's malloc can be told; elsewhere nothing happens. A second call does no harm."""
    kept, otherwise = _measured("kept"), _measured("otherwise")
    assert kept.said == [str(_GLIBC)] * 2
    assert kept.results == otherwise.results
    assert len(kept.results.split()) == 1


@pytest.mark.skipif(not _GLIBC, reason="only glibc's malloc can be told to keep memory")
def test_the_next_step_finds_its_memory() -> None:
    assert _measured("kept").faults < 0.05 * _measured("otherwise").faults
