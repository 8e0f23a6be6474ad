"""By how much an exported file differs from the network it was made of, on real images, in its runtime.

Both get the same resized images, rounded where the file takes bytes. Compared are the file's outputs, number by number,
and the final predictions: matched boxes or classes, the drift of their scores, the labels of pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detseg.choices import Precision
from detseg.export.artefact import Artefact
from detseg.export.contract import named_raw, outputs_of
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Detections, LabelMaps, Pixels, TopClasses


class Tolerance(NamedTuple):
    """How far a file may be from its network."""

    relative: float
    """Of an output's largest number, over all its maps."""
    pixels: float
    """Of decoded boxes."""
    score: float
    """Of matched final detections."""
    matched: float
    """The least share of the final detections that both have; of pixels, that have the same label."""


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(relative=1e-4, pixels=0.05, score=1e-3, matched=0.99),
    "fp16": Tolerance(relative=5e-2, pixels=4.0, score=5e-2, matched=0.9),
    "int8": Tolerance(relative=math.inf, pixels=math.inf, score=math.inf, matched=0.0),
}
"""In single precision the same numbers in another order of summation; float16 keeps three digits of each weight. What
int8 loses, only the task's metric can tell: its numbers are written, and `detseg.export.int8` asks the metric."""

_ROUNDINGS = 4.0
"""What single precision costs the network itself, against double, may be as many times the difference of an output:
networks that few steps have trained may lose more digits than a fixed limit allows."""

_MARGIN = 0.05
"""The most that a score may be above the edge of being kept and yet be left out of the comparison."""
_SAME_BOX = 0.9
"""The IoU from which two boxes of a label are the same detection."""


@dataclass
class Difference:
    """Of an output, over all images."""

    largest: float = 0.0
    mean: float = 0.0
    magnitude: float = 0.0
    """The largest number that the network gives."""
    images: int = 0
    rounding: float = 0.0
    """The largest difference of the network from itself in double precision, where it was asked for."""

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Takes in an image."""
        apart = (found.double() - wanted.double()).abs()
        apart = torch.where(apart.isnan(), torch.inf, apart)
        self.largest = max(self.largest, float(apart.max()))
        self.mean += (float(apart.mean()) - self.mean) / (self.images + 1)
        self.magnitude = max(self.magnitude, float(wanted.double().abs().max()))
        self.images += 1


@dataclass
class Agreement:
    """Of the final predictions, over all images."""

    wanted: int = 0
    """Detections of the network that are sure enough to be compared, or pixels."""
    matched: int = 0
    """Of these the file has as many."""
    score_drift: float = 0.0
    """The largest difference of matched scores."""
    box_drift: float = 0.0
    """The largest difference of a matched box's edge, in input pixels."""

    @property
    def share(self) -> float:
        """1 where there is nothing to match."""
        return self.matched / self.wanted if self.wanted else 1.0


@dataclass
class Parity:
    """What a comparison gave."""

    images: int
    tolerance: Tolerance
    outputs: dict[str, Difference] = field(default_factory=dict)
    predictions: Agreement = field(default_factory=Agreement)
    causes: list[str] = field(default_factory=list)
    """What the difference comes from, where it could be found out."""

    def problems(self) -> list[str]:
        """What is beyond the tolerance, a line each."""
        found, limits = [], self.tolerance
        largest: dict[str, float] = {}
        for name, apart in self.outputs.items():
            largest[_stem(name)] = max(largest.get(_stem(name), 1e-12), apart.magnitude)
        for name, apart in self.outputs.items():
            most = limits.pixels if name == "boxes" else limits.relative * largest[_stem(name)]
            most = max(most, _ROUNDINGS * apart.rounding)
            if not apart.largest <= most:
                found.append(f"{name}: off by up to {apart.largest:.3g}, allowed are {most:.3g}")
        agreed = self.predictions
        if agreed.share < limits.matched:
            found.append(f"only {agreed.matched} of {agreed.wanted} predictions are the same ({agreed.share:.1%}), "
                         f"needed are {limits.matched:.0%}")
        if agreed.score_drift > limits.score:
            found.append(f"scores drift by up to {agreed.score_drift:.3g}, allowed are {limits.score:.3g}")
        return found

    @property
    def passed(self) -> bool:
        """Whether the file may be called the same network."""
        return not self.problems()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "passed": self.passed, "images": self.images, "problems": self.problems(), "causes": self.causes,
            "tolerance": {name: limit if math.isfinite(limit) else None
                          for name, limit in self.tolerance._asdict().items()},
            "outputs": {name: dataclasses.asdict(apart) for name, apart in self.outputs.items()},
            "predictions": dataclasses.asdict(self.predictions) | {"share": self.predictions.share}}

    def summary(self) -> str:
        """A line for people."""
        agreed = self.predictions
        apart = ", ".join(f"{name} {one.largest:.2g}" for name, one in self.outputs.items())
        drift = f", scores drift by at most {agreed.score_drift:.1e}, boxes by {agreed.box_drift:.1e} px" \
            if agreed.box_drift or agreed.score_drift else ""
        return (f"on {self.images} images {agreed.share:.2%} of {agreed.wanted:,} predictions are the same{drift}"
                + (f"; largest differences: {apart}" if apart else ""))


def _stem(name: str) -> str:
    """What the maps of a raw output have in common."""
    return name.rstrip("0123456789").rstrip("_")


class _Compared(NamedTuple):
    """One image on both sides."""

    image: Tensor
    found: Any
    """The file's final prediction."""
    wanted: Any


def compare(
    artefact: Artefact, predictor: Predictor, task: Task[Any, Any, Any, Any], images: Sequence[Pixels]
) -> Parity:
    """A file and the network it should be, on decoded images.

    Args:
        artefact: the file in its runtime.
        predictor: the network, on the CPU; it is not changed.
        task: with the numbers that the file was made with.
        images: uint8 [H, W, 3] RGB each.

    ValueError without images. What makes the difference is looked for among the usual mistakes.
    """
    if not images:
        raise ValueError("there are no images to compare on; name some with --images")
    tolerance = TOLERANCES[artefact.manifest.precision]
    parity, seen = Parity(len(images), tolerance), list[_Compared]()
    for image in images:
        pixels = torch.from_numpy(artefact.resize.apply(image)).permute(2, 0, 1)[None]
        outputs = artefact.outputs(pixels)
        found = artefact.finish(outputs, task, static=True)
        dense_outputs, wanted = reference(predictor, task, pixels, contract=artefact.manifest.contract)
        for name, tensor in dense_outputs.items():
            if outputs[name].shape != tensor.shape:
                parity.causes.append(f"{name} has the shape {list(outputs[name].shape)}, not {list(tensor.shape)}")
                return parity
            parity.outputs.setdefault(name, Difference()).add(outputs[name], tensor)
        agree(wanted, found, task, parity.predictions, tolerance)
        seen.append(_Compared(pixels, found, wanted))
    if not parity.passed and parity.outputs:
        contract = artefact.manifest.contract
        for name, rounding in _roundings(predictor, task, [one.image for one in seen], contract=contract).items():
            parity.outputs[name].rounding = rounding
    if not parity.passed:
        parity.causes += list(_causes(seen[:4], predictor, task, tolerance))
    return parity


@torch.inference_mode()
def _roundings(
    predictor: Predictor, task: Task[Any, Any, Any, Any], images: Sequence[Tensor], *, contract: str
) -> dict[str, float]:
    """How far each output is from what double precision gives, over all images."""
    exact, found = copy.deepcopy(predictor).double(), dict[str, float]()
    for image in images:
        single = _outputs(predictor, task, image, predictor(image), contract=contract)
        double = _outputs(exact, task, image, exact(image.double()), contract=contract)
        for name, tensor in single.items():
            found[name] = max(found.get(name, 0.0), float((tensor - double[name]).abs().max()))
    return found


@torch.inference_mode()
def reference(
    predictor: Predictor, task: Task[Any, Any, Any, Any], images: Tensor, *, contract: str
) -> tuple[dict[str, Tensor], Any]:
    """What a file of this contract should give, by name, as far as it is compared number by number, and the final
    prediction."""
    raw = predictor(images)
    dense = predictor.head.decode(raw, (images.shape[2], images.shape[3]), static=True)
    return _outputs(predictor, task, images, raw, contract=contract), task.postprocess(dense, static=True)


def _outputs(
    predictor: Predictor, task: Task[Any, Any, Any, Any], images: Tensor, raw: Any, *, contract: str
) -> dict[str, Tensor]:
    """By name. Final detections are not among them: of equal scores either may come first. Nor are the regions of a
    head with a second stage."""
    if contract == "raw":
        return named_raw(raw)
    if contract == "decoded" and predictor.head.second_stage is None:
        size = (images.shape[2], images.shape[3])
        return outputs_of(task).of_dense(predictor.head.decode(raw, size, static=True))
    return {}


@singledispatch
def agree(wanted: Any, found: Any, task: Task[Any, Any, Any, Any], agreement: Agreement, tolerance: Tolerance) -> None:
    """Adds to an agreement what two final predictions have in common."""
    raise TypeError(f"there is no comparison of {type(wanted).__name__}")


@agree.register
def _(wanted: Detections, found: Detections, task: Any, agreement: Agreement, tolerance: Tolerance) -> None:
    for row in range(len(wanted.boxes)):
        mine, theirs = _valid(wanted, row), _valid(found, row)
        # Scores at the edge of being kept may fall to either side.
        margin = min(tolerance.score, _MARGIN)
        least = task.score_threshold + margin
        if len(mine.scores) == wanted.boxes.shape[1]:
            least = max(least, float(mine.scores.min()) + margin)
        rows = (mine.scores >= least).nonzero()[:, 0]
        agreement.wanted += len(rows)
        if not len(rows) or not len(theirs.scores):
            continue
        overlaps = box_iou(mine.boxes[rows], theirs.boxes)
        drifts = (mine.scores[rows, None] - theirs.scores).abs()
        same = (mine.labels[rows, None] == theirs.labels) & (overlaps > _SAME_BOX)
        likeness = torch.where(same, overlaps - drifts, -torch.inf)
        for k, row in enumerate(rows.tolist()):
            other = int(likeness[k].argmax())
            if likeness[k, other] == -torch.inf:
                continue
            likeness[:, other] = -torch.inf  # each is matched once
            agreement.matched += 1
            agreement.score_drift = max(agreement.score_drift, float(drifts[k, other]))
            agreement.box_drift = max(agreement.box_drift, float((theirs.boxes[other] - mine.boxes[row]).abs().max()))


@agree.register
def _(wanted: LabelMaps, found: LabelMaps, task: Any, agreement: Agreement, tolerance: Tolerance) -> None:
    agreement.wanted += wanted.labels.numel()
    agreement.matched += int((wanted.labels == found.labels).sum())


@agree.register
def _(wanted: TopClasses, found: TopClasses, task: Any, agreement: Agreement, tolerance: Tolerance) -> None:
    # Of scores at the edge of being told either may be; the best class has to be there.
    margin = min(tolerance.score, _MARGIN)
    for row in range(len(wanted.labels)):
        scores = dict(zip(found.labels[row].tolist(), found.scores[row].tolist(), strict=True))
        least = float(wanted.scores[row].min()) + margin
        for place, (label, score) in enumerate(zip(wanted.labels[row].tolist(), wanted.scores[row].tolist(),
                                                   strict=True)):
            if place and score < least and label not in scores:
                continue
            agreement.wanted += 1
            if label in scores:
                agreement.matched += 1
                agreement.score_drift = max(agreement.score_drift, abs(scores[label] - score))


class _Valid(NamedTuple):
    boxes: Tensor
    scores: Tensor
    labels: Tensor


def _valid(found: Detections, row: int) -> _Valid:
    number = int(found.num_valid[row])
    return _Valid(found.boxes[row, :number].float(), found.scores[row, :number].float(), found.labels[row, :number])


def _causes(
    seen: Sequence[_Compared], predictor: Predictor, task: Task[Any, Any, Any, Any], tolerance: Tolerance
) -> Iterator[str]:
    """The usual mistakes, each tried on the network: the one that makes it equal to the file is named."""
    mistakes: dict[str, Callable[[Tensor], Tensor]] = {
        "the file takes BGR where RGB is meant": lambda x: x.flip(1),
        "the file does not normalise its images": lambda x: (x - predictor.shift) / predictor.scale,
        "the file normalises its images twice": lambda x: x * predictor.scale + predictor.shift,
    }
    for title, mean, std in (("0 to 1", (0.0,) * 3, (1.0,) * 3), ("-1 to 1", (0.5,) * 3, (0.5,) * 3),
                             ("by ImageNet's mean and std", IMAGENET_MEAN, IMAGENET_STD)):
        mistakes[f"the normalisation is wrong: the file brings images to {title}"] = _normalised(predictor, mean, std)
    for title, mistake in mistakes.items():
        if torch.allclose(mistake(seen[0].image), seen[0].image, atol=1e-2):  # it is what the network does
            continue
        agreement = Agreement()
        for one in seen:
            agree(reference(predictor, task, mistake(one.image), contract="final")[1], one.found, task, agreement,
                  tolerance)
        if agreement.wanted and agreement.share >= tolerance.matched and agreement.score_drift <= tolerance.score:
            yield title
            return
    if (shuffled := _shuffled(seen, task, tolerance)) is not None:
        yield shuffled


def _normalised(predictor: Predictor, mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Images which the predictor's own normalisation brings to what another one makes of them."""
    scale = 1 / (255 * predictor.scale.new_tensor(std).view(1, 3, 1, 1))
    shift = -255 * scale * predictor.scale.new_tensor(mean).view(1, 3, 1, 1)
    return lambda x: (x * scale + shift - predictor.shift) / predictor.scale


def _shuffled(seen: Sequence[_Compared], task: Task[Any, Any, Any, Any], tolerance: Tolerance) -> str | None:
    """Whether all is the same but for the classes' order."""
    pairs: dict[int, int] = {}
    wanted_labels, found_labels = list[Tensor](), list[Tensor]()
    for one in seen:
        if isinstance(one.wanted, LabelMaps):
            wanted_labels.append(one.wanted.labels.flatten().long())
            found_labels.append(one.found.labels.flatten().long())
            continue
        if isinstance(one.wanted, TopClasses):
            wanted_labels.append(one.wanted.labels[:, 0])
            found_labels.append(one.found.labels[:, 0])
            continue
        mine, theirs = _valid(one.wanted, 0), _valid(one.found, 0)
        if not len(mine.scores) or not len(theirs.scores):
            return None
        near = (box_iou(mine.boxes, theirs.boxes) > _SAME_BOX) & (
            (mine.scores[:, None] - theirs.scores).abs() <= tolerance.score)
        rows = near.any(1) & (near.sum(1) == 1)
        wanted_labels.append(mine.labels[rows])
        found_labels.append(theirs.labels[near.int().argmax(1)[rows]])
    wanted, found = torch.cat(wanted_labels), torch.cat(found_labels)
    for label in sorted(set(wanted.tolist())):
        counts = found[wanted == label].bincount()
        best = int(counts.argmax())
        if counts[best] < tolerance.matched * counts.sum():
            return None
        pairs[label] = best
    moved = {label: other for label, other in pairs.items() if other != label}
    if not moved or len(set(pairs.values())) < len(pairs):
        return None
    listed = ", ".join(f"{label} comes as {other}" for label, other in list(moved.items())[:5])
    return f"the classes are in another order: {listed}"
