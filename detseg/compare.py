"""Trained networks against each other on the same validation data: how good, how large, how fast."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detseg.api import Model, load_model
from detseg.benchmark.predictor import counts
from detseg.bootstrap import Counts, draws, resamplable
from detseg.checkpoint import code_of
from detseg.comparison import Comparison, Measured
from detseg.config import FREE_SETTINGS
from detseg.cost import Timing, threads, time_alternating
from detseg.data.location import Location, path_of, read_validation
from detseg.engine import with_engine
from detseg.evaluate import batch_and_workers, evaluate
from detseg.export.artefact import Artefact, open_artefact
from detseg.interfaces import Metric
from detseg.predict import predict_image
from detseg.settings import DEFAULT
from detseg.structures import MetricTable
from detseg.validation import Validation, prepared


class Named(NamedTuple):
    """A network under the name that tells it from the others."""

    name: str
    model: Model


class Cost(NamedTuple):
    """What a network takes; None where it is not known, as the counts of an exported file are not."""

    name: str
    parameters: int | None
    macs: int | None
    """Multiply-adds of one image at the input size; of two stages, those of the first."""
    megabytes: float | None
    """Of an exported file."""
    latency: Timing | None
    """Of one image, from its pixels to the prediction in them."""


class Compared(NamedTuple):
    """How good and how costly."""

    comparison: Comparison
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]

    def cost_table(self) -> MetricTable:
        """One row a network."""
        timed = any(cost.latency for cost in self.costs)
        rows = []
        for cost in self.costs:
            row = [cost.name, "-" if cost.parameters is None else f"{cost.parameters:,}",
                   "-" if cost.macs is None else f"{cost.macs:,}",
                   "-" if cost.megabytes is None else f"{cost.megabytes:.1f}"]
            if cost.latency is not None:
                row += [f"{cost.latency.median:.1f}", f"{cost.latency.p90:.1f}", f"{cost.latency.ratio:.2f}"]
            rows.append(tuple(row))
        return MetricTable(
            ("", "parameters", "multiply-adds", "file, MB", *(("ms", "p90", "ratio") if timed else ())), tuple(rows),
            notes=("ms: from a decoded image to the prediction in its pixels, in turns, medians; ratio: of paired "
                   "times, to the first",) if timed else ())

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.comparison.as_json() | {"notes": list(self.notes), "costs": [
            cost._asdict() | {"latency": None if cost.latency is None else cost.latency._asdict()}
            for cost in self.costs]}


def read_models(texts: Sequence[str]) -> list[Named]:
    """Two or more networks: a run folder, a run or a config with one of its checkpoints ("RUN,CHECKPOINT"), or an
    exported file each. ValueError for fewer, for the same twice, and as of `detseg.load`."""
    if len(texts) < 2:
        raise ValueError(f"a comparison takes two runs or more, got {', '.join(texts) or 'none'}; detseg test tells "
                         "the numbers of one")
    parts = [_parts(text) for text in texts]
    for number, part in enumerate(parts):
        if part in parts[:number]:
            raise ValueError(f"{texts[number]} is named twice; name two different ones")
    names = _names(parts)
    return [Named(name, load_model(source, weights)) for name, (source, weights) in zip(names, parts, strict=True)]


def _parts(text: str) -> tuple[Path, Path | None]:
    source, comma, weights = text.rpartition(",")
    if not comma or Path(text).exists():
        return Path(os.path.normpath(text)), None
    return Path(os.path.normpath(source)), Path(os.path.normpath(weights))


def _names(parts: Sequence[tuple[Path, Path | None]]) -> list[str]:
    """The last part of each path; all of it where two would have the same."""
    for whole in (False, True):
        names = [",".join(str(path) if whole else path.name for path in part if path is not None) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def compare(
    models: Sequence[Named], location: Location | None, *, resamples: int = 2000, seconds: float | None = None,
    num_threads: int = 1, progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Compared:
    """Evaluates networks on the same images, and measures what they cost.

    Args:
        models: two or more.
        location: of the data; None takes the validation data of the runs, which must be the same.
        resamples: draws of the images for the intervals.
        seconds: to time predictions for, in turns; None does not.
        num_threads: while predictions are timed.
        progress: hears whose turn it is, and how many images of how many are done.

    ValueError with the difference where tasks, classes or data are not the same.
    """
    if resamples < 100:
        raise ValueError(f"the ends of an interval take 100 draws or more, got {resamples}")
    _check_alike(models)
    validations = _validations(models, _location(models) if location is None else location)
    first = validations[0]
    drawn = draws(len(first.dataset), number=resamples)
    measured = [_measured(one, validation, drawn, progress)
                for one, validation in zip(models, validations, strict=True)]
    main = first.metric().main
    latencies = {} if seconds is None else _latencies(models, first, seconds, num_threads)
    notes = dict.fromkeys([*(note for validation in validations for note in validation.notes),
                           *(f"{one.name}: {note}" for one in models for note in one.model.notes)])
    return Compared(Comparison(main, len(first.dataset), tuple(measured)),
                    tuple(_cost(one, latencies.get(one.name)) for one in models), tuple(notes))


def _check_alike(models: Sequence[Named]) -> None:
    """ValueError where the first and another do not predict the same."""
    first = models[0]
    for other in models[1:]:
        tasks = [type(one.model.task).__name__.lower() for one in (first, other)]
        if tasks[0] != tasks[1]:
            raise ValueError(f"{first.name} is for {tasks[0]} and {other.name} for {tasks[1]}; no number is common to "
                             "the two")
        if difference := first.model.classes.difference(other.model.classes):
            raise ValueError(f"{first.name} (here) and {other.name} (there) know other classes:\n{difference}")


def _location(models: Sequence[Named]) -> Location:
    """Where the data lie that all runs were trained on."""
    known = [(one, one.model.location) for one in models if one.model.config is not None]
    if not known:
        raise ValueError("exported files do not know any data; name some to evaluate on with --data DIR")
    first, location = known[0]
    for other, there in known[1:]:
        if there != location:
            raise ValueError(f"{first.name} was trained on {_described(location)}, {other.name} on "
                             f"{_described(there)}; name the data to compare them on with --data DIR")
    return location


def _described(location: Location) -> str:
    parts = {name: value for name, value in location.as_plain().items() if value is not None and name != "path"}
    return f"{location}" + (f" ({', '.join(f'{name} {value}' for name, value in parts.items())})" if parts else "")


def _validations(models: Sequence[Named], location: Location) -> list[Validation]:
    """The same images for each network. ValueError where they are not."""
    runs = [one.model.run for one in models if one.model.run is not None]
    # An exported file is measured on what the run was that it may come from.
    kept = next((run.kept_split for run in runs if run.kept_split is not None), None)
    found, names = [], list[list[str]]()
    for one in models:
        model = one.model
        index, notes = model.read_validation(location) if model.run is not None else read_validation(
            model.data.read, location, kept=kept, classes=model.classes)
        names.append(_image_names(index))
        if sorted(names[-1]) != sorted(names[0]):
            raise ValueError(_other_images(models[0].name, one.name, names[0], names[-1]))
        found.append(prepared(index, location, model.classes, model.data, model.loaded.resize, notes=notes,
                              per_class=True, what=one.name))
    return found


def _image_names(index: Any) -> list[str]:
    return [str(path_of(index, item) or item) for item in range(len(index))]


def _other_images(first: str, other: str, mine: Sequence[str], theirs: Sequence[str]) -> str:
    only = [(first, sorted(set(mine) - set(theirs))), (other, sorted(set(theirs) - set(mine)))]
    lines = [f"  {len(names)} only for {name}, {names[0]} for example" for name, names in only if names]
    return "\n".join([f"{first} and {other} are validated on other images:", *lines,
                      "name data that none of them was trained on with --data DIR"])


def _measured(
    one: Named, validation: Validation, drawn: Counts, progress: Callable[[str, int, int], None]
) -> Measured:
    metric, total = resamplable(validation.metric()), len(validation.dataset)
    progress(one.name, 0, total)
    numbers = evaluated(one.model, validation, metric, progress=lambda done: progress(one.name, done, total))
    return Measured(one.name, numbers, metric.resampled(drawn), recipe_of(one))


def evaluated(
    model: Model, validation: Validation, metric: Metric[Any], *, progress: Callable[[int], None] | None = None
) -> dict[str, float]:
    """The numbers of a model as `detseg test` has them; several processes share the images."""
    experiment = None if model.config is None else model.config.experiment
    batch_size, workers = batch_and_workers(experiment, model.loaded.resize.size)
    return evaluate(model.network, model.task, validation.dataset, metric=metric, batch_size=batch_size,
                    workers=workers, progress=progress).numbers


def recipe_of(one: Named) -> str:
    """What two runs have in common whose seeds alone differ; of all else its own name. The weights count that a run is
    evaluated with by itself: two checkpoints of one run are no two seeds."""
    run = one.model.run
    if run is None or one.model.source is None or Path(one.model.source.name) != run.weights:
        return one.name
    described = run.described()
    # Older runs lack the settings that came later; a default leaves these as they were.
    settings = {name: entry["value"] for name, entry in described["settings"].items()
                if entry["from"] != DEFAULT and name not in FREE_SETTINGS | {"seed"}}
    return json.dumps([code_of(run.config.read_text("utf-8")), settings, described["data"], described["start"],
                       described.get("teacher")], sort_keys=True)


def _cost(one: Named, latency: Timing | None) -> Cost:
    loaded = one.model.loaded
    if isinstance(loaded, Artefact):
        return Cost(one.name, None, None, loaded.format.megabytes(loaded.path), latency)
    counted = counts(loaded)
    return Cost(one.name, counted.parameters, counted.macs, None, latency)


def _latencies(models: Sequence[Named], data: Validation, seconds: float, num_threads: int) -> dict[str, Timing]:
    """Of the first image."""
    if seconds <= 0:
        raise ValueError(f"--latency takes the seconds to time predictions for, more than 0, got {seconds:g}")
    image = data.dataset.original(0)
    with threads(num_threads):
        calls = {}
        for name, model in models:
            loaded = model.loaded
            network = open_artefact(loaded.path, threads=num_threads) if isinstance(loaded, Artefact) else with_engine(
                loaded, model.task, "torch")
            calls[name] = partial(predict_image, network, model.task, image)
        return time_alternating(calls, seconds=seconds)


def on_device(models: Sequence[Named], device: torch.device) -> None:
    """Moves all but exported files."""
    for one in models:
        if not isinstance(one.model.loaded, Artefact):
            one.model.to(device)
