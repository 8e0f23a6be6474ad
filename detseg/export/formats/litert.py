"""LiteRT (.tflite), TensorFlow Lite's successor: outputs are read by their names in the signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export import appended
from detseg.export.format import Arrays, Format, Job, Operators, PhoneBenchmark, Run
from detseg.export.rewrites import NOTHING, rewritten
from detseg.ops.suppression import greedily_kept
from detseg.quantization.recorded import HARD_SWISH, WEIGHTED, attribute, bias_name

_DELEGATE = "DELEGATE"


def write(job: Job, path: Path) -> None:
    """Converted; with fp16, weights are kept in half precision and widened when the file is opened."""
    import litert_torch
    from litert_torch.fx_infra import decomp

    decomp.add_pre_convert_decomp(torch.ops.detseg.greedily_kept.default, greedily_kept)
    int8 = None
    if job.network.int8 is not None:
        # The converter makes h-swish between integers one of integers, which XNNPACK has not, so that each would end a
        # part of the network that XNNPACK computes.
        job = job._replace(network=rewritten(job.network, HARD_SWISH))
        _distinguish_biases(job.network.int8)
        from litert_torch.quantize import pt2e_quantizer, quant_config

        # Nothing is quantised by it, but the converter is told to make integers of what is.
        told = pt2e_quantizer.PT2EQuantizer().set_global(pt2e_quantizer.get_symmetric_quantization_config())
        int8 = quant_config.QuantConfig(pt2e_quantizer=told)
    litert_torch.convert(job.network, sample_kwargs={"images": job.network.given.example()},
                         quant_config=int8).export(str(path))
    if int8 is not None:
        _without_marks(path)
    if job.precision == "fp16":
        _halve(path)


@torch.no_grad()
def _distinguish_biases(module: Any) -> None:
    """Makes a bias whose numbers are all equal, such as a new classifier's, differ in the last digit of one: of equal
    ones the converter makes an integer for the first channel's scale, and takes it for all channels."""
    for node in module.graph.nodes:
        if node.target in WEIGHTED and (name := bias_name(node)) is not None:
            bias = attribute(module, name)
            if (bias == bias[0]).all():
                bias[0] = torch.nextafter(bias[0], torch.zeros(()))


def _without_marks(path: Path) -> None:
    """Takes the sums of `rewritten` out of the file."""
    from ai_edge_litert.tools import flatbuffer_utils as flatbuffer

    model = flatbuffer.read_model(str(path))
    is_sum = [flatbuffer.opcode_to_name(model, number) == "ADD" for number in range(len(model.operatorCodes))]
    nothing = np.float32(NOTHING).tobytes()
    for graph in model.subgraphs:
        marks = {number for number, tensor in enumerate(graph.tensors)
                 if _bytes(model.buffers[tensor.buffer].data) == nothing}
        same, kept = dict[int, int](), []
        for operator in graph.operators:
            operator.inputs = [same.get(number, number) for number in operator.inputs]
            if is_sum[operator.opcodeIndex] and marks.intersection(operator.inputs):
                (given,) = (number for number in operator.inputs if number not in marks)
                same[operator.outputs[0]] = given
            else:
                kept.append(operator)
        graph.operators = kept
        graph.outputs = [same.get(number, number) for number in graph.outputs]
        for signature in model.signatureDefs:
            for output in signature.outputs:
                output.tensorIndex = same.get(output.tensorIndex, output.tensorIndex)
    flatbuffer.write_model(model, str(path))


def _bytes(data: Any) -> bytes:
    return b"" if data is None else bytes(data)


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """The signature's runner, on XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    runner = interpreter.get_signature_runner()

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = runner(images=images)
        return {name: outputs[name] for name in names}

    return call


def operators(path: Path, images: NDArray[np.generic]) -> Operators:
    """Of the graph behind the delegates, from its outputs backwards; the interpreter tells no times."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()
    # A tensor that a delegate gives is also an output of the operator that it replaced; the delegate comes behind.
    makers = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    wanted = [int(output["index"]) for output in interpreter.get_output_details()]
    used: dict[int, str] = {}
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node["index"] not in used:
            used[node["index"]] = node["op_name"]
            wanted += (int(tensor) for tensor in node["inputs"])
    others = [(name, None) for name in used.values() if name != _DELEGATE]
    return Operators.counted(sum(node["op_name"] != _DELEGATE for node in nodes) - len(others), others)


def _halve(path: Path) -> None:
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    weights = quantizer.Quantizer(str(path))
    weights.update_quantization_recipe(
        regex=".*", operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT),
        algorithm_key=AlgorithmName.FLOAT_CASTING)
    weights.quantize().export_model(str(path), overwrite=True)


FORMAT = Format(
    name="litert", title="LiteRT", suffix=".tflite", extra="litert", converter=("litert_torch",),
    runtime=("ai_edge_litert",), packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer"), write=write, run=run,
    embed=appended.embed, manifest=appended.manifest, content=appended.content, operators=operators,
    folds_weights=False, minutes="10 to 30 s", precisions=("fp32", "fp16", "int8"),
    reasons={"dynamic batch": "the converter's programs have one size"},
    phone=PhoneBenchmark(
        "benchmark_model",
        lambda file, threads, runs, _: [f"--graph={file}", f"--num_threads={threads}", f"--num_runs={runs}"],
        r"Inference \(avg\): (?P<time>[\d.e+]+)", unit=1e-3))
