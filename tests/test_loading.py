"""Batching: which items come when, the same for any number of workers, and errors that arrive as they were raised."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detseg.config_module import run_config
from detseg.data import loading
from detseg.data.loading import (
    collate_evaluation,
    collate_training,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from detseg.interfaces import (
    Dataset,
    EvaluationBatch,
    EvaluationSample,
    SampleKey,
    Source,
    Task,
    TrainingBatch,
    TrainingSample,
)
from detseg.resize import RGB, Placement
from detseg.structures import Classes, Pixels, Size

FILL: RGB = (7, 80, 200)


class Marks(NamedTuple):
    """A target bundle: what the sample says of itself, and of a batch the size of its images."""

    marks: Tensor
    size: Size | None = None


class CountingDataset(Dataset[Marks]):
    """Item i is a picture of i; a chosen item raises."""

    def __init__(self, num_items: int, *, broken: Mapping[int, Callable[[], Exception]] | None = None) -> None:
        self.classes = Classes(("thing",), (1,))
        self.num_items = num_items
        self.broken = broken or {}

    def __len__(self) -> int:
        return self.num_items

    def training(self, key: SampleKey) -> TrainingSample[Marks]:
        return TrainingSample(self._image(key.item), Marks(torch.tensor([key.epoch, key.item])))

    def evaluation(self, item: int) -> EvaluationSample:
        source = Source(item, (20, 50), Placement(0.1, 0.1, 0.0, 0.0))
        threads = torch.tensor([cv2.getNumThreads(), torch.get_num_threads()])
        return EvaluationSample(self._image(item).float() / 2, source, threads)

    def original(self, item: int) -> Pixels:
        raise NotImplementedError("nobody looks at the originals")

    def _image(self, item: int) -> Tensor:
        if item in self.broken:
            raise self.broken[item]()
        return torch.full((3, 2, 5), item, dtype=torch.uint8)


class StackingTask(Task[Marks, None, None, None]):
    scored = False

    def collate_targets(self, targets: Sequence[Marks], size: Size) -> Marks:
        return Marks(torch.stack([one.marks for one in targets]), size)

    def postprocess(self, dense: None, *, static: bool = False) -> None:
        raise NotImplementedError("nothing is predicted")

    def to_original(self, finished: None, sources: Sequence[Source]) -> list[None]:
        raise NotImplementedError("nothing is predicted")


TASK = StackingTask()


class AwkwardError(Exception):
    """Cannot be rebuilt from its message, so it does not survive a trip between processes."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line} is awkward")


def items(batch: EvaluationBatch) -> list[int]:
    return [source.image_id for source in batch.sources]


def keys(batch: TrainingBatch[Marks]) -> list[tuple[int, int]]:
    return [(int(epoch), int(item)) for epoch, item in batch.targets.marks]


def train(num_items: int, **arguments: Any) -> list[list[tuple[int, int]]]:
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "fill": FILL, "last_step": 6, "workers": 0} | arguments
    return [keys(batch) for batch in training_batches(CountingDataset(num_items), TASK, **options)]


def evaluation(dataset: CountingDataset, **arguments: Any) -> Iterator[EvaluationBatch]:
    options: dict[str, Any] = {"batch_size": 2, "fill": FILL, "workers": 0} | arguments
    return evaluation_batches(dataset, **options)


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


def test_items_come_as_often_as_they_should() -> None:
    """Of ten items one should come twice as often as the others: of eleven parts it has two, 20 / 11 of ten places."""
    repeats = np.ones(10)
    repeats[3] = 2
    options: dict[str, Any] = {"batch_size": 5, "last_step": 400, "repeats": repeats}
    steps = train(10, **options)
    epochs = [[item for _, item in one + other] for one, other in zip(steps[::2], steps[1::2], strict=True)]
    assert {epoch.count(3) for epoch in epochs} == {1, 2}
    assert max(epoch.count(item) for epoch in epochs for item in range(10) if item != 3) == 1
    counts = np.bincount(np.concatenate(epochs), minlength=10) / len(epochs)
    np.testing.assert_allclose(counts, repeats * 10 / 11, atol=0.1)
    assert epochs[0] != epochs[1]
    assert train(10, **options, first_step=131) == steps[131:]
    even = [item for one in train(10, batch_size=5, last_step=2, repeats=np.ones(10)) for _, item in one]
    assert sorted(even) == list(range(10))


def test_ranks_share_a_step_so_that_two_by_two_is_one_by_four() -> None:
    alone = train(11, batch_size=4)
    ranks = [train(11, batch_size=2, world_size=2, rank=rank) for rank in (0, 1)]
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert (whole[0::2], whole[1::2]) == (first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_batch_is_images_and_what_the_task_makes_of_targets(workers: int) -> None:
    batches = training_batches(CountingDataset(4), TASK, batch_size=3, seed=0, fill=FILL, last_step=1, workers=workers)
    ((images, (marks, size)),) = batches
    assert (images.dtype, images.shape) == (torch.uint8, (3, 3, 2, 5))
    assert images[:, 0, 0, 0].tolist() == marks[:, 1].tolist()
    assert size == (2, 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_batch_is_images_and_where_they_come_from_and_the_truth(workers: int) -> None:
    ((images, sources, truths),) = evaluation(CountingDataset(3), batch_size=3, workers=workers)
    assert (images.dtype, images.shape) == (torch.float32, (3, 3, 2, 5))
    assert images[:, 0, 0, 0].tolist() == [0, 0.5, 1]
    assert sources == tuple(Source(i, (20, 50), Placement(0.1, 0.1, 0.0, 0.0)) for i in range(3))
    assert [truth.shape for truth in truths] == [(2,)] * 3


# ---------------------------------------------------------------------------------------------- padding


def images_of(sizes: Sequence[Size], dtype: torch.dtype) -> list[Tensor]:
    return [(torch.rand(3, *size) * 255).to(dtype) for size in sizes]


def assert_padded(batch: Tensor, images: Sequence[Tensor]) -> None:
    """To the largest height and width, at the end, with the fill colour."""
    assert batch.dtype == images[0].dtype
    for padded, image in zip(batch, images, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(padded[:, :height, :width], image)
        around = torch.ones(batch.shape[2:], dtype=torch.bool)
        around[:height, :width] = False
        assert bool((padded[:, around] == torch.tensor(FILL)[:, None]).all())


@pytest.mark.parametrize("sizes", [[(24, 40), (32, 20)], [(32, 40), (8, 8), (5, 40)], [(24, 40)] * 2])
def test_smaller_images_are_padded_with_the_fill_colour(sizes: list[Size]) -> None:
    size = max(height for height, _ in sizes), max(width for _, width in sizes)
    rounded, exact = images_of(sizes, torch.uint8), images_of(sizes, torch.float32)
    samples = [TrainingSample(image, Marks(torch.tensor(i))) for i, image in enumerate(rounded)]
    training = collate_training(samples, task=TASK, fill=FILL)
    assert_padded(training.images, rounded)
    assert training.images.shape[2:] == size
    assert training.targets.size == size, "the task pads its targets alike"
    source = Source(3, (20, 50), Placement(0.1, 0.1, 0.0, 0.0))
    evaluated = collate_evaluation([EvaluationSample(image, source, i) for i, image in enumerate(exact)], fill=FILL)
    assert_padded(evaluated.images, exact)
    assert evaluated.sources == (source,) * len(sizes)
    assert evaluated.truths == tuple(range(len(sizes)))


# ---------------------------------------------------------------------------------------------- workers


def test_any_number_of_workers_gives_the_same_batches() -> None:
    assert train(9, workers=0) == train(9, workers=1) == train(9, workers=2)


def test_workers_use_one_thread_each() -> None:
    (batch,) = evaluation(CountingDataset(2), workers=1)
    assert [truth.tolist() for truth in batch.truths] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_training_s_own_random_numbers_are_left_alone(workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    train(9, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_workers_end_when_the_iteration_is_given_up() -> None:
    batches = training_batches(CountingDataset(50), TASK, batch_size=2, seed=0, fill=FILL, last_step=1000, workers=2)
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
        for batch in evaluation(CountingDataset(num_items), batch_size=batch_size, rank=rank, world_size=world_size):
            assert 1 <= len(batch.sources) <= batch_size
            seen += items(batch)
    assert sorted(seen) == list(range(num_items))


def test_evaluation_keeps_the_order() -> None:
    batches = evaluation(CountingDataset(5), workers=2)
    assert [items(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


class Large(CountingDataset):
    """Images of 12 MB; the truth is the most memory that their reader has ever had, in MB."""

    def _image(self, item: int) -> Tensor:
        return torch.full((3, 1024, 1024), item, dtype=torch.uint8)

    def evaluation(self, item: int) -> EvaluationSample:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        return super().evaluation(item)._replace(truth=most)


def test_a_worker_s_memory_does_not_grow_with_what_it_has_read() -> None:
    most = [batch.truths[0] for batch in evaluation(Large(30), batch_size=1, workers=1)]
    assert most[-1] < most[5] + 100


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError("7.jpg ends early"), KeyError("width"), FileNotFoundError(2, "gone")])
def test_an_error_while_reading_keeps_its_type_and_message(error: Exception, workers: int) -> None:
    dataset = CountingDataset(5, broken={3: lambda: error})
    batches = evaluation(dataset, workers=workers)
    assert items(next(batches)) == [0, 1]
    with pytest.raises(type(error)) as raised:
        next(batches)
    assert str(raised.value) == str(error)
    assert not multiprocessing.active_children(), "workers outlived the error"
    if workers:
        assert "in evaluation" in raised.value.__notes__[0], "the place"


def test_an_error_that_cannot_travel_still_says_what_it_is() -> None:
    dataset = CountingDataset(2, broken={0: lambda: AwkwardError("labels.txt", 3)})
    with pytest.raises(RuntimeError, match=r"^AwkwardError: labels\.txt:3 is awkward\nIn a data loading worker"):
        next(evaluation(dataset, workers=1))


BROKEN: dict[int, Callable[[], Exception]] = {
    3: lambda: ValueError("3.jpg ends early"), 5: lambda: FileNotFoundError("no 5.jpg")}


@pytest.mark.parametrize("workers", [0, 2])
def test_another_item_takes_the_place_of_a_broken_one(workers: int) -> None:
    heard: list[str] = []
    dataset = CountingDataset(7, broken=BROKEN)
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "fill": FILL, "last_step": 9, "workers": workers}
    batches = [keys(batch) for batch in training_batches(dataset, TASK, skipped=heard.append, **options)]
    expected = train(7, last_step=9)
    changed = [(new, old) for one, other in zip(batches, expected, strict=True)
               for new, old in zip(one, other, strict=True) if new != old]
    assert {old[1] for _, old in changed} == {3, 5}
    assert len(changed) == sum(item in (3, 5) for batch in expected for _, item in batch), "no other is touched"
    assert all(new[0] == old[0] and new[1] not in (3, 5) for new, old in changed)
    assert {*heard} == {"3.jpg ends early", "no 5.jpg"}
    assert len(heard) >= len(changed)
    later = training_batches(dataset, TASK, skipped=heard.append, **options | {"first_step": 4})
    assert [keys(batch) for batch in later] == batches[4:], "a resumed run sees the same"


def test_other_errors_are_no_broken_items() -> None:
    dataset = CountingDataset(4, broken={i: lambda: KeyError("width") for i in range(4)})
    with pytest.raises(KeyError, match="width"):
        next(training_batches(dataset, TASK, batch_size=2, seed=0, fill=FILL, last_step=1, workers=0, skipped=print))


def test_nothing_but_broken_items_is_an_error() -> None:
    dataset = CountingDataset(4, broken={i: lambda: OSError("the disk is gone") for i in range(4)})
    heard: list[str] = []
    with pytest.raises(OSError, match=r"20 images in a row cannot be read, the last: the disk is gone"):
        next(training_batches(dataset, TASK, batch_size=2, seed=0, fill=FILL, last_step=1, workers=0,
                              skipped=heard.append))
    assert len(heard) == 20


def test_a_batch_that_shared_memory_has_no_room_for_travels_as_bytes() -> None:
    """A container's /dev/shm is small. A limit on files is one on shared memory, which are files too."""
    images = torch.arange(3 * 400 * 500, dtype=torch.int32).reshape(1, 3, 400, 500)
    parcel = loading._Parcel(images, ("a.jpg",))
    small = len(parcel.packed().content)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        packed = loading._Parcel(images.clone(), ("a.jpg",)).packed()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert small < 10_000 < images.nbytes < len(packed.content)
    opened = packed.opened()
    assert isinstance(opened.content, torch.Tensor)
    assert torch.equal(opened.content, images)
    assert opened.left_out == ("a.jpg",)


class Killed(CountingDataset):
    """Its worker is killed over item 2, as a system does that is out of memory."""

    def _image(self, item: int) -> Tensor:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._image(item)


# The loader's destructor may be where torch hears of the death, and cannot raise there.
@pytest.mark.filterwarnings("ignore:.*_MultiProcessingDataLoaderIter:pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_killed_is_an_error_with_a_way_out() -> None:
    with pytest.raises(OSError, match=r"a data loading process ended: .* take fewer with --set "
                       r"workers=1 \(0 for none\), smaller batches, or give a container more \(docker run"):
        list(evaluation(Killed(5), workers=1))


def test_a_worker_that_is_not_forked_runs_the_config_too() -> None:
    text = b"class Brighter:\n    def __call__(self, key):\n        return key + 1\n"
    module = run_config(Path("brighter.py"), text)
    reader = loading._Reader(module.Brighter(), sum, in_worker=False)
    content = pickle.dumps(reader)
    del sys.modules["detseg_config_brighter"]
    assert pickle.loads(content)[[1, 2]].content == 5
    assert sys.modules["detseg_config_brighter"] is not module


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
    options: dict[str, Any] = {"batch_size": 2, "seed": 5, "fill": FILL, "last_step": 6, "workers": 0} | arguments
    with pytest.raises(ValueError, match=message):
        training_batches(CountingDataset(num_items), TASK, **options)


@pytest.mark.gpu
def test_pinned_batches_keep_their_types() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    (batch,) = evaluation(CountingDataset(2), workers=1, pin_memory=True)
    assert batch.images.is_pinned()
    assert all(truth.is_pinned() for truth in batch.truths)
    assert batch.sources == tuple(Source(i, (20, 50), Placement(0.1, 0.1, 0.0, 0.0)) for i in (0, 1))
    (trained,) = training_batches(CountingDataset(2), TASK, batch_size=2, seed=0, fill=FILL, last_step=1, workers=1,
                                  pin_memory=True)
    assert trained.images.is_pinned()
    assert trained.targets.marks.is_pinned()
    assert trained.targets.size == (2, 5)
