"""What a network is measured on: images, labels in its own order, and the official metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from detseg.checkpoint import check_classes
from detseg.config import Data, Index
from detseg.data.faults import check_faults
from detseg.data.loading import spread
from detseg.data.location import Location
from detseg.data.screening import screened
from detseg.evaluate import evaluate
from detseg.interfaces import Dataset, Metric, Task
from detseg.metrics.together import Together, chosen
from detseg.predict import Network
from detseg.resize import Resize
from detseg.structures import Classes, Pixels

_MOST_NAMED = 12


class Validation(NamedTuple):
    """Images with their labels."""

    index: Any
    """The annotations, in the order and with the labels of the network."""
    dataset: Dataset[Any]
    metric: Callable[[], Metric[Any]]
    """A new one."""
    notes: tuple[str, ...]
    """What a person should know about where they come from, and what is left out."""

    def images(self, number: int) -> list[Pixels]:
        """Up to so many, evenly over all."""
        return [self.dataset.original(item) for item in spread(len(self.dataset), number)]

    def score(
        self, network: Network, task: Task[Any, Any, Any, Any], *, batch_size: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> float:
        """The metric's main number of a network, a fraction."""
        metric = self.metric()
        # In this process: converters have loaded libraries that do not survive a fork.
        numbers, _ = evaluate(network, task, self.dataset, metric=metric, batch_size=batch_size, workers=0,
                              progress=progress)
        return numbers[metric.main]


def prepared(
    index: Index, location: Location, classes: Classes, data: Data, resize: Resize, *, notes: tuple[str, ...] = (),
    common: bool = False, skip_broken: bool = False, per_class: bool = False, reference: bool = False,
    metrics: Sequence[str] = (), what: str,
) -> Validation:
    """What was read, made ready for a network.

    Args:
        index: the annotations.
        location: where they lie.
        classes: the network's.
        data: how they become samples.
        resize: the network's.
        notes: what is known about them.
        common: evaluate on the classes that both have, although they do not have the same.
        skip_broken: leave out what is broken, and say so.
        per_class: the metric of each class too.
        reference: the field's own slow code.
        metrics: further ones by name, see `detseg.metrics.together.offered`.
        what: the network, for messages.

    ValueError where the classes are others, something is broken, or a metric is not for these data.
    """
    index, _ = screened(index, whole=skip_broken)
    if not skip_broken:
        check_faults(index.faults, f"the val data in {location}")
    elif not len(index):
        check_faults(index.faults, f"no image is left to evaluate on in {location}")
    broken = tuple(f"left out: {fault}" for fault in index.faults)
    index, left_out = relabelled(index, classes, common=common, what=what)

    makers = [data.metric, *chosen(index, metrics)]

    def metric() -> Metric[Any]:
        made = [make(index, per_class=per_class, reference=reference) for make in makers]
        return Together(made) if metrics else made[0]

    return Validation(index, data.dataset(index, resize, augment=None, seed=0), metric, (*notes, *left_out, *broken))


def relabelled(index: Index, classes: Classes, *, common: bool, what: str) -> tuple[Any, list[str]]:
    """The annotations with the labels of a network, and what to say of those that are left out."""
    if not common:
        try:
            check_classes(index.classes, classes, what=what)
        except ValueError as error:
            if not index.classes.common(classes):
                raise
            raise ValueError(f"{error}\nTo evaluate on those that both have, use --common-classes") from None
        return index.relabel(classes), []
    shared = index.classes.common(classes)
    if not shared:
        raise ValueError(f"{what} and the data have no class in common: it knows "
                         f"{', '.join(classes.used.values())}, the data {', '.join(index.classes.used.values())}")
    counted = "1 class" if len(shared) == 1 else f"{len(shared)} classes"
    lines = [f"note: evaluated on {counted} that the network and the data both have: {', '.join(shared)}"]
    for owner, names in (("the data", index.classes.used), ("the network", classes.used)):
        others = [name for name in names.values() if name not in shared]
        if others:
            more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
            lines.append(f"note: left out of the classes of {owner} ({len(others)}): "
                         f"{', '.join(others[:_MOST_NAMED])}{more}")
    return index.common(classes), lines
