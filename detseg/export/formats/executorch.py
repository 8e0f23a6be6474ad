"""ExecuTorch (.pte), on XNNPACK: what the delegate has no kernel for runs on portable ones.

The file has one method, `forward`; its outputs stand in the manifest's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export import appended
from detseg.export.format import Arrays, Format, Job, Run


def write(job: Job, path: Path) -> None:
    """Lowered for XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    program = constant_prop_pass(job.network.program())
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """A method of the runtime; its outputs live until the next call. The threads are those of torch's process."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = method.execute([torch.from_numpy(images)])
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    return call


FORMAT = Format(
    name="executorch", title="ExecuTorch", suffix=".pte", extra="executorch", converter=("executorch",),
    runtime=("executorch",), packages=("executorch", "torchao"), write=write, run=run, embed=appended.embed,
    manifest=appended.manifest, content=appended.content, precisions=("fp32",), minutes="20 to 60 s", reasons={
        "fp16": "XNNPACK's files keep the weights of half-precision convolutions in single precision, as large",
        "dynamic batch": "the program's memory is planned for one size"})
