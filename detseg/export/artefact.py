"""An exported file in its runtime, as a network to predict with: no config is needed, its manifest tells all."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detseg.export.contract import outputs_of
from detseg.export.format import Format, Run
from detseg.export.formats import format_of, formats
from detseg.export.manifest import DamagedFileError, Manifest
from detseg.export.quiet import quiet
from detseg.interfaces import Task
from detseg.resize import Resize, Rounded
from detseg.structures import Classes


class Artefact:
    """Predicts as a `Predictor` does, on the CPU; what its runtime does not do is done by the same code.

    Made by `open_artefact`.
    """

    def __init__(self, path: Path, manifest: Manifest, kind: Format, run: Run) -> None:
        self.path, self.manifest, self.format, self._run = path, manifest, kind, run
        self.task = manifest.build_task()
        self._names = outputs_of(self.task)

    @property
    def classes(self) -> Classes:
        """What it predicts."""
        return self.manifest.classes

    @cached_property
    def resize(self) -> Resize:
        """How an image becomes its input: of bytes, with every pixel rounded."""
        rule = self.manifest.resize_rule
        return Rounded(rule) if self.manifest.input.pixels == "uint8" else rule

    @property
    def device(self) -> torch.device:
        """Where images are to be brought."""
        return torch.device("cpu")

    @property
    def form(self) -> str:
        """What it is, for people."""
        return f"{self.format.title}, {self.manifest.contract}, {self.manifest.precision}"

    def ready(self) -> Artefact:
        """It is."""
        return self

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """float [B, 3, H, W] in 0..255 to what the file gives, by name; one by one where its batch is one image."""
        given = self.manifest.input
        assert (images.shape[2], images.shape[3]) == given.size, (images.shape, given.size)
        packed = given.pack(images.cpu())
        parts = [packed] if given.dynamic_batch else [packed[row : row + 1] for row in range(len(packed))]
        found = [{name: torch.from_numpy(array.copy()) for name, array in self._run(part.numpy()).items()}
                 for part in parts]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], *, static: bool = False) -> Any:
        """float [B, 3, H, W] in 0..255 to final predictions of the task."""
        return self.finish(self.outputs(images), task, static=static)

    def finish(self, outputs: Mapping[str, Tensor], task: Task[Any, Any, Any, Any], *, static: bool = False) -> Any:
        """What the file gave to final predictions of the task."""
        if self.manifest.contract == "final":
            return self._names.finished(outputs)
        return task.postprocess(self._dense(outputs), static=static)

    def decode(self, images: Tensor, *, static: bool = False) -> Any:
        """float [B, 3, H, W] in 0..255 to dense predictions; a file has them in one form. ValueError where it ends
        behind them."""
        if self.manifest.contract == "final":
            raise ValueError(f"{self.path} gives final predictions, and not the scores of every class, which are "
                             "averaged here; export the checkpoint with --contract decoded")
        return self._dense(self.outputs(images))

    def _dense(self, outputs: Mapping[str, Tensor]) -> Any:
        return self._names.dense(self._decoded(outputs) if self.manifest.contract == "raw" else outputs)

    def _decoded(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of a file that ends with "raw", what one gives that ends with "decoded"."""
        batch = len(next(iter(outputs.values())))
        with torch.inference_mode():
            found = [self._decoding({name: tensor[row : row + 1] for name, tensor in outputs.items()})
                     for row in range(batch)]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    @cached_property
    def _decoding(self) -> Any:
        assert self.manifest.decoding is not None
        return torch.export.load(io.BytesIO(base64.b64decode(self.manifest.decoding))).module()


def is_artefact(path: Path) -> bool:
    """Whether a path looks like an exported file, by its ending."""
    return format_of(path) is not None


def read_manifest(path: Path, *, to: str = "read") -> tuple[Format, Manifest]:
    """The format of an exported file, and what it says about itself; nothing is run.

    FileNotFoundError; ValueError where nothing is known of its kind or its runtime is not installed; DamagedFileError
    where it is not what was written.
    """
    kind = format_of(path)
    if kind is None:
        endings = ", ".join(one.suffix for one in formats().values())
        raise ValueError(f"{path} is no exported file; those end in {endings}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    kind.check_installed(kind.runtime, to=to)
    manifest = Manifest.from_json(kind.manifest(path), what=str(path))
    if kind.digest(path) != manifest.content:
        raise DamagedFileError(f"{path} is not what was written: something in it was changed, a weight for example; "
                               "export it again")
    return kind, manifest


def open_artefact(path: Path, *, threads: int | None = None) -> Artefact:
    """An exported file in its runtime, with so many threads (torch's number). Errors as of `read_manifest`."""
    kind, manifest = read_manifest(path, to="run")
    return Artefact(path, manifest, kind, opened(kind, path, manifest, threads=threads))


def opened(kind: Format, path: Path, manifest: Manifest, *, threads: int | None = None) -> Run:
    """A file that is known to be whole, in its runtime."""
    try:
        with quiet():
            return kind.run(path, threads or torch.get_num_threads(), [output.name for output in manifest.outputs])
    except ImportError:
        raise
    except Exception as error:  # each runtime has its own
        raise DamagedFileError(f"{kind.title} cannot open {path}: {error}") from error
