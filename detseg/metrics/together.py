"""Several metrics of the same predictions, and which there are beside a config's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatch
from typing import Any

from detseg.data.box_index import BoxIndex
from detseg.data.label_index import LabelIndex
from detseg.interfaces import Metric
from detseg.metrics.coco_ap import CocoAP
from detseg.metrics.edges import BoundaryIoU, EdgeIoU
from detseg.metrics.grouped_ap import ASPECT, COUNT, OVERLAP, GroupedAP
from detseg.metrics.label_averages import LabelAverages
from detseg.metrics.mean_iou import MeanIoU
from detseg.metrics.voc_ap import VocAP
from detseg.structures import MetricTable


class Together(Metric[Any]):
    """Metrics of the same predictions, all of whose numbers are given; the first has the main one.

    One that has the main number of an earlier one is left out.
    """

    def __init__(self, metrics: Sequence[Metric[Any]]) -> None:
        kept = dict[str, Metric[Any]]()
        for metric in metrics:
            kept.setdefault(metric.main, metric)
        self.metrics = list(kept.values())
        self.main = self.metrics[0].main

    def update(self, predictions: Sequence[Any], truths: Sequence[Any]) -> None:
        """See `Metric`."""
        for metric in self.metrics:
            metric.update(predictions, truths)

    def collected(self) -> list[Any]:
        """What each has taken in."""
        return [metric.collected() for metric in self.metrics]

    def merge(self, collected: Sequence[list[Any]]) -> None:
        """See `Metric`."""
        for metric, shares in zip(self.metrics, zip(*collected, strict=True), strict=True):
            metric.merge(shares)

    def compute(self) -> dict[str, float]:
        """The numbers of all."""
        return {name: value for metric in self.metrics for name, value in metric.compute().items()}

    def table(self, numbers: Mapping[str, float]) -> MetricTable:
        """The first one's, with the others' to follow."""
        first, *others = (metric.table(numbers) for metric in self.metrics)
        return first._replace(more=tuple(others))


@singledispatch
def offered(index: Any) -> Mapping[str, Callable[..., Metric[Any]]]:
    """The metrics that there are for data of this kind, by the names that `--metric` takes; none for others. An index
    of your own registers its metrics: `@offered.register`."""
    return {}


@offered.register
def _(index: BoxIndex) -> Mapping[str, Callable[..., Metric[Any]]]:
    return {
        "coco": CocoAP,
        "voc": VocAP,
        "top300": partial(CocoAP, per_image=300),
        "aspect": partial(GroupedAP, groupings=(ASPECT,)),
        "crowding": partial(GroupedAP, groupings=(OVERLAP, COUNT)),
    }


@offered.register
def _(index: LabelIndex) -> Mapping[str, Callable[..., Metric[Any]]]:
    return {"miou": MeanIoU, "averages": LabelAverages, "boundary": BoundaryIoU, "edges": EdgeIoU}


def chosen(index: Any, names: Sequence[str]) -> list[Callable[..., Metric[Any]]]:
    """The metrics of these names. ValueError where one is not offered for the data."""
    metrics = offered(index)
    if strange := [name for name in names if name not in metrics]:
        raise ValueError(f"these data have no metric {', '.join(strange)}; there " + (
            f"are {', '.join(metrics)}" if metrics else "is only the config's own"))
    return [metrics[name] for name in names]
