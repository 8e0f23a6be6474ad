"""ncnn, for Vulkan and Arm: .ncnn.param and .ncnn.bin, made by pnnx, with the manifest as a JSON file beside them.

ncnn knows no batches: an image is [3, H, W], and outputs lack their first dimension, which is put back here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from detseg.export import beside
from detseg.export.contract import ExportedNetwork
from detseg.export.format import Arrays, Format, Job, PhoneBenchmark, Run
from detseg.export.quiet import silent_programs


class _AsTuple(nn.Module):
    """Outputs in their order: pnnx records no names."""

    def __init__(self, network: ExportedNetwork, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the network, without names."""
        outputs = self.network(images)
        return tuple(outputs[name] for name in self.names)


def write(job: Job, path: Path) -> None:
    """Both files; with fp16, weights are kept in half precision."""
    import pnnx

    module = _AsTuple(job.network, job.names).eval()
    with tempfile.TemporaryDirectory() as folder, silent_programs():
        example = job.network.given.example()
        pnnx.export(module, str(Path(folder) / "model.pt"), (example,), fp16=job.precision == "fp16")
        shutil.copy(Path(folder) / "model.ncnn.param", path)
        shutil.copy(Path(folder) / "model.ncnn.bin", _weights(path))


def run(path: Path, threads: int, names: Sequence[str]) -> Run:
    """A network on the CPU, computing in single precision."""
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_vulkan_compute = False
    network.opt.use_fp16_arithmetic = network.opt.use_fp16_storage = network.opt.use_fp16_packed = False
    if network.load_param(str(path)) or network.load_model(str(_weights(path))):
        raise ValueError("it cannot be loaded")

    def call(images: NDArray[np.generic]) -> Arrays:
        extractor = network.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(images[0])).clone())
        found = {}
        for k, name in enumerate(names):
            failed, output = extractor.extract(f"out{k}")
            if failed:
                raise ValueError(f"{path} gives no output {name}")
            found[name] = np.array(output)[None]
        return found

    return call


def content(path: Path) -> bytes:
    """Both files."""
    return path.read_bytes() + beside.read(path, _weights(path), what="weights")


def files(path: Path) -> tuple[Path, ...]:
    """All three."""
    return _weights(path), beside.place(path), path


def _weights(path: Path) -> Path:
    return path.with_suffix(".bin")


FORMAT = Format(
    name="ncnn", title="ncnn", suffix=".ncnn.param", extra="ncnn", converter=("pnnx",), runtime=("ncnn",),
    packages=("pnnx", "ncnn"), write=write, run=run, embed=beside.embed, manifest=beside.manifest, content=content,
    files=files, contracts=("raw", "decoded"), two_stage_contracts=(), pixels=("float",), layouts=("nchw",), reasons={
        "final": "ncnn has no topk and no gather (Tencent/ncnn issues 5520 and 4156), and no whole numbers",
        "decoded": "pnnx records code that depends on values, as the second stage's regions do",
        "uint8": "ncnn takes floats; Mat.from_pixels makes them of bytes",
        "nhwc": "ncnn's images are planes", "dynamic batch": "ncnn knows no batches"},
    phone=PhoneBenchmark(
        "benchncnn", lambda file, threads, runs, given: [
            f"{runs}", f"{threads}", "0", "-1", "0", f"param={file}", f"shape=[{given.size[1]},{given.size[0]},3]"],
        r"avg =\s*(?P<time>[\d.]+)"))
