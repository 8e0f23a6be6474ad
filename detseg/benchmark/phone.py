"""Exported files on a phone that adb reaches, timed by each runtime's own benchmark program.

The programs are built for the phone by who wants to measure; each runtime's documentation says how. The phone is the
only one that is connected, or the one that $ANDROID_SERIAL names.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from detseg.export.artefact import Artefact
from detseg.export.format import Format

RUNS = 50
_FOLDER = "/data/local/tmp/detseg"
"""Where Android lets adb's user execute programs."""
_SECONDS = 300
"""For each command."""


class Phone(NamedTuple):
    """A phone, and the programs for it."""

    name: str
    programs: Path

    def milliseconds(self, artefact: Artefact, threads: int) -> float:
        """The mean time of a run of the file alone. OSError with what the program said where it tells none."""
        kind = artefact.format
        assert kind.phone is not None
        program = _program(self.programs, kind)
        _adb("push", str(program), *(str(file) for file in kind.files(artefact.path)), _FOLDER)
        _adb("shell", f"chmod 755 {_FOLDER}/{shlex.quote(program.name)}")
        arguments = kind.phone.arguments(artefact.path.name, threads, RUNS, artefact.manifest.input)
        command = [f"./{program.name}", *arguments]
        said = _adb("shell", f"cd {_FOLDER} && LD_LIBRARY_PATH=. {shlex.join(command)} 2>&1")
        found = re.search(kind.phone.pattern, said)
        if found is None:
            raise OSError(f"{program.name} on {self.name} told no time for {artefact.path.name}: "
                          + (" | ".join(said.strip().splitlines()[-3:]) or "it said nothing"))
        given = found.groupdict()
        return float(given["time"]) * kind.phone.unit / int(given.get("runs", 1))


@contextmanager
def connected(programs: Path, kinds: Sequence[Format]) -> Iterator[Phone]:
    """The phone; what is brought there is removed in the end.

    Args:
        programs: the folder with the benchmark programs; shared libraries (*.so) in it are brought along.
        kinds: of the files that will be timed.

    ValueError where adb or a program is missing, OSError where no phone answers.
    """
    if shutil.which("adb") is None:
        raise ValueError("adb is not installed; Android's platform tools bring it")
    if not programs.is_dir():
        raise ValueError(f"--adb names a folder with benchmark programs for the phone, and {programs} is none")
    for kind in kinds:
        _program(programs, kind)
    _adb("get-state")
    phone = Phone(_adb("shell", "getprop ro.product.model").strip() or "the phone", programs)
    _adb("shell", f"rm -rf {_FOLDER} && mkdir -p {_FOLDER}")
    try:
        if libraries := sorted(str(file) for file in programs.glob("*.so")):
            _adb("push", *libraries, _FOLDER)
        yield phone
    finally:
        _adb("shell", f"rm -rf {_FOLDER}")


def _program(programs: Path, kind: Format) -> Path:
    """The benchmark program for a kind of file. ValueError where there is none."""
    if kind.phone is None:
        raise ValueError(f"{kind.title} has no benchmark program for Android; leave its files out, or --adb")
    program = programs / kind.phone.program
    if not program.is_file():
        raise ValueError(f"{programs} has no {kind.phone.program}, which times {kind.title} files; build it for the "
                         "phone as the runtime's documentation says")
    return program


def _adb(*arguments: str) -> str:
    """What adb said. OSError where it failed."""
    try:
        done = subprocess.run(["adb", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False,
                              stdin=subprocess.DEVNULL, errors="replace")
    except subprocess.TimeoutExpired:
        raise OSError(f"adb {arguments[0]} did not end within {_SECONDS} s") from None
    if done.returncode != 0:
        raise OSError(f"adb {arguments[0]} failed: {(done.stderr or done.stdout).strip() or 'it said nothing'}")
    return done.stdout
