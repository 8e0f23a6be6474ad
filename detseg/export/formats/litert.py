"""LiteRT (.tflite), TensorFlow Lite's successor: outputs are read by their names in the signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detseg.export import appended
from detseg.export.format import Arrays, Format, Job, Run


def write(job: Job, path: Path) -> None:
    """Converted; with fp16, weights are kept in half precision and widened when the file is opened."""
    import litert_torch

    litert_torch.convert(job.network, sample_kwargs={"images": job.network.given.example()}).export(str(path))
    if job.precision == "fp16":
        _halve(path)


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """The signature's runner, on XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    runner = interpreter.get_signature_runner()

    def call(images: NDArray[np.generic]) -> Arrays:
        outputs = runner(images=images)
        return {name: outputs[name] for name in names}

    return call


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
    embed=appended.embed, manifest=appended.manifest, content=appended.content, minutes="10 to 30 s",
    reasons={"dynamic batch": "the converter's programs have one size"})
