"""Evaluation: the predictions of a data set, in original pixels, and the official numbers on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch.distributed as distributed

from detseg.config import Experiment
from detseg.data.loading import collate_evaluation, evaluation_batches, spread
from detseg.interfaces import Dataset, Metric, Task
from detseg.predict import Network, predict_batch
from detseg.report.pictures import draw
from detseg.structures import Pixels, Size

PredictionT = TypeVar("PredictionT")

_MOST_PIXELS = 2 ** 21
"""Of a batch whose size nobody has chosen: 20 images of 320 x 320, or one of Cityscapes'."""


class Evaluation(NamedTuple):
    """The numbers of a data set, and the predictions they were computed from."""

    numbers: dict[str, float]
    predictions: list[Any]
    """Ordered by image id; empty unless they were to be kept."""


def suitable_batch(size: Size, *, most: int) -> int:
    """How many images of `size` to evaluate together: no more than `most`, and no more pixels than training's smallest
    networks have in a step, for scores of every class at every pixel take their place in memory too."""
    return max(1, min(most, _MOST_PIXELS // (size[0] * size[1])))


def batch_and_workers(experiment: Experiment | None, size: Size) -> tuple[int, int]:
    """How many images of `size` to evaluate together, and how many processes read them, as an experiment has it or as
    suits it; one of each for an exported file, which has none."""
    if experiment is None:
        return 1, 1
    suitable = suitable_batch(size, most=experiment.batch_size // experiment.accumulate)
    return experiment.eval_batch_size or suitable, 1 if experiment.workers is None else experiment.workers


def evaluate(
    predictor: Network,
    task: Task[Any, Any, Any, PredictionT],
    dataset: Dataset[Any],
    *,
    metric: Metric[PredictionT],
    batch_size: int,
    workers: int,
    static: bool = False,
    progress: Callable[[int], None] | None = None,
    keep_predictions: bool = False,
) -> Evaluation:
    """Predicts every image exactly once and computes the metric.

    The network is made ready unless it is, in float32 on the device of `predictor`. Under several processes each takes
    its share, nothing is padded or repeated, and all get the same result.

    Args:
        predictor: the network, which is left as it is.
        task: what is particular to its predictions.
        dataset: the images, with the truth that the metric asks for.
        metric: a new one.
        batch_size: images that are predicted together; one, where the network's images have no common size.
        workers: reading processes.
        static: predict in the form that is exported.
        progress: hears how many images of this process are done.
        keep_predictions: give them back too.
    """
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if world_size > 1 else 0
    network = predictor.ready()
    batches = evaluation_batches(
        dataset, batch_size=batch_size if predictor.resize.fixed else 1, fill=predictor.resize.fill, workers=workers,
        rank=rank, world_size=world_size, pin_memory=network.device.type == "cuda")
    num_done, kept = 0, list[tuple[int, PredictionT]]()
    for images, sources, truths in batches:
        found = predict_batch(network, task, images, sources, static=static)
        metric.update(found, truths)
        if keep_predictions:
            kept += zip((source.image_id for source in sources), found, strict=True)
        num_done += len(found)
        if progress is not None:
            progress(num_done)
    if world_size > 1:
        shares: list[Any] = [None] * world_size
        distributed.all_gather_object(shares, (metric.collected(), kept))
        metric.merge([collected for collected, _ in shares])
        kept = [pair for _, share in shares for pair in share]
    return Evaluation(metric.compute(), [prediction for _, prediction in sorted(kept, key=lambda pair: pair[0])])


def draw_examples(
    predictor: Network, task: Task[Any, Any, Any, Any], dataset: Dataset[Any], *, number: int, threshold: float
) -> list[Pixels]:
    """Images spread evenly over the data set, in their original size, with their predictions drawn on them."""
    network = predictor.ready()
    pictures = []
    for item in spread(len(dataset), number):
        images, sources, _ = collate_evaluation([dataset.evaluation(item)], fill=network.resize.fill)
        (prediction,) = predict_batch(network, task, images, sources)
        pictures.append(draw(prediction, dataset.original(item), dataset.classes, threshold=threshold))
    return pictures
