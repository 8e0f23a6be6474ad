"""The speed and memory of our backbones beside timm's or torchvision's model of the same architecture.

Both have the same weights, give the same taps, and have no classifier: timm's as `features_only=True` makes it,
torchvision's as its `create_feature_extractor` cuts it. What is timed takes turns, so that a machine whose speed drifts
treats both alike. Ours is laid out channels-last, as `fit` and `Predictor.ready` do it; theirs as it comes, unless
asked for otherwise.
"""

from __future__ import annotations

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from detseg.backbones import Builder, chosen
from detseg.backbones.trunk import Trunk
from detseg.benchmark.synthetic import calibrate
from detseg.benchmark.table import ready
from detseg.benchmark.tensor_memory import peak_memory
from detseg.cost import threads, time_alternating
from detseg.interfaces import Backbone
from detseg.weights import timm as timm_weights
from detseg.weights import torchvision as torchvision_weights


class Reference(NamedTuple):
    """A published model that is one of our backbones."""

    library: Literal["timm", "torchvision"]
    name: str
    last_tap: str = "c5"
    """What the coarsest map that it gives is called here: timm gives MnasNet's before the last convolution."""
    options: Mapping[str, Any] = MappingProxyType({})


_SYMMETRIC = MappingProxyType({"pad_type": ""})
"""timm's name for the padding of our default; its weights of these networks would expect TensorFlow's."""

REFERENCES: Mapping[str, Reference] = MappingProxyType({
    "mnasnet_a1": Reference("timm", "semnasnet_100", "c5.bottleneck"),
    "mnasnet_b1": Reference("torchvision", "mnasnet1_0"),
    "mobilenet_v1": Reference("timm", "mobilenetv1_100"),
    "mobilenet_v2": Reference("torchvision", "mobilenet_v2"),
    "mobilenet_v3_large": Reference("torchvision", "mobilenet_v3_large"),
    "mobilenet_v3_large_minimalistic": Reference("timm", "tf_mobilenetv3_large_minimal_100", options=_SYMMETRIC),
    "mobilenet_v3_small": Reference("torchvision", "mobilenet_v3_small"),
    "mobilenet_v3_small_minimalistic": Reference("timm", "tf_mobilenetv3_small_minimal_100", options=_SYMMETRIC),
    "mobilenet_v4_conv_large": Reference("timm", "mobilenetv4_conv_large"),
    "mobilenet_v4_conv_medium": Reference("timm", "mobilenetv4_conv_medium"),
    "mobilenet_v4_conv_small": Reference("timm", "mobilenetv4_conv_small"),
    "mobilenet_v4_hybrid_large": Reference("timm", "mobilenetv4_hybrid_large"),
    "mobilenet_v4_hybrid_medium": Reference("timm", "mobilenetv4_hybrid_medium"),
})
"""By the name of our builder."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How to measure: for how many seconds each of the two times, on how many threads, with which images.

    threads: None is one for the forward pass, which is a phone's case, and as many as torch takes for training.
    channels_last: lays their model out as ours.
    """

    seconds: float = 10.0
    threads: int | None = None
    size: int = 320
    batch_size: int = 8
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32, the coarsest stride, got {self.size}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}: in training, BatchNorm needs two "
                             "values")

    @property
    def step_threads(self) -> int:
        """Threads of a forward and backward pass."""
        return self.threads or torch.get_num_threads()


class Figures(NamedTuple):
    """One backbone beside its reference; times are medians, ratios medians of the ratios of paired times."""

    backbone: str
    reference: str
    forward_ms: float
    """One image, ready for inference: BatchNorm folded."""
    forward_module_ms: float
    """One image, the module as it is, in evaluation mode."""
    reference_forward_ms: float
    step_ms: float
    """Forward and backward pass of a batch in training mode."""
    reference_step_ms: float
    memory_mib: float
    """The most that tensors made in that pass hold at one moment, gradients among them; neither parameters nor what
    a kernel takes for itself."""
    reference_memory_mib: float
    forward_ratio: float
    """Ours over theirs: below 1 ours is faster."""
    forward_module_ratio: float
    step_ratio: float
    memory_ratio: float
    difference: float
    """How far features differ at most in evaluation, by their largest number."""


RATIOS = ("forward_ratio", "forward_module_ratio", "step_ratio", "memory_ratio")


def measure(name: str, build: Builder, *, setup: Setup) -> Figures:
    """Times a backbone against its reference. ValueError: none is known, or timm is not installed."""
    reference = reference_of(name)
    torch.manual_seed(0)
    ours, theirs = _pair(build, reference)
    batch = torch.randn(setup.batch_size, 3, setup.size, setup.size)
    # With the initial statistics activations vanish, and numbers that are too small to be normal take longer.
    calibrate(theirs, [batch])
    _copy_weights(theirs, ours, reference)

    ours = ours.to(memory_format=torch.channels_last)
    batch_last = batch.contiguous(memory_format=torch.channels_last)
    if setup.channels_last:
        theirs, batch = theirs.to(memory_format=torch.channels_last), batch_last
    image, image_last = batch[:1].clone(), batch_last[:1].clone()

    with threads(setup.threads or 1), torch.inference_mode():
        ours.eval()
        theirs.eval()
        prepared = ready(ours)
        difference = max(_distance(prepared(image_last), theirs(image)), _distance(ours(image_last), theirs(image)))
        # The ratios are relative to the first.
        forward = time_alternating({
            "theirs": partial(theirs, image), "module": partial(ours, image_last),
            "ready": partial(prepared, image_last)}, seconds=setup.seconds)
    del prepared
    with threads(setup.step_threads):
        our_step, their_step = _step(ours.train(), batch_last), _step(theirs.train(), batch)
        memory, reference_memory = (peak_memory(call) / 2**20 for call in (our_step, their_step))
        step = time_alternating({"theirs": their_step, "ours": our_step}, seconds=setup.seconds, warmup=1)
    return Figures(
        name, f"{reference.library} {reference.name}", forward["ready"].median, forward["module"].median,
        forward["theirs"].median, step["ours"].median, step["theirs"].median, memory, reference_memory,
        forward["ready"].ratio, forward["module"].ratio, step["ours"].ratio, memory / reference_memory, difference)


def measurable(names: Sequence[str]) -> dict[str, Builder]:
    """The builders of these names, for no name all that have a reference. ValueError: no such backbone, no reference,
    no timm."""
    found = chosen(names or [name for name in chosen(()) if name in REFERENCES])
    for name in found:
        if reference_of(name).library == "timm" and importlib.util.find_spec("timm") is None:
            raise ValueError(f"timm is not installed, and {name} is measured against it: pip install timm, or name "
                             "backbones that torchvision has")
    return found


def reference_of(name: str) -> Reference:
    """The reference of one of our backbones; ValueError where none is known."""
    if name not in REFERENCES:
        raise ValueError(f"no reference of {name} is known; those of {', '.join(REFERENCES)} are in "
                         "detseg/benchmark/backbones.py")
    return REFERENCES[name]


def markdown(figures: Sequence[Figures]) -> str:
    """A line for each backbone, and the mean of the ratios: ours over theirs (ours / theirs)."""
    lines = [["backbone", "against", "forward, ms", "forward as a module, ms", "forward + backward, ms", "memory, MiB"],
             ["--"] * 6]
    for each in figures:
        lines.append([
            f"`{each.backbone}`", each.reference,
            f"{each.forward_ratio:.2f} ({each.forward_ms:.1f} / {each.reference_forward_ms:.1f})",
            f"{each.forward_module_ratio:.2f} ({each.forward_module_ms:.1f} / {each.reference_forward_ms:.1f})",
            f"{each.step_ratio:.2f} ({each.step_ms:.0f} / {each.reference_step_ms:.0f})",
            f"{each.memory_ratio:.3f} ({each.memory_mib:.1f} / {each.reference_memory_mib:.1f})"])
    lines.append(["mean", "", *(f"{mean:.2f}" for mean in means(figures).values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def means(figures: Sequence[Figures]) -> dict[str, float]:
    """The mean of each ratio over the backbones."""
    return {name: statistics.fmean(getattr(each, name) for each in figures) for name in RATIOS}


def notes(figures: Sequence[Figures], setup: Setup) -> str:
    """What the numbers of the table mean."""
    layout = "channels-last as ours" if setup.channels_last else "as it comes"
    return "\n".join([
        "ours over theirs (ours / theirs): the median of the ratios of paired times, and the medians of the times",
        f"forward: one image of {setup.size} x {setup.size}, CPU threads: {setup.threads or 1}; ours ready for "
        "inference (BatchNorm folded) or as a module, theirs as a module, in evaluation mode",
        f"forward + backward: {setup.batch_size} such images, CPU threads: {setup.step_threads}; training mode; memory "
        "is what tensors made in it hold at its peak",
        f"theirs: the same taps, no classifier, laid out {layout}; features differ by "
        f"{max(each.difference for each in figures):.1e} of the largest number at most"])


def as_json(figures: Sequence[Figures], setup: Setup) -> dict[str, Any]:
    """Plain values."""
    return {
        "size": setup.size, "batch_size": setup.batch_size, "threads": setup.threads or 1,
        "step_threads": setup.step_threads, "reference_channels_last": setup.channels_last, "torch": torch.__version__,
        "means": means(figures), "backbones": [each._asdict() for each in figures]}


def _pair(build: Builder, reference: Reference) -> tuple[Backbone, nn.Module]:
    """Ours and theirs, with the same taps."""
    ours = build(taps=("c2", "c3", "c4", reference.last_tap))
    if reference.library == "timm":
        import timm

        return ours, timm.create_model(
            reference.name, features_only=True, out_indices=(1, 2, 3, 4), **reference.options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's mnasnet warns of its initialisation
        whole = get_model(reference.name, weights=None, **reference.options)
    assert isinstance(ours, Trunk)
    if isinstance(getattr(whole, "features", None), nn.Sequential):
        nodes = {f"features.{block + 1}": name for block, taps in ours.taps.items() for name, _ in taps}
    else:  # mnasnet's stacks; the last three layers are convolution, BatchNorm and activation
        nodes = {"layers.8": "c2", "layers.9": "c3", "layers.11": "c4", "layers.16": "c5"}
    return ours, create_feature_extractor(whole, nodes)


def _copy_weights(theirs: nn.Module, ours: Backbone, reference: Reference) -> None:
    """Strictly: the two are the same network."""
    state = theirs.state_dict()
    if reference.library == "timm":
        names = timm_weights.mobilenet_names(state)
    elif torchvision_weights.is_mnasnet(state):
        names = torchvision_weights.mnasnet_names(state)
    else:
        names = torchvision_weights.mobilenet_names(state)
    ours.load_state_dict({names[key]: value for key, value in state.items()})


def _maps(features: Any) -> list[Tensor]:
    return list(features.values()) if isinstance(features, dict) else list(features)


def _distance(ours: Any, theirs: Any) -> float:
    return max(float((one - other).abs().max() / other.abs().max())
               for one, other in zip(_maps(ours), _maps(theirs), strict=True))


def _step(network: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward and backward pass, with the gradients of before thrown away."""
    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        loss = torch.stack([feature.square().mean() for feature in _maps(network(images))]).sum()
        torch.autograd.backward(loss)

    return step
