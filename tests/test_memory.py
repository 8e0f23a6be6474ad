"""Freed memory is kept. Measured in processes of their own: it cannot be undone."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from detseg.memory import keep_freed_memory

_MEASURE = """
import resource, sys, threading
import numpy as np
from detseg.memory import keep_freed_memory

applied = keep_freed_memory() if sys.argv[1] == "kept" else False
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    blocks = [np.ones(megabytes << 17) for megabytes in (48, 3, 96, 1)]
    assert all(block[-1] == 1 for block in blocks)

step()
before = faults()
for _ in range(5):
    step()
print(applied, faults() - before)
thread = threading.Thread(target=step)
thread.start()
thread.join()
"""


def _applied_and_faults(mode: str) -> tuple[str, int]:
    ran = subprocess.run([sys.executable, "-c", _MEASURE, mode], capture_output=True, text=True, check=True)
    applied, faults = ran.stdout.split()
    return applied, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")
def test_the_next_step_finds_its_memory() -> None:
    applied, faults = _applied_and_faults("kept")
    assert applied == "True"
    _, faults_otherwise = _applied_and_faults("otherwise")
    assert faults < 0.05 * faults_otherwise


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert keep_freed_memory() is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        """Has a mallopt, but not glibc's."""

        def mallopt(self, option: int, value: int) -> int:
            raise AssertionError("called")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert keep_freed_memory() is False


@pytest.mark.parametrize("refused", [-4, -1])
def test_a_refusal_is_told(refused: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mallopt:
        def __call__(self, option: int, value: int) -> int:
            return int(option != refused)

    class Glibc:
        gnu_get_libc_version = None
        mallopt = Mallopt()

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Glibc())
    assert keep_freed_memory() is False
