"""The analysis of a network on validation data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detseg.analysis.collect import Anchors, collector
from detseg.analysis.detection import NUM_EXAMPLES
from detseg.analysis.result import Analysis
from detseg.data.check.network import NetworkView
from detseg.evaluate import evaluate
from detseg.interfaces import Task
from detseg.model import Predictor, anchored_maps
from detseg.predict import Network
from detseg.validation import Validation


def analyze(
    network: Network, task: Task[Any, Any, Any, Any], validation: Validation, *, batch_size: int = 1, workers: int = 0,
    static: bool = False, anchors: Anchors | None = None, num_examples: int = NUM_EXAMPLES,
    progress: Callable[[int], None] | None = None,
) -> Analysis:
    """Predicts every validation image, and says why the official numbers are what they are.

    Args:
        network, task, batch_size, workers, static, progress: as of `evaluate`.
        validation: the data.
        anchors: see `anchors_of`; None says nothing of them.
        num_examples: of each kind of error.

    ValueError where there is nothing to analyse.
    """
    collected = collector(validation.index, anchors or Anchors(None, "not asked"))
    numbers, _ = evaluate(network, task, collected.dataset(validation.dataset), metric=collected, batch_size=batch_size,
                          workers=workers, static=static, progress=progress)
    return collected.analysis(numbers, num_examples=num_examples)


def anchors_of(model: Predictor) -> Anchors:
    """Where a network has anchors on an image of its size."""
    anchored = anchored_maps(model)
    if anchored is None:
        return Anchors(None, "the head has no anchors")
    anchors, maps = anchored
    return Anchors(NetworkView("", model.resize, anchors(maps, model.resize.size).cpu().numpy()))
