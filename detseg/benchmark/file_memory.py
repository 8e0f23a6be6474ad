"""What an exported file adds to a process's memory; in a module that imports little, for a process of its own does."""

from __future__ import annotations

import gc
import importlib
from pathlib import Path

import torch

from detseg.benchmark import synthetic
from detseg.export.artefact import open_artefact
from detseg.export.formats import format_of
from detseg.export.quiet import quiet
from detseg.predict import predict_image


def added_megabytes(path: Path, number: int) -> float:
    """What opening a file and predicting with it add to the largest memory of this process, which has imported the
    runtime before."""
    torch.set_num_threads(number)
    kind = format_of(path)
    assert kind is not None
    with quiet():
        for module in kind.runtime:
            importlib.import_module(module)
        before = _forget_peak()
        artefact = open_artefact(path, threads=number)
        image = synthetic.textures(1, (480, 640), seed=1)[0]
        for _ in range(3):
            predict_image(artefact, artefact.task, image)
    return (_memory("VmHWM") - before) / 1024


def _forget_peak() -> int:
    """Lets Linux count this process's largest memory anew, and gives what it holds now, in kilobytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
