"""ExecuTorch (.pte), on XNNPACK: what the delegate has no kernel for runs on portable ones.

The file has one method, `forward`; its outputs stand in the manifest's order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export import appended
from detseg.export.format import Arrays, Format, Job, Operators, PhoneBenchmark, Run
from detseg.export.rewrites import conversions, rewritten
from detseg.quantization.recorded import aten

_CALL = "native_call_"
"""What the trace's names of operators outside a delegate begin with."""
_RUNS = 10
"""Under the profiler."""


def write(job: Job, path: Path) -> None:
    """Lowered for XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    network = job.network
    if network.int8 is not None:
        network = rewritten(network)
        _requantise_parts(network.int8)
    program = constant_prop_pass(network.program(), custom_skip_targets=_kept_operators())
    # Between bytes and floats, copies with an order of dimensions take over ten times as long as copies without.
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_skip_dim_order=True))
    path.write_bytes(lowered.to_executorch().buffer)


def _requantise_parts(module: Any) -> None:
    """Gives tensors that are put side by side the scale of the whole beforehand, which changes no number: XNNPACK moves
    integers there and does not convert them, and refuses a file whose scales differ."""
    quantize, dequantize = conversions()
    for node in list(module.graph.nodes):
        if node.target != aten.cat.default or {user.target for user in node.users} != {quantize}:
            continue
        _, *scale = next(iter(node.users)).args
        with module.graph.inserting_before(node):
            integers = [module.graph.call_function(quantize, (part, *scale)) for part in node.args[0]]
            node.update_arg(0, [module.graph.call_function(dequantize, (part, *scale)) for part in integers])
    module.recompile()


def _kept_operators() -> set[object]:
    """Those that are not computed here although what they take is constant: int8's weights would become floats."""
    from executorch.exir.passes.constant_prop_pass import get_default_skip_targets_no_quant
    from torchao.quantization.pt2e import quantizer  # noqa: F401 (it registers the operators)

    operators = torch.ops.quantized_decomposed
    return {*get_default_skip_targets_no_quant(), *(
        getattr(operators, f"{verb}_{what}").default
        for verb in ("quantize", "dequantize") for what in ("per_tensor", "per_channel"))}


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """A method of the runtime; its outputs live until the next call. The threads are those of torch's process."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = method.execute([torch.from_numpy(images)])
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    return call


def operators(path: Path, images: NDArray[np.generic]) -> Operators:
    """Of the runtime's event trace: delegates tell what they computed, and every other operator was called."""
    from executorch.devtools import Inspector
    from executorch.extension.pybindings import portable_lib

    module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
    for _ in range(_RUNS):
        module.forward([torch.from_numpy(images)])
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.etdp"
        module.write_etdump_result_to_file(str(trace))
        blocks = Inspector(etdump_path=str(trace)).event_blocks
    (events,) = (block.events for block in blocks if block.name == "Execute")
    called = [event for event in events if event.name.startswith(_CALL)]
    return Operators.counted(
        sum(event.is_delegated_op for event in events),
        ((event.name.removeprefix(_CALL), float(event.perf_data.p50)) for event in called))


FORMAT = Format(
    name="executorch", title="ExecuTorch", suffix=".pte", extra="executorch", converter=("executorch",),
    runtime=("executorch",), packages=("executorch", "torchao"), write=write, run=run, embed=appended.embed,
    manifest=appended.manifest, content=appended.content, operators=operators, precisions=("fp32", "int8"),
    minutes="20 to 60 s", reasons={
        "fp16": "XNNPACK's files keep the weights of half-precision convolutions in single precision, as large",
        "dynamic batch": "the program's memory is planned for one size"},
    phone=PhoneBenchmark(
        "executor_runner", lambda file, threads, runs, _: [
            f"--model_path={file}", f"--cpu_threads={threads}", f"--num_executions={runs}"],
        r"Model executed successfully (?P<runs>\d+) time\(s\) in (?P<time>[\d.]+) ms"))
