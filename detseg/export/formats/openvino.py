"""OpenVINO, for Intel's processors: an .xml file and the weights beside it in a .bin, made through ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from detseg.export import beside
from detseg.export.format import Arrays, Format, Job, Operators, Run
from detseg.export.formats import onnx
from detseg.export.manifest import KEY, DamagedFileError, no_manifest

_RUNS = 10
"""Under the profiler; the counters are those of the last."""


def write(job: Job, path: Path) -> None:
    """Both files; with fp16, weights are kept in half precision."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "model.onnx"
        between.write_bytes(onnx.converted(job, inclusive=True).SerializeToString())
        model = openvino.convert_model(between)
    openvino.save_model(model, path, compress_to_fp16=job.precision == "fp16")


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """Compiled for the CPU, computing in single precision."""
    compiled = _compiled(path, threads)

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = compiled(images)
        return {name: outputs[name] for name in names}

    return call


def operators(path: Path, images: NDArray[np.generic]) -> Operators:
    """Of OpenVINO's performance counters; fused operators are counted once."""
    request = _compiled(path, 1, profile=True).create_infer_request()
    for _ in range(_RUNS):
        request.infer(images)
    executed = [(node.node_type, node.real_time.total_seconds() * 1e3) for node in request.profiling_info
                if node.status.name == "EXECUTED"]
    return Operators.counted(None, executed)


def _compiled(path: Path, threads: int, *, profile: bool = False) -> Any:
    import openvino

    return openvino.Core().compile_model(path, "CPU", {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": profile})


def embed(path: Path, text: str) -> None:
    """As runtime information of the model, where OpenVINO keeps what converters note."""
    tree = _parsed(path)
    information = tree.getroot().find("rt_info")
    if information is None:
        information = ElementTree.SubElement(tree.getroot(), "rt_info")
    ElementTree.SubElement(information, KEY, value=text)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def manifest(path: Path) -> str:
    """The entry. DamagedFileError where there is none."""
    entry = _parsed(path).getroot().find(f"rt_info/{KEY}")
    if entry is None:
        raise no_manifest(path)
    return str(entry.get("value", ""))


def content(path: Path) -> bytes:
    """Layers, edges and weights."""
    root = _parsed(path).getroot()
    for information in root.findall("rt_info"):
        root.remove(information)
    layers: str = ElementTree.canonicalize(ElementTree.tostring(root, "unicode"), strip_text=True)
    return layers.encode() + beside.read(path, path.with_suffix(".bin"), what="weights")


def files(path: Path) -> tuple[Path, ...]:
    """Both."""
    return path.with_suffix(".bin"), path


def _parsed(path: Path) -> Any:
    try:
        return ElementTree.parse(path)
    except ElementTree.ParseError:
        raise DamagedFileError(f"{path} is cut short, or no model of OpenVINO") from None


FORMAT = Format(
    name="openvino", title="OpenVINO", suffix=".xml", extra="openvino", converter=("openvino", "onnx", "onnxscript"),
    runtime=("openvino",), packages=("openvino", "onnx", "onnxscript"), write=write, run=run, embed=embed,
    manifest=manifest, content=content, operators=operators, files=files, dynamic_batch=True,
    precisions=("fp32", "fp16", "int8"), sums_in_16_bits=True)
