"""What an exported file takes and gives: the same names, order, shapes and types in every format.

It takes `images`: uint8 RGB [B, H, W, 3] (or [B, 3, H, W]), resized as the manifest says; normalisation is inside. Or
float32 of the same values, 0..255, not rounded. It gives, by contract:

    final    a detector    boxes float32 [B, R, 4] xyxy in input pixels, scores float32 [B, R], labels int32 [B, R],
                           count int32 [B]: best first, and rows from `count` on are empty (0, 0, -1)
             a segmenter   labels uint8 [B, H, W]
             a classifier  scores float32 [B, R], labels int32 [B, R]: best first
    decoded  a detector    boxes float32 [B, N, 4], scores float32 [B, N, K], before suppression
             a segmenter   scores float32 [B, K, H, W], of the input's size
             a classifier  scores float32 [B, K], which add up to 1
    raw      what the head's `forward` gives, field by field
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from detseg.choices import Contract
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.ops.suppression import greedily_kept
from detseg.structures import ClassScores, DenseBoxes, DenseLogits, Detections, LabelMaps, Size, TopClasses
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation

PixelType: TypeAlias = Literal["uint8", "float"]
PixelLayout: TypeAlias = Literal["nhwc", "nchw"]


class Input(NamedTuple):
    """What a file takes."""

    size: Size
    pixels: PixelType = "uint8"
    layout: PixelLayout = "nhwc"
    dynamic_batch: bool = False
    """Whether the batch may have any size; otherwise it is one image."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image in a batch."""
        return (1, *self.size, 3) if self.layout == "nhwc" else (1, 3, *self.size)

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels."""
        return torch.uint8 if self.pixels == "uint8" else torch.float32

    def example(self, *, batch: int = 1) -> Tensor:
        """Images of no colour, to record a program with."""
        return torch.zeros(batch, *self.shape[1:], dtype=self.dtype)

    def pack(self, images: Tensor) -> Tensor:
        """float [B, 3, H, W] in 0..255 as the file takes it; rounded, where it takes uint8."""
        packed = images.permute(0, 2, 3, 1) if self.layout == "nhwc" else images
        if self.pixels == "uint8":
            packed = packed.round().clamp(0, 255).to(torch.uint8)
        return packed.contiguous()

    def unpack(self, packed: Tensor) -> Tensor:
        """The way back: float32 [B, 3, H, W]."""
        images = packed.to(torch.float32)  # first: XNNPACK transposes floats
        return images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images


class Outputs(ABC):
    """How the predictions of a kind of task are called in a file, and the way back."""

    kind: ClassVar[str]

    @abstractmethod
    def of_dense(self, dense: Any) -> dict[str, Tensor]:
        """Dense predictions by name, for the contract "decoded"."""

    @abstractmethod
    def of_finished(self, finished: Any) -> dict[str, Tensor]:
        """Finished predictions by name, for the contract "final"."""

    @abstractmethod
    def dense(self, outputs: Mapping[str, Tensor]) -> Any:
        """The way back from "decoded"."""

    @abstractmethod
    def finished(self, outputs: Mapping[str, Tensor]) -> Any:
        """The way back from "final"."""


class DetectionOutputs(Outputs):
    """Boxes, scores and labels."""

    kind = "detection"

    def of_dense(self, dense: DenseBoxes) -> dict[str, Tensor]:
        """Where each class has its own box, a region becomes K rows, and each has only the score of its class."""
        boxes, scores = dense.boxes, dense.scores
        if boxes.dim() == 4:
            num_classes = scores.shape[2]
            # The identity, but not by torch.eye: its operator in LiteRT's files is one that LiteRT does not have.
            own = torch.ones(num_classes, num_classes, dtype=scores.dtype, device=scores.device).triu().tril()
            scores = (scores[..., None] * own).flatten(1, 2)
            boxes = boxes.flatten(1, 2)
        return {"boxes": boxes, "scores": scores}

    def of_finished(self, finished: Detections) -> dict[str, Tensor]:
        """Labels and count are int32 in every format: some have no other integers."""
        return {"boxes": finished.boxes, "scores": finished.scores, "labels": finished.labels.to(torch.int32),
                "count": finished.num_valid.to(torch.int32)}

    def dense(self, outputs: Mapping[str, Tensor]) -> DenseBoxes:
        """As they were, but that a class's own box is a row of its own."""
        return DenseBoxes(outputs["boxes"], outputs["scores"])

    def finished(self, outputs: Mapping[str, Tensor]) -> Detections:
        """As they were."""
        return Detections(outputs["boxes"], outputs["scores"], outputs["labels"].long(), outputs["count"].long())


class SegmentationOutputs(Outputs):
    """Scores of every class for every pixel, or labels."""

    kind = "segmentation"

    def of_dense(self, dense: DenseLogits) -> dict[str, Tensor]:
        """Enlarged to the input's size."""
        return {"scores": enlarge(dense)}

    def of_finished(self, finished: LabelMaps) -> dict[str, Tensor]:
        """One byte a pixel."""
        return {"labels": finished.labels}

    def dense(self, outputs: Mapping[str, Tensor]) -> DenseLogits:
        """They have the input's size already."""
        scores = outputs["scores"]
        return DenseLogits(scores, (scores.shape[2], scores.shape[3]))

    def finished(self, outputs: Mapping[str, Tensor]) -> LabelMaps:
        """As they were."""
        return LabelMaps(outputs["labels"].to(torch.uint8))


class ClassificationOutputs(Outputs):
    """Scores of every class, or the best classes."""

    kind = "classification"

    def of_dense(self, dense: ClassScores) -> dict[str, Tensor]:
        """As they are."""
        return {"scores": dense.scores}

    def of_finished(self, finished: TopClasses) -> dict[str, Tensor]:
        """Labels are int32 in every format: some have no other integers."""
        return {"scores": finished.scores, "labels": finished.labels.to(torch.int32)}

    def dense(self, outputs: Mapping[str, Tensor]) -> ClassScores:
        """As they were."""
        return ClassScores(outputs["scores"])

    def finished(self, outputs: Mapping[str, Tensor]) -> TopClasses:
        """As they were."""
        return TopClasses(outputs["scores"], outputs["labels"].long())


_KINDS: dict[type[Task[Any, Any, Any, Any]], Outputs] = {
    Detection: DetectionOutputs(), Segmentation: SegmentationOutputs(), Classification: ClassificationOutputs()}


def outputs_of(task: Task[Any, Any, Any, Any]) -> Outputs:
    """How a task's predictions are called in a file. ValueError for a task that files have no names for."""
    for kind, outputs in _KINDS.items():
        if isinstance(task, kind):
            return outputs
    raise ValueError(f"the predictions of {type(task).__name__} have no names in a file; export knows "
                     f"{', '.join(kind.__name__ for kind in _KINDS)} and what is made of them")


def task_values(task: Task[Any, Any, Any, Any]) -> dict[str, Any]:
    """A task as plain values, for `task_from`."""
    return {"kind": outputs_of(task).kind} | asdict(cast(Any, task))


def task_from(values: Mapping[str, Any]) -> Task[Any, Any, Any, Any]:
    """The task of plain values. ValueError where they are of none."""
    for kind, outputs in _KINDS.items():
        if outputs.kind == values.get("kind"):
            known = {field.name for field in fields(cast(Any, kind))}
            return kind(**{name: value for name, value in values.items() if name in known})
    raise ValueError(f"there is no task of the kind {values.get('kind')!r}")


class ExportedNetwork(nn.Module):
    """What a file computes: packed images to named predictions, in the static form, on the CPU.

    Args:
        predictor: the network as trained; it is copied and folded.
        task: what makes final predictions of dense ones.
        contract: where the file ends.
        given: what it takes.
        int8: what computes the raw outputs in place of the predictor's layers; see `detseg.quantization`.
    """

    def __init__(
        self, predictor: Predictor, task: Task[Any, Any, Any, Any], *, contract: Contract, given: Input,
        int8: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # Weights channels last end executorch's own passes.
        self.predictor = predictor.folded().to("cpu").to(memory_format=torch.contiguous_format)
        self.task, self.contract, self.given, self.outputs = task, contract, given, outputs_of(task)
        self.int8 = int8

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`Input.pack`ed images to the contract's outputs."""
        pixels = self.given.unpack(images)
        raw = self.predictor(pixels) if self.int8 is None else self.int8(pixels)
        if self.contract == "raw":
            return named_raw(raw)
        dense = self.predictor.head.decode(raw, (pixels.shape[2], pixels.shape[3]), static=True)
        if self.contract == "decoded":
            return self.outputs.of_dense(dense)
        return self.outputs.of_finished(self.task.postprocess(dense, static=True))

    def program(self, *, whole_suppression: bool = False) -> torch.export.ExportedProgram:
        """As torch.export records it; its outputs have their names.

        whole_suppression: leave the operator `detseg::greedily_kept` as it is, for a format with one of its own; else
            it is taken apart into its steps.
        """
        batch = torch.export.Dim("batch", min=1, max=256) if self.given.dynamic_batch else None
        # A batch of one would be taken for a constant.
        example = self.given.example(batch=1 if batch is None else 2)
        shapes = None if batch is None else {"images": {0: batch}}
        with torch.no_grad():
            program = torch.export.export(self, (example,), dynamic_shapes=shapes, strict=False)
        kept = torch.ops.detseg.greedily_kept.default
        if not whole_suppression and any(node.target == kept for node in program.graph.nodes):
            program = program.run_decompositions({kept: greedily_kept})
        for node in program.graph.nodes:  # these name the files of the machine it was recorded on
            node.meta.pop("stack_trace", None)
        return program


class DecodedRaw(nn.Module):
    """Named raw outputs to dense predictions by name: the head's decoding, for files that end with "raw"."""

    def __init__(self, network: ExportedNetwork, raw: Any) -> None:
        super().__init__()
        self.head, self.size, self.outputs = network.predictor.head, network.given.size, network.outputs
        self.make = _unnamed(raw)

    def forward(self, named: dict[str, Tensor]) -> dict[str, Tensor]:
        """As the contract "decoded"."""
        return self.outputs.of_dense(self.head.decode(self.make(named), self.size, static=True))


def named_raw(raw: Any) -> dict[str, Tensor]:
    """A head's raw outputs by name: a field, or field_0, field_1 ... of several maps."""
    named: dict[str, Tensor] = {}
    for name, value in zip(raw._fields, raw, strict=True):
        if isinstance(value, Tensor):
            named[name] = value.float()
        else:
            named |= {f"{name}_{k}": one.float() for k, one in enumerate(value)}
    return named


def _unnamed(raw: Any) -> Any:
    """From names back to the raw outputs that `raw` is an example of."""
    kind = type(raw)
    lengths = {name: None if isinstance(value, Tensor) else len(value)
               for name, value in zip(raw._fields, raw, strict=True)}

    def make(named: Mapping[str, Tensor]) -> Any:
        return kind(**{
            name: named[name] if number is None else tuple(named[f"{name}_{k}"] for k in range(number))
            for name, number in lengths.items()})

    return make


@dataclass(frozen=True)
class OutputSpec:
    """An output as the manifest tells it: shape with -1 for a free batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def output_specs(network: ExportedNetwork) -> tuple[OutputSpec, ...]:
    """What a file will give, found out by running the network once. ValueError where it cannot take such images."""
    try:
        with torch.inference_mode():
            given = network(network.given.example())
    except Exception as error:  # whatever a backbone says to maps that are too small
        height, width = network.given.size
        raise ValueError(f"the network cannot take images of {height} x {width}: {error}") from error
    free = network.given.dynamic_batch
    return tuple(
        OutputSpec(name, (-1 if free else tensor.shape[0], *tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in given.items())
