"""ONNX, for ONNX Runtime on phones, desktops and in browsers, and for what else reads it.

The manifest is an entry of the model's metadata, written as the file's last bytes: viewers and ONNX Runtime show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detseg.export.format import Arrays, Format, Job, Run
from detseg.export.manifest import KEY, DamagedFileError, no_manifest

_ENTRY = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12"
"""How protobuf writes the key of a metadata entry, and what announces its value."""
_METADATA_FIELD = b"\x72"
"""ModelProto.metadata_props."""


def write(job: Job, path: Path) -> None:
    """One file with the weights inside; with fp16, the layers' weights are kept in half precision and widened when it
    is opened."""
    model = converted(job)
    if job.precision == "fp16":
        _halve(model)
    path.write_bytes(model.SerializeToString())


def converted(job: Job) -> Any:
    """The ModelProto of a network, in single precision."""
    program = torch.onnx.export(
        job.network.program(), dynamo=True, verbose=False, input_names=["images"], output_names=list(job.names))
    assert program is not None, "None is what the exporter before dynamo gives"
    return program.model_proto


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """A session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(images: NDArray[np.generic]) -> Arrays:
        return dict(zip(names, session.run(list(names), {"images": images}), strict=True))

    return call


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


FORMAT = Format(
    name="onnx", title="ONNX", suffix=".onnx", extra="onnx", converter=("onnx", "onnxscript"), runtime=("onnxruntime",),
    packages=("onnx", "onnxscript", "onnxruntime"), write=write, run=run, embed=embed, manifest=manifest,
    content=content, dynamic_batch=True)
