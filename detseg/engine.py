"""What runs a network's layers when it predicts: torch, or ONNX Runtime, which is faster on a CPU.

ONNX Runtime takes everything up to the head's raw outputs; decoding, a second stage and suppression stay in torch, so
that predictions are the same up to rounding, whatever the size of the images. A network is converted once and kept in
the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from detseg.atomic import atomic_write
from detseg.cache import cache_folder
from detseg.choices import ENGINES, Engine
from detseg.export.convert import weights_digest
from detseg.export.format import Run
from detseg.export.formats import onnx
from detseg.export.quiet import quiet
from detseg.fingerprint import fingerprint
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.predict import Recomputed

CACHE = "onnxruntime"
"""Converted networks lie in the cache folder of this name."""
_KEPT = 16
"""Converted networks; the least recently used make room."""
_SMALLEST = 129
"""Pixels: images with a shorter side are left to torch where sizes are free."""
_TOLERANCE = 1e-3
"""Of the largest raw output: rounding stays far below, another network does not."""


class OnnxRuntimePredictor(Recomputed):
    """Predicts as the `Predictor` it was made of, on the CPU; `with_engine` makes it.

    Args:
        predictor: the network, ready for inference.
        run: the converted layers.
        structure: of the head's raw outputs.
    """

    def __init__(self, predictor: Predictor, run: Run, structure: TreeSpec) -> None:
        super().__init__(predictor)
        self._run, self._structure = run, structure

    @property
    def form(self) -> str:
        """What it is, for people."""
        return "ONNX Runtime"

    def __call__(self, images: Tensor) -> Any:
        """float [B, 3, H, W] RGB, 0..255, to the head's raw predictions."""
        if not self.resize.fixed and min(images.shape[2:]) < _SMALLEST:
            return self.predictor(images)
        outputs = self._run(self._padded(images).contiguous().numpy())
        return tree_unflatten([torch.from_numpy(array) for array in outputs.values()], self._structure)

    def _padded(self, images: Tensor) -> Tensor:
        """`Predictor.features` pads behind the normalisation, which the converted layers begin with."""
        divisor = self.predictor.size_divisor
        bottom, right = -images.shape[2] % divisor, -images.shape[3] % divisor
        if not bottom and not right:
            return images
        padded = (-self.predictor.shift / self.predictor.scale).expand(
            len(images), -1, images.shape[2] + bottom, images.shape[3] + right).clone()
        padded[:, :, : images.shape[2], : images.shape[3]] = images
        return padded


def with_engine(
    predictor: Predictor, task: Task[Any, Any, Any, Any], engine: Engine, *,
    say: Callable[[str], None] = lambda _: None,
) -> Predictor | OnnxRuntimePredictor:
    """A copy of a network that is ready to predict.

    Args:
        predictor: the network.
        task: what it predicts.
        engine: "torch" gives `Predictor.ready`.
        say: hears when the network is converted.

    ValueError where the engine is unknown, not installed, not for the network's device, or cannot take the network.
    """
    if engine not in ENGINES:
        raise ValueError(f"the engine is {' or '.join(ENGINES)}, got {engine!r}")
    ready = predictor.ready()
    if engine == "torch":
        return ready
    if ready.device.type != "cpu":
        raise ValueError(f"the engine onnxruntime runs on the CPU, and the network is on {ready.device}")
    onnx.FORMAT.check_installed((*onnx.FORMAT.converter, *onnx.FORMAT.runtime), to="run networks as")
    layers = _Layers(ready)
    path = cache_folder(CACHE) / f"{_digest(ready, task)}.onnx"
    found = _opened(path, ready) if path.exists() else None
    if found is None:
        say("converting the network for ONNX Runtime; it is kept for the next time")
        _convert(layers, path)
        found = _opened(path, ready)
    if found is None:
        raise ValueError("ONNX Runtime gives other predictions than torch for this network; take the engine torch")
    return found


class _Layers(nn.Module):
    """Everything up to the raw predictions, as a flat list."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """float [B, 3, H, W], 0..255."""
        return tuple(tree_leaves(self.predictor(images)))

    def program(self) -> torch.export.ExportedProgram:
        """For batches of any size, and images of any size where the resize has no fixed one."""
        height, width = self.predictor.resize.size
        shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1024)}
        if not self.predictor.resize.fixed:
            divisor = self.predictor.size_divisor
            height, width = height + -height % divisor, width + -width % divisor
            for axis, name in ((2, "height"), (3, "width")):
                cells = torch.export.Dim(name, min=-(-_SMALLEST // divisor), max=2**14 // divisor)
                shapes[axis] = cells if divisor == 1 else divisor * cells
        with torch.no_grad():
            return torch.export.export(
                self, (torch.zeros(2, 3, height, width),), dynamic_shapes={"images": shapes}, strict=False)


def _opened(path: Path, ready: Predictor) -> OnnxRuntimePredictor | None:
    """A converted network, if it gives what the network gives: its name cannot tell everything that it depends on."""
    images = 255 * torch.rand(1, 3, *ready.resize.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, structure = tree_flatten(ready(images))
        try:
            with quiet():
                run = onnx.run(path, torch.get_num_threads(), _names(len(expected)))
            found = OnnxRuntimePredictor(ready, run, structure)
            given = tree_leaves(found(images))
        except Exception:  # each of onnxruntime's own; what is damaged is converted again
            return None
    if not all(_close(mine, wanted) for mine, wanted in zip(given, expected, strict=True)):
        return None
    os.utime(path)
    return found


def _convert(layers: _Layers, path: Path) -> None:
    with atomic_write(path, failure="the converted network was not kept") as unfinished, quiet():
        try:
            program = layers.program()
            names = _names(len(program.graph_signature.user_outputs))
            unfinished.write_bytes(onnx.model_proto(program, names).SerializeToString())
        except OSError:
            raise
        except Exception as error:  # torch's recorder and converter have many
            raise ValueError("ONNX Runtime cannot take this network; take the engine torch. "
                             f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    for old in sorted(path.parent.glob("*.onnx"), key=lambda file: file.stat().st_mtime)[:-_KEPT]:
        old.unlink(missing_ok=True)


def _names(number: int) -> list[str]:
    return [f"raw_{k}" for k in range(number)]


def _digest(predictor: Predictor, task: Task[Any, Any, Any, Any]) -> str:
    """What a converted network depends on, as far as it can be told."""
    parts = [weights_digest(predictor), repr(predictor), repr(fingerprint(predictor, task)), platform.machine(),
             *(f"{package} {version(package)}" for package in ("detseg", "torch", *onnx.FORMAT.packages))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _close(mine: Tensor, wanted: Tensor) -> bool:
    return mine.shape == wanted.shape and bool((mine - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
