"""torch.export's own archive, for PyTorch without detseg and for what is made from it."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export import appended
from detseg.export.format import Arrays, Format, Job, Run
from detseg.export.manifest import DamagedFileError

_ENTRY = f"/extra/{appended.NAME}"
"""Behind the archive's root."""


def write(job: Job, path: Path) -> None:
    """The program and its weights."""
    torch.export.save(job.network.program(), path)


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """The program in this process; the threads are torch's."""
    module = torch.export.load(path).module()

    def call(images: NDArray[np.generic]) -> Arrays:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(images))
        return {name: outputs[name].numpy() for name in names}

    return call


def embed(path: Path, text: str) -> None:
    """Adds it to the archive, as torch's `extra_files` does."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}{_ENTRY}", text)


def manifest(path: Path) -> str:
    """The archive's entry."""
    return appended.manifest(path, ending=_ENTRY)


def content(path: Path) -> bytes:
    """Every other entry with its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith(_ENTRY))
            return b"".join(name.encode() + b"\0" + archive.read(name) for name in names)
    except zipfile.BadZipFile as error:
        raise DamagedFileError(f"{path} is not what was written: {error}; export it again") from None


FORMAT = Format(
    name="pt2", title="PyTorch", suffix=".pt2", extra=None, converter=(), runtime=(), packages=(), write=write, run=run,
    embed=embed, manifest=manifest, content=content, precisions=("fp32",), dynamic_batch=True,
    reasons={"fp16": "torch computes in the precision of its weights, and half is slow on a CPU"},
    note="it runs where PyTorch is installed, in any version near the one that wrote it")
