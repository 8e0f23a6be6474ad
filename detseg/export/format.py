"""What a format is: what it can hold, who writes it, who runs it, and where its manifest lies."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from detseg.choices import CONTRACTS, Contract, Execution, Precision
from detseg.export.contract import ExportedNetwork, Input, PixelLayout, PixelType
from detseg.structures import Size

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
Run: TypeAlias = Callable[[NDArray[np.generic]], Arrays]
"""`Input.pack`ed images to the outputs by name."""


class Job(NamedTuple):
    """A network on its way into a file."""

    network: ExportedNetwork
    precision: Precision
    names: tuple[str, ...]
    """Of its outputs, in order."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a file is to be.

    Args:
        contract: where it ends.
        precision: of its weights.
        pixels, layout: what it takes.
        size: (height, width) of its input; None is that of the network's resize.
        dynamic_batch: whether its batch may have any size.
        candidates: boxes that enter its suppression; None is the config's number.
        execution: "split" computes inverted bottlenecks in `parts` of their channels, with less memory.
        parts: of each; None is `PARTS`.
    """

    contract: Contract = "final"
    precision: Precision = "fp32"
    pixels: PixelType = "uint8"
    layout: PixelLayout = "nhwc"
    size: Size | None = None
    dynamic_batch: bool = False
    candidates: int | None = None
    execution: Execution = "whole"
    parts: int | None = None


class PhoneBenchmark(NamedTuple):
    """A runtime's own benchmark program for Android."""

    program: str
    arguments: Callable[[str, int, int, Input], Sequence[str]]
    """Of a file, threads, runs and what the file takes."""
    pattern: str
    """Finds the mean "time" of a run in what it says; or of all, if it finds the number of "runs" too."""
    unit: float = 1.0
    """Of the time, in milliseconds."""


class Operators(NamedTuple):
    """A file's operators as its runtime computes them."""

    total: int
    delegated: int | None
    """How many of them are in the hands of a delegate, such as XNNPACK; None where the runtime has none."""
    slowest: tuple[tuple[str, int, float | None], ...]
    """Of those that no delegate takes, by kind: name, number, and milliseconds of one run where the runtime tells."""

    @classmethod
    def counted(cls, delegated: int | None, others: Iterable[tuple[str, float | None]]) -> Operators:
        """Of the name and time of each operator outside a delegate."""
        kinds: dict[str, list[float | None]] = {}
        for name, milliseconds in others:
            kinds.setdefault(name, []).append(milliseconds)
        slowest = [
            (name, len(times), None if None in times else sum(time for time in times if time is not None))
            for name, times in kinds.items()]
        slowest.sort(key=lambda kind: (-(kind[2] or 0.0), -kind[1]))
        return cls((delegated or 0) + sum(number for _, number, _ in slowest), delegated, tuple(slowest))


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file, as data. Its functions import what they need when they are called."""

    name: str
    """What --format calls it."""
    title: str
    """The runtime's name."""
    suffix: str
    extra: str | None
    """`pip install 'detseg[extra]'` brings the packages; None: they are there."""
    converter: tuple[str, ...]
    """Modules that writing needs."""
    runtime: tuple[str, ...]
    """Modules that running needs."""
    packages: tuple[str, ...]
    """Whose versions the manifest keeps."""
    write: Callable[[Job, Path], None]
    """Writes the file, without a manifest."""
    run: Callable[[Path, int, Sequence[str]], Run]
    """Opens the file with so many threads; the names of its outputs are given in order."""
    embed: Callable[[Path, str], None]
    """Puts a manifest into the file that `write` left, or beside it."""
    manifest: Callable[[Path], str]
    """The manifest of a file. DamagedFileError where there is none or the file is cut short."""
    content: Callable[[Path], bytes]
    """The file without its manifest, if it has one, to be hashed."""
    operators: Callable[[Path, NDArray[np.generic]], Operators] | None = None
    """Runs packed images on one thread under the runtime's own profiler; None where it has none."""
    phone: PhoneBenchmark | None = None
    """What times files on Android."""
    files: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    """Everything that `write` and `embed` leave for a path."""
    contracts: tuple[Contract, ...] = CONTRACTS
    two_stage_contracts: tuple[Contract, ...] = ("decoded", "final")
    """Of heads with a second stage."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    pixels: tuple[PixelType, ...] = ("uint8", "float")
    layouts: tuple[PixelLayout, ...] = ("nhwc", "nchw")
    dynamic_batch: bool = False
    folds_weights: bool = True
    """Whether its converter takes int8 weights as integers; else it takes floats, and an operator that rounds them."""
    sums_in_16_bits: bool = False
    """Whether its runtime adds two products of int8 in 16 bits on some processors; then weights are as small as needed
    for that."""
    minutes: str = "seconds"
    """How long converting usually takes, for the progress display."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot, by what is asked for: "final", "fp16", "uint8", "dynamic batch" ..."""
    note: str = ""
    """What a person has to know about files of this kind."""

    def usual_options(self) -> Options:
        """How a file of this kind is, unless something else is asked for."""
        return Options(pixels=self.pixels[0], layout=self.layouts[0])

    def missing(self, modules: Sequence[str]) -> list[str]:
        """Which of the modules are not installed; nothing is imported."""
        return [name for name in modules if not _is_installed(name)]

    def check_installed(self, modules: Sequence[str], *, to: str) -> None:
        """ValueError with the line that installs what is missing."""
        missing = self.missing(modules)
        if missing:
            raise ValueError(f"to {to} {self.title} files, {' and '.join(missing)} must be installed: "
                             f"pip install 'detseg[{self.extra}]'")

    def versions(self) -> dict[str, str]:
        """Of the packages that write and run it."""
        found = {}
        for package in ("torch", *self.packages):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def digest(self, path: Path) -> str:
        """SHA-256 of the file without its manifest."""
        return hashlib.sha256(self.content(path)).hexdigest()

    def megabytes(self, path: Path) -> float:
        """Of the file and what lies beside it."""
        return sum(_bytes(file) for file in self.files(path)) / 1e6


def _bytes(file: Path) -> int:
    """Of a file, or of all in a folder."""
    return sum(one.stat().st_size for one in file.rglob("*") if one.is_file()) if file.is_dir() else file.stat().st_size


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False
