"""Evaluation: the predictions of a data set, in original pixels, and the official numbers on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as distributed
from torch.utils._pytree import tree_map_only

from detseg.data.loading import evaluation_batches
from detseg.interfaces import Batch, Dataset, Draw, Metric, Pixels, Task
from detseg.model import Predictor

PredictionT = TypeVar("PredictionT")


class Evaluation(NamedTuple):
    """The numbers of a data set, and the predictions they were computed from."""

    numbers: dict[str, float]
    predictions: list[Any]
    """Ordered by image id; empty unless they were to be kept."""


def evaluate(
    predictor: Predictor,
    task: Task[Any, Any, Any, PredictionT],
    dataset: Dataset[Any],
    *,
    batch_size: int,
    workers: int,
    metric: Metric[PredictionT] | None = None,
    progress: Callable[[int], None] | None = None,
    keep_predictions: bool = False,
) -> Evaluation:
    """Predicts every image exactly once and computes the metric (the task's own unless given).

    The network is a folded copy, in float32 on the device of `predictor`. Under several processes each takes its
    share, nothing is padded or repeated, and all get the same result; `progress` hears of this process's images.
    Images that are not resized to one size are predicted one by one, whatever `batch_size`.
    """
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if world_size > 1 else 0
    network = predictor.ready()
    device = network.scale.device
    batches = evaluation_batches(dataset, task, batch_size=batch_size if predictor.resize.fixed else 1, workers=workers,
                                 rank=rank, world_size=world_size, pin_memory=device.type == "cuda")
    metric = task.metric(dataset) if metric is None else metric
    num_done, kept = 0, list[tuple[int, PredictionT]]()
    for batch in batches:
        found = predict(network, task, batch)
        metric.update(found)
        if keep_predictions:
            kept += zip((source.image_id for source in batch.sources), found, strict=True)
        num_done += len(found)
        if progress is not None:
            progress(num_done)
    if world_size > 1:
        shares: list[Any] = [None] * world_size
        distributed.all_gather_object(shares, (metric.collected(), kept))
        metric.merge([collected for collected, _ in shares])
        kept = [pair for _, share in shares for pair in share]
    return Evaluation(metric.compute(), [prediction for _, prediction in sorted(kept, key=lambda pair: pair[0])])


@torch.inference_mode()
def predict(network: Predictor, task: Task[Any, Any, Any, PredictionT], batch: Batch[Any]) -> list[PredictionT]:
    """The predictions of a batch in original pixels, on the CPU. `network` is in evaluation mode."""
    images = batch.images.to(network.scale.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    finished = task.finish(network.head.decode(network(images)))
    return task.restore(tree_map_only(torch.Tensor, torch.Tensor.cpu, finished), batch.sources)


def draw_examples(
    predictor: Predictor, task: Task[Any, Any, Any, Any], dataset: Dataset[Any], *, number: int, threshold: float
) -> list[Pixels]:
    """Images spread evenly over the data set, in their original size, with their predictions drawn on them."""
    network = predictor.ready()
    items = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int).tolist()
    predictions = [predict(network, task, task.collate([dataset[Draw(0, item)]]))[0] for item in items]
    return [task.draw(dataset.original(item), prediction, dataset.classes, threshold=threshold)
            for item, prediction in zip(items, predictions, strict=True)]
