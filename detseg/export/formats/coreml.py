"""Core ML (.mlpackage), for Apple's devices: an ML Program for iOS 17 and macOS 14 on.

uint8 images are Core ML's image type: a pixel buffer, of which only red, green and blue are read. Label maps come as
int32: there is no smaller type. Core ML itself is not run, but its program is evaluated operation by operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from detseg.export.coreml_program import SPEC, evaluator, read_spec
from detseg.export.format import Arrays, Format, Job, Run
from detseg.export.manifest import KEY, DamagedFileError, no_manifest


def write(job: Job, path: Path) -> None:
    """Converted; with fp16, it is computed in half precision."""
    import coremltools as ct

    network = copy.copy(job.network)  # recorded with floats, which is what an image is inside
    network.given = network.given._replace(pixels="float")
    program = network.program().run_decompositions(_decompositions())
    _without_aliases(program)
    inputs = None
    if job.network.given.pixels == "uint8":
        inputs = [ct.ImageType(name="images", shape=job.network.given.shape, color_layout=ct.colorlayout.RGB)]
    # The pass makes the normalisation a batch_norm whose epsilon changes every pixel by 5e-6 of its value.
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    model = ct.convert(
        program, inputs=inputs, outputs=[ct.TensorType(name=name) for name in job.names],
        minimum_deployment_target=ct.target.iOS17, skip_model_load=True, pass_pipeline=passes,
        compute_precision=ct.precision.FLOAT16 if job.precision == "fp16" else ct.precision.FLOAT32)
    model.save(str(path))


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """The program evaluated operation by operation, on every system; see `coreml_program`."""
    evaluate = evaluator(path)

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = evaluate({"images": torch.from_numpy(images).float()})
        return {name: outputs[name].numpy() for name in names}

    return call


def embed(path: Path, text: str) -> None:
    """As user-defined metadata."""
    spec = _spec(path)
    spec.description.metadata.userDefined[KEY] = text
    (path / SPEC).write_bytes(spec.SerializeToString(deterministic=True))


def manifest(path: Path) -> str:
    """The metadata's entry. DamagedFileError where there is none."""
    text: str = _spec(path).description.metadata.userDefined.get(KEY, "")
    if not text:
        raise no_manifest(path)
    return text


def content(path: Path) -> bytes:
    """The program without that entry, and its weights."""
    spec = _spec(path)
    spec.description.metadata.userDefined.pop(KEY, None)
    weights = sorted(file for file in path.rglob("*.bin"))
    return bytes(spec.SerializeToString(deterministic=True)) + b"".join(file.read_bytes() for file in weights)


def _spec(path: Path) -> Any:
    try:
        return read_spec(path)
    except Exception as error:  # protobuf's own
        raise DamagedFileError(f"{path} is cut short, or no package of Core ML") from error


def _decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Of operators that coremltools does not know."""
    aten = torch.ops.aten
    return {
        aten.__and__.Tensor: torch.logical_and,
        aten.where.ScalarOther: lambda condition, x, other: aten.where.self(condition, x, torch.full_like(x, other)),
        aten.div.Tensor_mode: _divided,
    }


def _without_aliases(program: ExportedProgram) -> None:
    """Decompositions leave nodes that do nothing, of which coremltools does not know."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def _divided(x: Tensor, y: Any, *, rounding_mode: str | None) -> Tensor:
    """coremltools makes a float of a floored quotient; suppression divides positions by classes."""
    if rounding_mode == "floor":
        return cast(Tensor, torch.ops.aten._to_copy.default(torch.ops.aten.floor_divide.default(x, y), dtype=x.dtype))
    return cast(Tensor, torch.ops.aten.div.Tensor(x, y))


FORMAT = Format(
    name="coreml", title="Core ML", suffix=".mlpackage", extra="coreml", converter=("coremltools",),
    runtime=("coremltools",), packages=("coremltools",), write=write, run=run, embed=embed, manifest=manifest,
    content=content, layouts=("nchw",), reasons={
        "nhwc": "Core ML's images are pixel buffers", "dynamic batch": "its image type is one picture"})
