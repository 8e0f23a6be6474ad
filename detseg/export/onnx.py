"""ONNX files, for ONNX Runtime and what reads them: OpenVINO, TensorRT, WebAssembly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from detseg.export.program import output_names


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes one file with the weights inside; input and outputs are called as in the program.

    Needs the packages onnx and onnxscript.
    """
    converted = torch.onnx.export(program, dynamo=True, verbose=False, output_names=output_names(program))
    assert converted is not None, "None is what the exporter before dynamo gives"
    converted.save(str(path))
