"""Files in int8 within a budget: calibrated, measured by the task's own metric, repaired layer by layer, or refused."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detseg.atomic import atomic_folder, write_text
from detseg.cost import threads, time_alternating
from detseg.evaluate import suitable_batch
from detseg.export.artefact import open_artefact
from detseg.export.contract import Input
from detseg.export.convert import Exported, Int8, Source, check_options, executed, export
from detseg.export.format import Format, Options
from detseg.export.manifest import fixed_resize
from detseg.predict import predict_image
from detseg.quantization.packages import check_packages
from detseg.quantization.post_training import Int8Network, PostTraining, Recipe
from detseg.quantization.recorded import statistics
from detseg.quantization.report import LayerReport, layer_report
from detseg.resize import Resize
from detseg.structures import Pixels
from detseg.validation import Validation

_OTHER_DOMAIN = 1.6
"""How many times as wide other images may make a tenth of the activations before a person is told. Where eight or more
images are drawn by chance, it was at most 1.5 with six trained networks (benchmarks.md)."""
_COMPARED = 16
"""Images on which outputs are compared, and whose ranges are with those of the calibration images."""
_TIMED_SECONDS = 2.0


class BudgetError(ArithmeticError):
    """A network that cannot be had in int8 for what it may cost."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What int8 may cost.

    Args:
        max_drop: of the metric's main number, in points: 1 is from AP 0.300 to 0.290.
    """

    max_drop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < math.inf:
            raise ValueError(f"--max-drop is in points of AP or mIoU, 0 or more, got {self.max_drop}")


class Calibration(NamedTuple):
    """Images from which activations get their ranges."""

    images: tuple[Pixels, ...]
    """Decoded."""
    names: tuple[str, ...]
    """For the manifest."""
    origin: str
    seed: int | None = None
    """Of the draw, where there was one."""
    asked: int = 0
    """How many were asked for."""

    def tensors(self, resize: Resize, given: Input) -> list[Tensor]:
        """float [1, 3, H, W] in 0..255 each, as the file gets them."""
        applied = (torch.from_numpy(resize.apply(image)).permute(2, 0, 1)[None] for image in self.images)
        return [given.unpack(given.pack(image)) for image in applied]


class Attempt(NamedTuple):
    """A file that was made and measured."""

    keep_float: tuple[str, ...]
    score: float
    """A fraction."""
    drop: float
    """From the checkpoint's, in points."""
    exported: Exported


class Int8Exported(NamedTuple):
    """What came of it."""

    exported: Exported
    metric: str
    """The name of the score."""
    checkpoint: float
    """The checkpoint's score, a fraction; NaN where nothing was measured."""
    attempts: tuple[Attempt, ...]
    """In the order in which they were made; the file is the last."""
    network: Int8Network
    float_only: tuple[str, ...]
    """Modules that int8 has no operators for."""
    notes: tuple[str, ...]
    """What a person should know."""
    report: LayerReport | None
    cost: Mapping[str, float] | None
    """Of layers in floating point: "ms" of a prediction and "mb" of the file, "all_ms" and "all_mb" without them."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers in floating point, beside those of `float_only`."""
        return self.attempts[-1].keep_float if self.attempts else self.network.recipe.keep_float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "metric": self.metric, "checkpoint": _number(self.checkpoint),
            "artefact": self.attempts[-1].score if self.attempts else None,
            "drop": self.attempts[-1].drop if self.attempts else None, "keep_float": list(self.kept),
            "float_only": list(self.float_only), "recipe": asdict(self.network.recipe),
            "signal_to_noise_db": _number(self.network.snr), "notes": list(self.notes), "cost": self.cost,
            "attempts": [{"keep_float": list(one.keep_float), "score": one.score, "drop": one.drop,
                          "megabytes": one.exported.megabytes} for one in self.attempts],
            "layers": None if self.report is None else self.report.as_json()}

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"note: {note}" for note in self.notes]
        if self.attempts:
            last = self.attempts[-1]
            lines.append(f"{self.metric} {self.checkpoint:.4f} of the checkpoint, {last.score:.4f} of the file: "
                         f"{last.drop:+.2f} points lost".replace("+-", "-"))
        if self.float_only:
            lines.append(f"no int8 for {', '.join(self.float_only)}: in floating point")
        if self.kept:
            lines.append(f"{len(self.kept)} layers in floating point: {', '.join(self.kept)}")
        if self.cost is not None:
            cost = self.cost
            lines.append(f"with them a prediction takes {cost['ms']:.1f} ms in place of {cost['all_ms']:.1f}, and the "
                         f"file {cost['mb']:.1f} MB in place of {cost['all_mb']:.1f}")
        return lines


def int8_path(path: Path) -> Path:
    """Where what int8 costs is written to."""
    return path.with_name(f"{path.name}.int8.json")


def export_int8(
    source: Source, path: Path, kind: Format, options: Options, *, calibration: Calibration,
    validation: Validation | None, budget: Budget = Budget(), recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    images: Sequence[Pixels] = (), report: bool = False, say: Callable[[str], None] = lambda _: None,
) -> Int8Exported:
    """Writes a network into an int8 file that loses no more than the budget.

    Args:
        source: the network; where it was trained with `qat`, its ranges are those of training, unless it is split.
        path: where the file goes.
        kind: the format.
        options: how it is to be; its precision is taken for int8.
        calibration: images that give activations their ranges.
        validation: what the checkpoint and the file are measured on; None measures nothing, and keeps to no budget.
        budget: what it may cost.
        recipe: which layers stay in floating point, and how ranges are found.
        images: to compare the outputs on; none: some that it is measured on, or calibrated with.
        report: make the layer report also where no search needs it.
        say: hears what is going on.

    ValueError for what cannot be had, BudgetError where the budget does not hold; then no file is left.
    """
    options = replace(options, precision="int8")
    check_options(kind, options, source)
    check_packages(["torchao"], extra="int8")
    kind.check_installed((*kind.converter, *kind.runtime), to="write and measure")
    if not calibration.images:
        raise ValueError(f"there are no images to calibrate with in {calibration.origin}; name some with --calibrate "
                         "DIR")
    _, resize = fixed_resize(source.predictor.resize, options.size)
    given = Input(resize.size, options.pixels, options.layout, options.dynamic_batch)
    trained = source.ranges if options.execution == "whole" and recipe.takes_trained_ranges else None
    network = PostTraining(executed(source.predictor, options), calibration.tensors(resize, given),
                           fold_weights=kind.folds_weights, sums_in_16_bits=kind.sums_in_16_bits, trained=trained)
    network.check_layers(recipe.keep_float)
    if not images:
        images = calibration.images[:_COMPARED] if validation is None else validation.images(_COMPARED)
    if trained is None:
        say(f"calibrating on {len(calibration.images)} images")
        notes = list(_notes(calibration, validation, network, resize, given))
    else:
        notes = ["activations have the ranges of quantisation-aware training; --calibrate takes images' instead"]
    if trained is None and source.ranges is not None:
        notes.append("activations have the ranges of calibration images, and not of training")
    found: LayerReport | None = None

    def layers() -> LayerReport:
        nonlocal found
        if found is None:
            plain = replace(recipe, equalised=False, corrected=False)
            found = layer_report(network, plain, progress=lambda done, of: say(f"layer report: {done} of {of} layers"))
        return found

    checkpoint, attempts = math.nan, list[Attempt]()
    with tempfile.TemporaryDirectory() as place:
        def attempt(keep: Sequence[str]) -> Int8Network:
            say(f"quantising, {len(keep)} layers in floating point" if keep else "quantising")
            made = network.quantized(replace(recipe, keep_float=tuple(keep)))
            folder = Path(place) / f"{len(attempts)}"
            facts = _facts(calibration, made, network)
            written = export(source, folder / path.name, kind, options, images=images, int8=Int8(made.module, facts),
                             say=say)
            if validation is not None:
                artefact = open_artefact(folder / path.name)
                say("measuring the file")
                score = validation.score(
                    artefact, source.task,
                    progress=lambda done: say(f"measuring the file: {done} of {len(validation.dataset)} images"))
                attempts.append(Attempt(tuple(keep), score, 100 * (checkpoint - score), written))
            else:
                attempts.append(Attempt(tuple(keep), math.nan, math.nan, written))
            return made

        if validation is not None:
            say("measuring the checkpoint")
            checkpoint = validation.score(
                source.predictor, source.task, batch_size=suitable_batch(resize.size, most=16),
                progress=lambda done: say(f"measuring the checkpoint: {done} of {len(validation.dataset)} images"))
        made = attempt(recipe.keep_float)
        if validation is not None and not attempts[-1].drop <= budget.max_drop:
            made = _searched(attempt, attempts, budget, recipe, layers, notes)
        if report:
            layers()
        cost = _cost(attempts) if len(attempts[-1].keep_float) > len(recipe.keep_float) else None
        last = attempts[-1]
        exported = last.exported._replace(path=path)
        result = Int8Exported(
            exported, "" if validation is None else validation.metric().main, checkpoint,
            () if validation is None else tuple(attempts), made, network.float_only, tuple(notes), found, cost)
        with atomic_folder(path) as folder:
            for file in last.exported.path.parent.iterdir():
                shutil.move(str(file), folder / file.name)
            write_text(folder / int8_path(path).name, json.dumps(result.as_json(), indent=1) + "\n")
    return result


def _searched(
    attempt: Callable[[Sequence[str]], Int8Network], attempts: list[Attempt], budget: Budget, recipe: Recipe,
    layers: Callable[[], LayerReport], notes: Sequence[str],
) -> Int8Network:
    """The fewest layers in floating point, those first that cost most, that bring the drop within the budget: twice as
    many each time, then halved back. BudgetError, with the notes, where half of all layers are not enough."""
    order = [name for name in layers().order if name not in recipe.keep_float]
    networks = dict[int, Int8Network]()

    def within(number: int) -> bool:
        networks[number] = attempt([*recipe.keep_float, *order[:number]])
        return attempts[-1].drop <= budget.max_drop

    least, most = 0, 1
    while not within(most):
        least, most = most, most * 2
        if most > max(1, len(order) // 2):
            raise BudgetError("\n".join([
                f"int8 costs {attempts[-1].drop:.2f} points, allowed are {budget.max_drop:g} (--max-drop), even with "
                f"{least} of {len(order)} layers in floating point; no file is left", *notes,
                "The layers that cost most:", *(f"  {layer}" for layer in layers().notes())]))
    while most - least > 1:
        middle = (least + most) // 2
        if within(middle):
            most = middle
        else:
            least = middle
    kept = len(recipe.keep_float) + most
    chosen = next(one for one in attempts if len(one.keep_float) == kept)
    attempts.remove(chosen)
    attempts.append(chosen)
    return networks[most]


def _cost(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Of the last file and of the first, in turns on one thread."""
    files = {name: open_artefact(one.exported.path, threads=1)
             for name, one in (("all", attempts[0]), ("kept", attempts[-1]))}
    size = files["all"].resize.size
    image = torch.zeros(*size, 3, dtype=torch.uint8).numpy()
    with threads(1):
        times = time_alternating(
            {name: lambda file=file: predict_image(file, file.task, image)  # type: ignore[misc]
             for name, file in files.items()}, seconds=_TIMED_SECONDS)
    return {"ms": times["kept"].median, "all_ms": times["all"].median, "mb": attempts[-1].exported.megabytes,
            "all_mb": attempts[0].exported.megabytes}


def _notes(
    calibration: Calibration, validation: Validation | None, network: PostTraining, resize: Resize, given: Input
) -> list[str]:
    notes = []
    if len(calibration.images) < calibration.asked:
        notes.append(f"calibrated on {len(calibration.images)} images of {calibration.origin}: there are no "
                     f"{calibration.asked}")
    if validation is not None and len(validation.dataset):
        others = Calibration(tuple(validation.images(_COMPARED)), (), "")
        wider = _widening(network, others.tensors(resize, given))
        if wider > _OTHER_DOMAIN:
            notes.append(f"the validation images drive a tenth of the layers {wider:.1f} times as far as the "
                         f"calibration images of {calibration.origin} do, or further, and int8 cuts that off: take "
                         "images like those the network will see, of different scenes")
    return notes


def _widening(network: PostTraining, images: Sequence[Tensor]) -> float:
    """How many times as wide activations are for other images, at the tenth of the layers where it is most."""
    others = statistics(network.float_module, [torch.cat(list(images[k : k + 4])) for k in range(0, len(images), 4)])
    ratios = []
    for name, seen in network.statistics().items():
        (low, high), (other_low, other_high) = seen.range, others[name].range
        if high - low > 1e-6:
            ratios.append((max(other_high, 0.0) - min(other_low, 0.0)) / (max(high, 0.0) - min(low, 0.0)))
    return sorted(ratios)[int(0.9 * (len(ratios) - 1))] if ratios else 1.0


def _facts(calibration: Calibration, made: Int8Network, network: PostTraining) -> dict[str, Any]:
    return {"ranges": "training" if network.trained is not None else "calibration",
            "calibration": None if network.trained is not None else {
                "origin": calibration.origin, "seed": calibration.seed, "images": list(calibration.names)},
            "recipe": asdict(made.recipe) | {"keep_float": list(made.recipe.keep_float)},
            "float_only": list(network.float_only), "activations": "per tensor", "weights": (
                "per channel" if made.recipe.per_channel else "per tensor")}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
