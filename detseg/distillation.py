"""Distillation: a trained network, the teacher, says of every image what its student should say, too.

Teacher and student need nothing in common but the task and the classes: each has its own backbone, head, anchors and
input size. The teacher sees the very images that the student sees, augmented, on the same device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import singledispatch
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detseg.checkpoint import check_classes, restore_model
from detseg.fingerprint import fingerprint
from detseg.interfaces import Features, FeatureSpec, Losses, Task, Term, TrainingBatch
from detseg.model import Predictor
from detseg.ops.distillation import (
    box_losses,
    feature_losses,
    lesson_by_overlap,
    lesson_of_rows,
    logits_losses,
    one_box_each,
)
from detseg.optim import Distill
from detseg.resize import Resize
from detseg.structures import Classes, ClassScores, DenseBoxes, DenseLogits, Size


class Teacher:
    """A trained network that a student learns from, ready for inference; nothing changes it.

    Args:
        predictor: as it was trained; a copy of it is taken.
        task: of its predictions.
        name: of its checkpoint, for messages.
        meaning: the fingerprint in its checkpoint.

    ValueError without a fingerprint.
    """

    def __init__(
        self, predictor: Predictor, task: Task[Any, Any, Any, Any], *, name: str, meaning: Mapping[str, str] | None
    ) -> None:
        if meaning is None:
            raise ValueError(
                f"the teacher {name} carries no fingerprint: it is published weights, or was written by an older "
                "detseg. Whether its tensors still mean what they were trained as cannot be known, and a student would "
                "learn what is wrong without a word. Take a network that detseg train has left; it may start from "
                f"such a file, with --weights {name}")
        self.task, self.name = task, name
        self.identity = {**meaning, "weights": f"sha256 {_digest(predictor)}"}
        """What tells it from other teachers, by name: its fingerprint, and a digest of its weights."""
        self.network = predictor.folded().eval()  # what folding has put in, too

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Any, Features, Size]:
        """uint8 or float [B, 3, H, W] RGB, 0..255, to the head's raw outputs, the features, and the size that the
        images had for it."""
        size = _input_size(self.network.resize, (images.shape[2], images.shape[3]))
        if size != (images.shape[2], images.shape[3]):
            images = F.interpolate(images.float(), size, mode="bilinear", align_corners=False)
        raw, features = self.network(images.contiguous(memory_format=torch.channels_last), with_features=True)
        return raw, features, size


class Student(nn.Module):
    """A network and its adapters, 1 x 1 convolutions from its maps to the channels of the teacher's.

    Both are called as one module, so that several processes average the gradients of both; the adapters are no part of
    the network, whose checkpoint is an ordinary one.
    """

    def __init__(self, model: Predictor, channels: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.model, self.maps = model, tuple(channels)
        # Without biases, which normalisation would take out again.
        self.adapters = nn.ModuleList(nn.Conv2d(mine, theirs, 1, bias=False) for mine, theirs in channels.values())

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """uint8 or float [B, 3, H, W] RGB, 0..255, to the head's raw outputs, and the adapted maps."""
        raw, features = self.model(images, with_features=True)
        adapted = [adapter(features[name]) for name, adapter in zip(self.maps, self.adapters, strict=True)]
        return raw, adapted


class Distillation:
    """The objective of a run with `distill`, with the student that is called in place of the network.

    Args:
        model: the network that learns, prepared, on its device.
        task: of its predictions.
        settings: what counts how much.
        teacher: moves to the device too.

    ValueError where the teacher knows other classes, has another task, or has no map in common with the student.
    """

    def __init__(
        self, model: Predictor, task: Task[Any, Any, Any, Any], *, settings: Distill, teacher: Teacher
    ) -> None:
        mine, theirs = type(task).__name__, type(teacher.task).__name__
        if mine != theirs:
            raise ValueError(f"the teacher {teacher.name} is for another task: {theirs} there, {mine} here")
        check_classes(model.classes, teacher.network.classes, what=f"the teacher {teacher.name}")
        self.settings, self.teacher = settings, teacher
        teacher.network.to(model.device)
        specs, teacher_specs = _specs(model), _specs(teacher.network)
        self.maps = common_maps(specs, teacher_specs) if settings.feature_weight > 0 else {}
        """The student's maps that learn, and the teacher's that they learn from."""
        if settings.feature_weight > 0 and not self.maps:
            raise ValueError(
                f"the teacher {teacher.name} has no map of a name or stride of the student's: {_listed(teacher_specs)} "
                f"there, {_listed(specs)} here; leave features out with --set distill.feature_weight=0")
        self.student = Student(model, {
            name: (specs[name].channels, teacher_specs[other].channels) for name, other in self.maps.items()})
        self.student.adapters.to(model.device)
        self.columns, self.teacher_columns = (
            torch.tensor(columns, device=model.device)
            for columns in _columns(model.classes, teacher.network.classes))
        # The line of a head tells its anchors, where its maps are taken, and how it encodes boxes.
        self.same_head = fingerprint(model, task)["head"] == teacher.identity["head"]

    def __call__(self, network: nn.Module, model: Predictor, batch: TrainingBatch[Any], /) -> Losses:
        """An `Objective`; `network` is the student, or what stands around it."""
        settings, size = self.settings, (batch.images.shape[2], batch.images.shape[3])
        raw, adapted = network(batch.images)
        losses = _weighted(model.head.loss(raw, batch.targets, size), settings.label_weight)
        teacher_raw, features, teacher_size = self.teacher(batch.images)
        if settings.output_weight > 0:
            with torch.no_grad():
                wanted = self.teacher.network.head.decode(teacher_raw, teacher_size)
            relation = Relation(
                self.columns, self.teacher_columns, (size[0] / teacher_size[0], size[1] / teacher_size[1]),
                same_anchors=self.same_head and size == teacher_size)
            losses |= _weighted(
                output_losses(model.head.decode(raw, size), wanted, relation=relation, settings=settings),
                settings.output_weight)
        if adapted:
            wanted_maps = [_resized(features[name], x) for name, x in zip(self.maps.values(), adapted, strict=True)]
            losses |= _weighted(feature_losses(adapted, wanted_maps), settings.feature_weight)
        return losses

    def adapters(self) -> dict[str, Tensor]:
        """The weights of the adapters, for a checkpoint."""
        return self.student.adapters.state_dict()

    def load_adapters(self, weights: Mapping[str, Tensor], *, what: str) -> None:
        """Goes on with those of a checkpoint, which is called `what`. ValueError where they are for other maps."""
        restore_model(self.student.adapters, weights, what=f"what {what} holds of adapters")

    def describe(self) -> str:
        """Who teaches what, in a line."""
        outputs = [] if self.settings.output_weight == 0 else ["outputs"]
        maps = [f"{mine} from {theirs}" for mine, theirs in self.maps.items()]
        return f"teacher: {self.teacher.name}, of {', '.join([*outputs, *maps])}"


class Relation(NamedTuple):
    """How predictions of a teacher lie to those of a student."""

    columns: Tensor
    """int64 [K]: the student's classes that data can contain."""
    teacher_columns: Tensor
    """int64 [K]: the same classes in the teacher's order."""
    scale: tuple[float, float]
    """Pixels of the student's image, down and across, for one of the teacher's."""
    same_anchors: bool
    """Whether rows of the same number mean the same, as far as heads with anchors are concerned."""


@singledispatch
def output_losses(dense: Any, teacher: Any, /, *, relation: Relation, settings: Distill) -> Losses:
    """The distance of a student's dense predictions from a teacher's, with gradient; register those of a task of your
    own. ValueError for predictions of which nothing is known."""
    raise ValueError(f"predictions that are a {type(dense).__name__} cannot be distilled; leave them out with --set "
                     "distill.output_weight=0, or register them at detseg.distillation.output_losses")


@output_losses.register
def _(dense: DenseBoxes, teacher: DenseBoxes, /, *, relation: Relation, settings: Distill) -> Losses:
    # Boxes of proposed regions come in the order of each network's own proposals, whatever the head.
    same_rows = relation.same_anchors and dense.boxes.ndim == 3 and dense.boxes.shape == teacher.boxes.shape
    student, known = one_box_each(dense), one_box_each(teacher)
    down, across = relation.scale
    student = student._replace(scores=student.scores.index_select(2, relation.columns))
    known = DenseBoxes(known.boxes.float() * known.boxes.new_tensor((across, down, across, down)),
                       known.scores.float().index_select(2, relation.teacher_columns))
    with torch.no_grad():
        lesson = (lesson_of_rows(known, min_score=settings.min_score) if same_rows else
                  lesson_by_overlap(student.boxes, known, min_score=settings.min_score))
    return box_losses(student, lesson)


@output_losses.register
def _(dense: DenseLogits, teacher: DenseLogits, /, *, relation: Relation, settings: Distill) -> Losses:
    # Void pixels count: a teacher knows what annotators left out.
    wanted = _resized(teacher.logits, dense.logits, align_corners=teacher.align_corners)
    return logits_losses(dense.logits.index_select(1, relation.columns),
                         wanted.index_select(1, relation.teacher_columns), temperature=settings.temperature)


@output_losses.register
def _(dense: ClassScores, teacher: ClassScores, /, *, relation: Relation, settings: Distill) -> Losses:
    # The logarithms of probabilities are logits of the same softmax.
    log_p, log_wanted = (one.scores.float().clamp(min=torch.finfo(torch.float32).tiny).log()
                         for one in (dense, teacher))
    return logits_losses(log_p.index_select(1, relation.columns), log_wanted.index_select(1, relation.teacher_columns),
                         temperature=settings.temperature)


def common_maps(mine: Mapping[str, FeatureSpec], theirs: Mapping[str, FeatureSpec]) -> dict[str, str]:
    """Maps of a student, each with the teacher's that it learns from: that of the same name, else the last of the same
    stride. Those that have none are left out."""
    of_stride = {spec.stride: name for name, spec in theirs.items()}
    partners = {name: name if name in theirs else of_stride.get(spec.stride) for name, spec in mine.items()}
    return {name: partner for name, partner in partners.items() if partner is not None}


def _columns(mine: Classes, theirs: Classes) -> tuple[list[int], list[int]]:
    """Positions of the used classes here, and of the same ones there: lists may have other orders and empty slots."""
    places = {source_id: k for k, source_id in enumerate(theirs.source_ids)}
    used = [k for k, source_id in enumerate(mine.source_ids) if source_id in mine.used]
    return used, [places[mine.source_ids[k]] for k in used]


def _specs(predictor: Predictor) -> dict[str, FeatureSpec]:
    """Of the maps that the head reads."""
    return predictor.backbone.specs if predictor.neck is None else predictor.neck.specs


def _input_size(resize: Resize, size: Size) -> Size:
    """What size an image that has been made ready for another network is to have."""
    if resize.fixed:
        return resize.size
    placement = resize.place(size)
    return round(size[0] * placement.scale_y), round(size[1] * placement.scale_x)


def _resized(maps: Tensor, like: Tensor, *, align_corners: bool = False) -> Tensor:
    """Bilinear, to the cells of other maps."""
    if maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps.float(), like.shape[2:], mode="bilinear", align_corners=align_corners)


def _weighted(losses: Losses, weight: float) -> Losses:
    return losses if weight == 1 else {name: Term(weight * term.sum, term.count) for name, term in losses.items()}


def _digest(predictor: Predictor) -> str:
    """SHA-256 of every tensor with its name, whatever its layout in memory."""
    total = hashlib.sha256()
    for name, tensor in predictor.state_dict().items():
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _listed(specs: Mapping[str, FeatureSpec]) -> str:
    return ", ".join(f"{name} at stride {spec.stride}" for name, spec in specs.items())
