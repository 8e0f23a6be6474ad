"""Evaluation: the predictions of a data set, in original pixels, and the official numbers on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.distributed as distributed
from torch.utils._pytree import tree_map_only

from detseg.data.loading import evaluation_batches
from detseg.interfaces import Batch, Dataset, Draw, Metric, Pixels, Sample, Task
from detseg.model import Predictor

PredictionT = TypeVar("PredictionT")


class Evaluation(NamedTuple):
    """The numbers of a data set and the predictions they were computed from, ordered by image id."""

    numbers: dict[str, float]
    predictions: list[Any]


def evaluate(
    predictor: Predictor,
    task: Task[Any, Any, Any, PredictionT],
    dataset: Dataset[Any],
    *,
    batch_size: int,
    workers: int,
    metric: Metric[PredictionT] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predicts every image exactly once and computes the metric (the task's own unless given).

    The network is a folded copy, in float32 on the device of `predictor`. Under several processes each takes its
    share, nothing is padded or repeated, and all get the same result; `progress` hears of this process's images.
    """
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    rank = distributed.get_rank() if world_size > 1 else 0
    network = predictor.folded()
    device = network.scale.device
    batches = evaluation_batches(dataset, task, batch_size=batch_size, workers=workers, rank=rank,
                                 world_size=world_size, pin_memory=device.type == "cuda")
    found: list[tuple[int, PredictionT]] = []
    for batch in batches:
        found += zip((source.image_id for source in batch.sources), predict(network, task, batch), strict=True)
        if progress is not None:
            progress(len(found))
    if world_size > 1:
        shares: list[Any] = [None] * world_size
        distributed.all_gather_object(shares, found)
        found = [pair for share in shares for pair in share]
    predictions = [prediction for _, prediction in sorted(found, key=lambda pair: pair[0])]
    metric = metric or task.metric(dataset)
    metric.update(predictions)
    return Evaluation(metric.compute(), predictions)


@torch.inference_mode()
def predict(network: Predictor, task: Task[Any, Any, Any, PredictionT], batch: Batch[Any]) -> list[PredictionT]:
    """The predictions of a batch in original pixels, on the CPU. `network` is in evaluation mode."""
    images = batch.images.to(network.scale.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    finished = task.finish(network.head.decode(network(images)))
    return task.restore(tree_map_only(torch.Tensor, torch.Tensor.cpu, finished), batch.sources)


def draw_examples(
    predictor: Predictor, task: Task[Any, Any, Any, Any], dataset: Dataset[Any], *, number: int, threshold: float
) -> list[Pixels]:
    """Images spread evenly over the data set with their predictions drawn on them."""
    network = predictor.folded()
    items = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int).tolist()
    samples: Sequence[Sample[Any]] = [dataset[Draw(0, item)] for item in items]
    predictions = predict(network, task, task.collate(samples))
    return [task.draw(_as_original(sample), prediction, dataset.classes, threshold=threshold)
            for sample, prediction in zip(samples, predictions, strict=True)]


def _as_original(sample: Sample[Any]) -> Pixels:
    """What the network saw of the image, at the size and in the proportions of the original."""
    (height, width), (scale_y, scale_x, offset_y, offset_x) = sample.source.size, sample.source.placement
    # Pixel centres lie at half: network = (original + 0.5) * scale + offset - 0.5.
    inverse = np.array([[scale_x, 0, 0.5 * scale_x + offset_x - 0.5], [0, scale_y, 0.5 * scale_y + offset_y - 0.5]])
    seen = sample.image.permute(1, 2, 0).float().clamp(0, 255).round().byte().numpy()
    picture: Pixels = cv2.warpAffine(seen, inverse, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                     borderMode=cv2.BORDER_REPLICATE).astype(np.uint8)
    return picture
