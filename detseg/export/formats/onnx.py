"""ONNX, for ONNX Runtime on phones, desktops and in browsers, and for what else reads it.

The manifest is an entry of the model's metadata, written as the file's last bytes: viewers and ONNX Runtime show it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export.format import Arrays, Format, Job, Operators, PhoneBenchmark, Run
from detseg.export.manifest import KEY, DamagedFileError, no_manifest

_ENTRY = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12"
"""How protobuf writes the key of a metadata entry, and what announces its value."""
_METADATA_FIELD = b"\x72"
"""ModelProto.metadata_props."""
_RUNS = 10
"""Under the profiler."""


def write(job: Job, path: Path) -> None:
    """One file with the weights inside; with fp16, the layers' weights are kept in half precision and widened when it
    is opened."""
    model = converted(job)
    if job.precision == "fp16":
        _halve(model)
    path.write_bytes(model.SerializeToString())


def converted(job: Job, *, inclusive: bool = False) -> Any:
    """The ModelProto of a network, in single precision or with int8's QuantizeLinear and DequantizeLinear; see
    `model_proto`."""
    model = model_proto(job.network.program(whole_suppression=True), job.names, inclusive=inclusive)
    if job.precision == "int8":
        unsigned_activations(model)
        integer_biases(model)
        _drop_unused(model)
    return model


def model_proto(
    program: torch.export.ExportedProgram, names: Sequence[str], *, given: Sequence[str] = ("images",),
    inclusive: bool = False,
) -> Any:
    """The ModelProto of a program.

    Args:
        program: as torch has recorded it.
        names: of its outputs.
        given: the names of what it is given.
        inclusive: write for a runtime whose NonMaxSuppression takes boxes away that overlap by the threshold itself,
            which ONNX does not.
    """
    converted = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=list(given), output_names=list(names),
        custom_translation_table={
            torch.ops.detseg.greedily_kept.default: _greedily_kept_inclusive if inclusive else _greedily_kept})
    assert converted is not None, "None is what the exporter before dynamo gives"
    return converted.model_proto


def _greedily_kept(boxes: Any, labels: Any, entered: Any, iou_threshold: float) -> Any:
    """`detseg::greedily_kept` by ONNX's NonMaxSuppression, which gives the positions of what is kept. It goes by
    scores: here the candidates' ranks, which are never equal, in the row of their class."""
    import onnxscript

    onnx: Any = onnxscript.opset18
    one = onnx.Constant(value_ints=[1])
    number = onnx.Gather(onnx.Shape(boxes), one)
    ranks = onnx.Cast(onnx.Range(onnx.Squeeze(number), onnx.Constant(value_int=0), onnx.Constant(value_int=-1)), to=1)
    num_classes = onnx.Add(onnx.ReduceMax(labels, keepdims=0), onnx.Constant(value_int=1))
    of_class = onnx.OneHot(labels, num_classes, onnx.Constant(value_floats=[0.0, 1.0]), axis=1)
    scores = onnx.Mul(of_class, onnx.Unsqueeze(onnx.Mul(entered, ranks), one))
    found = onnx.NonMaxSuppression(
        boxes, scores, number, onnx.Constant(value_floats=[iou_threshold]), onnx.Constant(value_floats=[0.0]))
    places = onnx.Gather(found, onnx.Constant(value_ints=[0, 2]), axis=1)
    num_found = onnx.Gather(onnx.Shape(places), onnx.Constant(value_ints=[0]))
    ones = onnx.Expand(onnx.Constant(value_floats=[1.0]), num_found)
    return onnx.ScatterND(onnx.Mul(entered, onnx.Constant(value_float=0.0)), places, ones)


def _greedily_kept_inclusive(boxes: Any, labels: Any, entered: Any, iou_threshold: float) -> Any:
    """The same by the next larger threshold."""
    return _greedily_kept(boxes, labels, entered, float(np.nextafter(np.float32(iou_threshold), np.float32(1))))


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """A session on the CPU."""
    session = _session(path, threads)

    def call(images: NDArray[np.generic]) -> Arrays:
        return dict(zip(names, session.run(list(names), {"images": images}), strict=True))

    return call


def operators(path: Path, images: NDArray[np.generic]) -> Operators:
    """Of onnxruntime's profile, a JSON file of events."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, 1, profile=str(Path(folder) / "profile"))
        for _ in range(_RUNS):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"] / 1e3)
            kinds[event["name"]] = event["args"]["op_name"]
    return Operators.counted(None, ((kinds[name], median(found)) for name, found in times.items()))


def _session(path: Path, threads: int, *, profile: str | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def embed(path: Path, text: str) -> None:
    """Appends the entry: in protobuf, what follows a message adds to it."""
    value = text.encode()
    entry = _ENTRY + _varint(len(value)) + value
    with path.open("ab") as file:
        file.write(_METADATA_FIELD + _varint(len(entry)) + entry)


def manifest(path: Path) -> str:
    """The last entry."""
    return _split(path)[1]


def content(path: Path) -> bytes:
    """Everything before it; all, where there is none."""
    try:
        return _split(path)[0]
    except DamagedFileError:
        return path.read_bytes()


def _split(path: Path) -> tuple[bytes, str]:
    whole = path.read_bytes()
    at = whole.rfind(_ENTRY)
    if at < 0:
        raise no_manifest(path)
    length, start = _read_varint(whole, at + len(_ENTRY))
    value = whole[start : start + length]
    front = _METADATA_FIELD + _varint(start + length - at)
    if start + length != len(whole) or whole[at - len(front) : at] != front:
        raise no_manifest(path)
    return whole[: at - len(front)], value.decode("utf-8", "replace")


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    number = shift = 0
    while at < len(content):
        number |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 128:
            break
    return number, at


def _halve(model: Any) -> None:
    """Weights of convolutions and products to float16, each with a cast behind it; anchors and the like stay."""
    from onnx import TensorProto, helper, numpy_helper

    layers = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in layers or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.fp16")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(half)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def unsigned_activations(model: Any) -> None:
    """Activations of int8 to uint8, by zero points larger by 128: x86 multiplies unsigned with signed bytes, and takes
    four times as long for two that are signed. Weights stay as they are."""
    from onnx import TensorProto, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    signed = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    moved = dict[str, str]()
    for node in list(model.graph.node):
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in signed):
            name = node.input[2]
            if name not in moved:
                zero = numpy_helper.to_array(constants[name])
                moved[name] = f"{name}.unsigned"
                model.graph.initializer.append(
                    numpy_helper.from_array((zero.astype(np.int16) + 128).astype(np.uint8), moved[name]))
            node.input[2] = moved[name]
            for attribute in node.attribute:
                if attribute.name == "output_dtype":
                    attribute.i = TensorProto.UINT8 if attribute.i == TensorProto.INT8 else attribute.i
    for value in model.graph.value_info:
        if value.name in signed:
            value.type.tensor_type.elem_type = TensorProto.UINT8


def integer_biases(model: Any) -> None:
    """Biases of int8's layers to int32, of the scale of their products; without, runtimes compute in float."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    nodes = []
    for node in model.graph.node:
        operands = [makers[name] for name in node.input[:2] if name in makers]
        if (node.op_type in ("Conv", "Gemm") and len(node.input) == 3 and node.input[2] in constants
                and [one.op_type for one in operands] == ["DequantizeLinear"] * 2):
            scale = (numpy_helper.to_array(constants[operands[0].input[1]]).astype(np.float64)
                     * numpy_helper.to_array(constants[operands[1].input[1]])).reshape(-1)
            bias = numpy_helper.to_array(constants[node.input[2]])
            scale = np.broadcast_to(scale, bias.shape).astype(np.float32)
            whole = np.clip(np.round(bias / scale.astype(np.float64)), -2 ** 31, 2 ** 31 - 1).astype(np.int32)
            name = f"{node.output[0]}.bias"
            for suffix, value in (("", whole), (".scale", scale), (".zero", np.zeros_like(whole))):
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name + suffix))
            nodes.append(helper.make_node(
                "DequantizeLinear", [name, f"{name}.scale", f"{name}.zero"], [f"{name}.float"], axis=0))
            node.input[2] = f"{name}.float"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unused(model: Any) -> None:
    """Constants that no operator takes any more."""
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


FORMAT = Format(
    name="onnx", title="ONNX", suffix=".onnx", extra="onnx", converter=("onnx", "onnxscript"), runtime=("onnxruntime",),
    packages=("onnx", "onnxscript", "onnxruntime"), write=write, run=run, embed=embed, manifest=manifest,
    content=content, operators=operators, dynamic_batch=True, precisions=("fp32", "fp16", "int8"),
    sums_in_16_bits=True, phone=PhoneBenchmark(
        "onnxruntime_perf_test",
        lambda file, threads, runs, _: ["-e", "cpu", "-I", "-m", "times", "-r", f"{runs}", "-x", f"{threads}", file],
        r"Average inference time cost(?: total)?: (?P<time>[\d.]+) ms"))
