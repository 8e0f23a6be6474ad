"""Batching: which items come when, the same for any number of workers, and errors that arrive as they were raised."""

import multiprocessing
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detseg.data.loading import evaluation_batches, steps_per_epoch, training_batches
from detseg.interfaces import (
    Batch,
    Classes,
    Dataset,
    Draw,
    Metric,
    Pixels,
    Placement,
    Sample,
    Size,
    Source,
    Task,
)


class Marks(NamedTuple):
    """A target bundle: what the sample says of itself."""

    marks: Tensor


class CountingDataset(Dataset[Marks]):
    """Item i is a picture of i; a chosen item raises."""

    def __init__(self, num_items: int, *, broken: Mapping[int, Callable[[], Exception]] | None = None) -> None:
        self.classes = Classes(("thing",), (1,))
        self.num_items = num_items
        self.broken = broken or {}

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, draw: Draw) -> Sample[Marks]:
        if draw.item in self.broken:
            raise self.broken[draw.item]()
        image = torch.full((3, 2, 5), draw.item, dtype=torch.uint8)
        marks = torch.tensor([draw.epoch, draw.item, cv2.getNumThreads(), torch.get_num_threads()])
        return Sample(image, Marks(marks), Source(draw.item, (20, 50), Placement(0.1, 0.1, 0.0, 0.0)))

    def original(self, item: int) -> Pixels:
        raise NotImplementedError


class StackingTask(Task[Marks, None, None, None]):
    scored = False

    def collate(self, samples: Sequence[Sample[Marks]]) -> Batch[Marks]:
        marks = Marks(torch.stack([sample.targets.marks for sample in samples]))
        return Batch(torch.stack([s.image for s in samples]), marks, tuple(s.source for s in samples))

    def made_up(self, size: Size, num_classes: int, *, seed: int) -> Marks:
        raise NotImplementedError

    def finish(self, dense: None) -> None:
        raise NotImplementedError

    def restore(self, finished: None, sources: Sequence[Source]) -> list[None]:
        raise NotImplementedError

    def metric(
        self, dataset: Dataset[Marks], *, per_class: bool = False, reference: bool = False
    ) -> Metric[None]:
        raise NotImplementedError

    def draw(self, image: Pixels, prediction: None, classes: Classes, *, threshold: float) -> Pixels:
        raise NotImplementedError

    def summary(self, prediction: None, classes: Classes, *, threshold: float) -> str:
        raise NotImplementedError

    def records(self, prediction: None, classes: Classes) -> list[Mapping[str, Any]]:
        raise NotImplementedError


TASK = StackingTask()


class AwkwardError(Exception):
    """Cannot be rebuilt from its message, so it does not survive a trip between processes."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line} is awkward")


def items(batch: Batch[Marks]) -> list[int]:
    return [source.image_id for source in batch.sources]


def drawn(batch: Batch[Marks]) -> list[tuple[int, int]]:
    return [(int(epoch), int(item)) for epoch, item in batch.targets.marks[:, :2]]


def train(num_items: int, **arguments: Any) -> list[list[tuple[int, int]]]:
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "last_step": 6, "workers": 0} | arguments
    return [drawn(batch) for batch in training_batches(CountingDataset(num_items), TASK, **options)]


# ---------------------------------------------------------------------------------------------- the schedule


def test_steps_drop_what_does_not_fill_one() -> None:
    assert steps_per_epoch(12, batch_size=4) == 3
    assert steps_per_epoch(15, batch_size=4) == 3
    assert steps_per_epoch(17, batch_size=4, world_size=2) == 2


def test_an_epoch_visits_each_item_once_and_orders_differ() -> None:
    batches = train(7, last_step=9)  # three steps an epoch, one item left over in each
    epochs = [[*batches[i], *batches[i + 1], *batches[i + 2]] for i in (0, 3, 6)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert len({item for _, item in epoch}) == 6
    assert len({tuple(item for _, item in epoch) for epoch in epochs}) == 3
    assert train(7, last_step=9, seed=6) != batches


@settings(max_examples=40, deadline=None)
@given(
    st.integers(6, 30), st.integers(1, 3), st.integers(1, 2), st.integers(0, 20), st.integers(0, 20), st.integers(0, 99)
)
def test_starting_later_gives_what_an_undisturbed_run_sees(
    num_items: int, batch_size: int, world_size: int, first_step: int, more: int, seed: int
) -> None:
    for rank in range(world_size):
        same: dict[str, Any] = {"batch_size": batch_size, "world_size": world_size, "rank": rank, "seed": seed}
        whole = train(num_items, last_step=first_step + more, **same)
        assert train(num_items, first_step=first_step, last_step=first_step + more, **same) == whole[first_step:]


def test_ranks_share_a_step_so_that_two_by_two_is_one_by_four() -> None:
    alone = train(11, batch_size=4)
    ranks = [train(11, batch_size=2, world_size=2, rank=rank) for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert (whole[0::2], whole[1::2]) == (first, second)


def test_a_batch_is_what_the_task_collates() -> None:
    (batch,) = training_batches(CountingDataset(4), TASK, batch_size=3, seed=0, last_step=1, workers=1)
    assert batch.images.shape == (3, 3, 2, 5)
    assert batch.images[:, 0, 0, 0].tolist() == items(batch)
    assert batch.sources[0] == Source(items(batch)[0], (20, 50), Placement(0.1, 0.1, 0.0, 0.0))


# ---------------------------------------------------------------------------------------------- workers


def test_any_number_of_workers_gives_the_same_batches() -> None:
    assert train(9, workers=0) == train(9, workers=1) == train(9, workers=2)


def test_workers_use_one_thread_each() -> None:
    (batch,) = evaluation_batches(CountingDataset(2), TASK, batch_size=2, workers=1)
    assert batch.targets.marks[:, 2:].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_training_s_own_random_numbers_are_left_alone(workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    train(9, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_workers_end_when_the_iteration_is_given_up() -> None:
    batches = training_batches(CountingDataset(50), TASK, batch_size=2, seed=0, last_step=1000, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(
    ("num_items", "batch_size", "world_size"), [(7, 2, 1), (7, 3, 2), (8, 4, 2), (2, 5, 3), (0, 1, 1)]
)
def test_evaluation_reads_every_item_once_over_all_ranks(num_items: int, batch_size: int, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        for batch in evaluation_batches(
            CountingDataset(num_items), TASK, batch_size=batch_size, workers=0, rank=rank, world_size=world_size
        ):
            assert 1 <= len(batch.sources) <= batch_size
            seen += drawn(batch)
    assert sorted(seen) == [(0, item) for item in range(num_items)]


def test_evaluation_keeps_the_order() -> None:
    batches = evaluation_batches(CountingDataset(5), TASK, batch_size=2, workers=2)
    assert [items(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError("7.jpg ends early"), KeyError("width"), FileNotFoundError(2, "gone")])
def test_an_error_while_reading_keeps_its_type_and_message(error: Exception, workers: int) -> None:
    dataset = CountingDataset(5, broken={3: lambda: error})
    batches = evaluation_batches(dataset, TASK, batch_size=2, workers=workers)
    assert items(next(batches)) == [0, 1]
    with pytest.raises(type(error)) as raised:
        next(batches)
    assert str(raised.value) == str(error)
    assert not multiprocessing.active_children(), "workers outlived the error"
    if workers:
        assert "__getitem__" in raised.value.__notes__[0]


def test_an_error_that_cannot_travel_still_says_what_it_is() -> None:
    dataset = CountingDataset(2, broken={0: lambda: AwkwardError("labels.txt", 3)})
    with pytest.raises(RuntimeError, match=r"^AwkwardError: labels\.txt:3 is awkward\nIn a data loading worker"):
        next(evaluation_batches(dataset, TASK, batch_size=2, workers=1))


@pytest.mark.parametrize(
    ("num_items", "arguments", "message"),
    [
        (3, {"batch_size": 4}, "3 training images do not fill one batch of 4; take a batch size of at most 3"),
        (5, {"batch_size": 4, "world_size": 2}, "fill one batch of 4 x 2 ranks = 8; take a batch size of at most 2"),
        (1, {"world_size": 2}, "fill one batch of 2 x 2 ranks = 4; take more images$"),
        (0, {}, "0 training images do not fill one batch of 2; take more images$"),
        (9, {"batch_size": 0}, "batch_size is at least 1, got 0"),
        (9, {"world_size": 0}, "world_size is at least 1, got 0"),
        (9, {"rank": 2, "world_size": 2}, "rank lies in 0..1 where world_size is 2, got 2"),
        (9, {"first_step": 7}, "steps run from first_step on, 0 or more, up to last_step, got 7 and 6"),
        (9, {"workers": -1}, "workers is the number of reading processes, 0 for none beside this one, got -1"),
    ],
)
def test_impossible_arguments_are_refused_at_once(num_items: int, arguments: dict[str, int], message: str) -> None:
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "last_step": 6, "workers": 0} | arguments
    with pytest.raises(ValueError, match=message):
        training_batches(CountingDataset(num_items), TASK, **options)


@pytest.mark.gpu
def test_pinned_batches_keep_their_types() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    (batch,) = evaluation_batches(CountingDataset(2), TASK, batch_size=2, workers=1, pin_memory=True)
    assert batch.images.is_pinned()
    assert batch.targets.marks.is_pinned()
    assert batch.sources == tuple(Source(i, (20, 50), Placement(0.1, 0.1, 0.0, 0.0)) for i in (0, 1))
