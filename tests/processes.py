"""Commands in processes of their own, which can be killed, limited, and be several.

They are forked from a server that has imported torch once, so that one costs no more than what it does.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from detseg.checkpoint import load

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["detseg.commands.train", "detseg.commands.test", "detseg.train",
                                 "detseg.weights.load", "tests.tiny"])


class Started(NamedTuple):
    """A command that runs in the current folder, and what it says on stdout and stderr."""

    process: ForkServerProcess
    output: Path

    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text()

    def kill_when_saved(self, last: Path, *, step: int, timeout: float = 120) -> int:
        """Kills it as soon as it has saved this step, or a later one, and gives which."""
        deadline = time.monotonic() + timeout
        while not last.exists() or load(last).step < step:
            assert self.process.is_alive(), f"the run ended before it could be killed: {self.said()}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.process.kill()
        assert self.exit_code() == -signal.SIGKILL
        return load(last).step

    def exit_code(self, *, timeout: float = 120) -> int | None:
        """Waits for its end."""
        self.process.join(timeout)
        return self.process.exitcode


def start(name: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None,
          largest_file: int | None = None, output: str = "said.txt") -> Started:
    """Starts a command; `largest_file` bytes are what a file may have."""
    path = Path(output).absolute()
    path.touch()
    process = _CONTEXT.Process(
        target=_run, args=(name, list(arguments), str(Path.cwd()), dict(environment or {}), largest_file, str(path)))
    process.start()
    return Started(process, path)


def start_several(number: int, name: str, arguments: Sequence[str]) -> list[Started]:
    """The processes that torchrun would start on one machine, told of each other by the same variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1",
              "LOCAL_WORLD_SIZE": str(number), "TORCHELASTIC_RUN_ID": "none"}
    return [start(name, arguments, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                  output=f"said{rank}.txt") for rank in range(number)]


def _run(name: str, arguments: list[str], folder: str, environment: dict[str, str], largest_file: int | None,
         output: str) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        code = int(importlib.import_module(f"detseg.commands.{name}").main(arguments))
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)
