"""The page of a training run: its best network is measured once more, by class and with intervals, and all is told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detseg.analysis.collect import collector
from detseg.analysis.page import Images, sections
from detseg.analysis.result import Analysis
from detseg.api import Model, load_model
from detseg.benchmark.predictor import counts, num_threads
from detseg.bootstrap import Interval, draws, interval, resamplable
from detseg.compare import evaluated
from detseg.cost import threads, time_alternating
from detseg.data.box_index import BoxIndex
from detseg.data.class_index import ClassIndex
from detseg.data.loading import spread
from detseg.data.location import Location, path_of, read_training
from detseg.export.convert import parity_path
from detseg.export.formats import format_of
from detseg.export.int8 import int8_path
from detseg.interfaces import Metric
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.report.html import Picture, picture_of, write_page
from detseg.report.pictures import draw
from detseg.report.results import summary
from detseg.report.run_page import ClassCount, ExportedFile, Fact, RunFacts, run_page
from detseg.run_folder import RunFolder, trained_run
from detseg.structures import Threshold
from detseg.validation import Validation

_EXAMPLES = 12
_SIDE = 720
"""Pixels of an example's longer side: 12 of them are about a megabyte."""
_RESAMPLES = 500
"""Draws for the intervals."""
_SECONDS = 1.0
"""To time a prediction for."""


def write_report(
    path: Path, *, out: Path | None = None, location: Location | None = None, device: torch.device | None = None,
    is_rank_zero: bool = True, progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Writes the page of a run, and says where. Several processes measure together, and the first writes.

    Args:
        path: the run's folder.
        out: the page; None is report.html in the folder.
        location: of the data to measure on; None takes those it was trained on.
        device: to measure on; None is the CPU.
        is_rank_zero: whether this process is the first.
        progress: hears what is measured, and how many images of how many are done.

    ValueError or OSError where the folder holds no run, or the data are not there. What is broken in the data is left
    out, and named on the page.
    """
    run = trained_run(path)
    out = out or run.report
    model = load_model(run.path, None)
    if device is not None:
        model.to(device)
    place = location or model.location
    validation = model.validation(place, skip_broken=True, per_class=True, what=str(path))
    numbers, metric, analysis = _measured(model, validation, progress)
    threshold = model.threshold
    if is_rank_zero and analysis is not None and location is None:
        analysis.write(run.analysis)
        thresholds = analysis.score_thresholds(weights=model.weights_digest, data=str(place))
        if thresholds is not None:
            thresholds.write(run.thresholds)
            threshold = thresholds.by_class(model.classes)
    if is_rank_zero:
        assert model.source is not None, "a run has a checkpoint"
        assert model.source.step is not None, "which knows its step"
        index, train = validation.index, _training_index(model, place)
        page = run_page(RunFacts(
            name=run.path.resolve().name, main=metric.main, num_images=len(validation.dataset),
            step=model.source.step, numbers=numbers,
            table=metric.table({name: one.value for name, one in numbers.items()}), log=run.read_log(),
            cost=[*_costs(model, validation)], files=[*_files(run)], data=[*_data(model, place, index, train)],
            classes=_class_counts(model, index, train), described=run.described(),
            config_text=run.config.read_text("utf-8"), examples=[*_examples(model, validation, threshold=threshold)],
            notes=(*model.notes, *validation.notes),
            analysis=() if analysis is None else sections(analysis, _images(model, validation))))
        write_page(out, page)
    return out


def _measured(
    model: Model, validation: Validation, progress: Callable[[str, int, int], None]
) -> tuple[Mapping[str, Interval], Metric[Any], Analysis | None]:
    """Every number, with an interval where its metric can be resampled and there are images enough; and why they are
    what they are, where the task has an analysis."""
    total = len(validation.dataset)
    plain = validation.metric()
    try:
        drawn, again = draws(total, number=_RESAMPLES), resamplable(plain)
    except ValueError:
        drawn, again = None, None
    metric, dataset, collected = again or plain, validation.dataset, None
    if isinstance(metric, CocoAP | MeanIoU):
        with contextlib.suppress(ValueError):
            collected = collector(validation.index, model.anchors, metric)
            dataset = collected.dataset(dataset)
    progress("measuring", 0, total)
    values = evaluated(model, validation._replace(dataset=dataset), collected or metric,
                       progress=lambda done: progress("measuring", done, total))
    samples = {} if again is None or drawn is None else again.resampled(drawn)
    numbers = {name: interval(value, samples.get(name, np.zeros(0))) for name, value in values.items()}
    return numbers, metric, None if collected is None else collected.analysis(values)


def _images(model: Model, validation: Validation) -> Images:
    """Validation images by their ids, for pictures of what went wrong."""
    dataset = validation.dataset
    places = {image_id: item for item, image_id in enumerate(validation.index.image_ids.tolist())}

    def labels(image_id: int) -> tuple[Any, Any]:
        item = places[image_id]
        predicted = predict_image(model.network, model.task, dataset.original(item))
        return dataset.evaluation(item).truth.numpy(), predicted.labels

    return Images(lambda image_id: dataset.original(places[image_id]), labels, model.classes)


def _costs(model: Model, validation: Validation) -> Iterator[Fact]:
    assert isinstance(model.loaded, Predictor)
    counted, (height, width) = counts(model.loaded), model.loaded.resize.size
    yield Fact("Parameters", f"{counted.parameters:,} ({4e-6 * counted.parameters:.1f} MB in single precision)")
    yield Fact("Multiply-adds", f"{counted.macs:,} for an image of {height} x {width}" + (
        "" if counted.region_macs is None else f", and {counted.region_macs:,} for each proposed region"))
    with threads(1):
        call = partial(predict_image, model.network, model.task, validation.dataset.original(0))
        timing = time_alternating({"whole": call}, seconds=_SECONDS)["whole"]
    where = num_threads(1) if model.device.type == "cpu" else model.device.type
    yield Fact("Latency", f"{timing.median:.1f} ms, nine of ten below {timing.p90:.1f} ms: from a decoded image to the "
                          f"prediction in its pixels, on the machine that wrote this page ({where})")


def _files(run: RunFolder) -> Iterator[ExportedFile]:
    for path in sorted(run.path.iterdir()):
        kind = format_of(path)
        if kind is not None:
            yield ExportedFile(path.name, kind.megabytes(path), _json(parity_path(path)), _json(int8_path(path)))


def _json(path: Path) -> dict[str, Any] | None:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else None


def _training_index(model: Model, place: Location) -> Any:
    """The images it was trained on; None where they are not there any more."""
    try:
        return read_training(model.data.read, place, kept=None if model.run is None else model.run.kept_split)
    except (OSError, ValueError):
        return None


def _data(model: Model, place: Location, index: Any, train: Any) -> Iterator[Fact]:
    yield Fact("Place", str(place))
    yield Fact("Training images", "not there any more" if train is None else f"{len(train):,}")
    yield Fact("Validation images", f"{len(index):,}")
    yield Fact("Classes", f"{len(model.classes.used)}: {', '.join(model.classes.used.values())}")
    if isinstance(index, BoxIndex) and len(index.boxes):
        sides = np.sqrt(np.maximum(index.boxes[:, 2:].prod(axis=1), 0))
        small, medium = float((sides < 32).mean()), float(((sides >= 32) & (sides < 96)).mean())
        yield Fact("Validation objects", f"{len(index.boxes):,}; {small:.0%} small (below 32 x 32 pixels), "
                                         f"{medium:.0%} medium, {1 - small - medium:.0%} large (from 96 x 96)")


def _class_counts(model: Model, index: Any, train: Any) -> list[ClassCount]:
    """Of boxes, and of whole images; the objects of label maps are not counted without decoding all of them."""
    found = [None if one is None else _counted(one) for one in (train, index)]
    if found[1] is None:
        return []
    return [ClassCount(name, *(None if counted is None else counted.get(name, 0) for counted in found))
            for name in model.classes.used.values()]


def _counted(index: Any) -> dict[str, int] | None:
    if isinstance(index, BoxIndex):
        return dict(zip(index.classes.names, index.learnable().tolist(), strict=True))
    if isinstance(index, ClassIndex):
        return dict(zip(index.classes.names, np.bincount(index.labels, minlength=len(index.classes)).tolist(),
                        strict=True))
    return None


def _examples(model: Model, validation: Validation, *, threshold: Threshold) -> Iterator[Picture]:
    """With what is shown from the threshold on."""
    dataset, classes = validation.dataset, model.classes
    for item in spread(len(dataset), _EXAMPLES):
        image, path = dataset.original(item), path_of(validation.index, item)
        prediction = predict_image(model.network, model.task, image)
        words = summary(prediction, classes, threshold=threshold)
        yield picture_of(draw(prediction, image, classes, threshold=threshold),
                         f"{f'image {item}' if path is None else path.name}: {words}", side=_SIDE)
