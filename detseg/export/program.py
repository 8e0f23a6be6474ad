"""A whole prediction as one program of fixed shapes: what every format is made from."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.structures import Size

Until: TypeAlias = Literal["decode", "postprocess"]
"""Where a program ends: with dense predictions, or with final ones: suppressed boxes, or a label map."""


class ExportedPrediction(nn.Module):
    """Images to predictions in network pixels, by name: the fields of what the head decodes, or the task makes of it.

    Everything in it is in its static form, in which no shape depends on a value.
    """

    def __init__(self, predictor: Predictor, task: Task[Any, Any, Any, Any], *, until: Until) -> None:
        super().__init__()
        self.predictor, self.task, self.until = predictor.folded(), task, until

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float32 [B, 3, H, W] RGB, 0..255, resized as `predictor.resize` does it."""
        found = self.predictor.decode(images, static=True)
        if self.until == "postprocess":
            found = self.task.postprocess(found, static=True)
        named: dict[str, Tensor] = found._asdict()
        return named


def export_program(
    predictor: Predictor, task: Task[Any, Any, Any, Any], *, until: Until, size: Size | None = None
) -> ExportedProgram:
    """The prediction for one image, traced strictly: its only input is `images`, its outputs have names.

    size: of the image, where it shall not be that of `predictor.resize`. The program is on the predictor's device.
    """
    height, width = size or predictor.resize.size
    images = torch.zeros(1, 3, height, width, device=predictor.device)
    return torch.export.export(ExportedPrediction(predictor, task, until=until), (images,), strict=True)


def output_names(program: ExportedProgram) -> list[str]:
    """What a program of `export_program` calls its outputs, in their order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    assert spec.type is dict, "ExportedPrediction gives its outputs by name"
    return list(spec.context)
