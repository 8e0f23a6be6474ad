"""torch.export's own archive, for PyTorch without detseg and for what is made from it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export.appended import NAME
from detseg.export.format import Arrays, Format, Job, Run
from detseg.export.manifest import DamagedFileError


def write(job: Job, path: Path) -> None:
    """The program and its weights."""
    torch.export.save(job.program, path)


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
        archive.writestr(f"{_root(archive)}/extra/{NAME}", text)


def manifest(path: Path) -> str:
    """The archive's entry."""
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read(f"{_root(archive)}/extra/{NAME}")
    except (zipfile.BadZipFile, KeyError, IndexError) as error:
        if "CRC" in str(error):
            raise DamagedFileError(f"{path}: its manifest was edited since it was written; export it again") from None
        raise DamagedFileError(f"{path} has no manifest: it was cut short, or detseg did not write it") from None
    return text.decode("utf-8", "replace")


def content(path: Path) -> bytes:
    """Every other entry with its name."""
    whole = io.BytesIO()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(f"/extra/{NAME}"):
                try:
                    whole.write(name.encode() + b"\0" + archive.read(name))
                except zipfile.BadZipFile as error:
                    raise DamagedFileError(f"{path} is not what was written: {error}; export it again") from None
    return whole.getvalue()


def _root(archive: zipfile.ZipFile) -> str:
    return archive.namelist()[0].partition("/")[0]


FORMAT = Format(
    name="pt2", title="PyTorch", suffix=".pt2", extra=None, converter=(), runtime=(), packages=(), write=write, run=run,
    embed=embed, manifest=manifest, content=content, precisions=("fp32",), dynamic_batch=True,
    reasons={"fp16": "torch computes in the precision of its weights, and half is slow on a CPU"},
    note="it runs where PyTorch is installed, in any version near the one that wrote it")
