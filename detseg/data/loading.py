"""Batches from a data set, read by any number of worker processes.

Which items make up a training batch follows from (seed, step) alone, and what happens to an item from its key. So any
number of workers gives the same batches, a run may start at any step, and there is no random state to save.
"""

from __future__ import annotations

import pickle
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.multiprocessing import reductions
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from detseg.config_module import ConfigModule, run_again, running_configs
from detseg.interfaces import (
    Dataset,
    EvaluationBatch,
    EvaluationSample,
    SampleKey,
    Task,
    TrainingBatch,
    TrainingSample,
)
from detseg.resize import RGB

T = TypeVar("T")
ReadT = TypeVar("ReadT")
BatchT = TypeVar("BatchT")

_ATTEMPTS = 20
"""Items that are tried in the place of a broken one: so many in a row are no broken files, but a disk that is gone."""


def spread(num_items: int, number: int) -> list[int]:
    """Up to `number` items, evenly over all."""
    items: list[int] = np.linspace(0, num_items - 1, min(number, num_items)).round().astype(int).tolist()
    return items


def drawn(num_items: int, number: int, *, seed: int) -> list[int]:
    """Up to `number` items in their order, by chance: the same for the same seed."""
    return sorted(random.Random(seed).sample(range(num_items), min(number, num_items)))


def steps_per_epoch(num_items: int, *, batch_size: int, world_size: int = 1) -> int:
    """Whole steps in one pass over the items; what is left over waits for another epoch's order.

    `batch_size` counts images per rank. ValueError if the items do not fill a single step.
    """
    _check_at_least_one(batch_size=batch_size, world_size=world_size)
    steps = num_items // (batch_size * world_size)
    if steps == 0:
        wanted = f"{batch_size} x {world_size} ranks = {batch_size * world_size}" if world_size > 1 else f"{batch_size}"
        largest = num_items // world_size
        way_out = f"a batch size of at most {largest}" if largest else "more images"
        raise ValueError(f"{num_items} training images do not fill one batch of {wanted}; take {way_out}")
    return steps


def training_batches(
    dataset: Dataset[T],
    task: Task[T, Any, Any, Any],
    *,
    batch_size: int,
    seed: int,
    fill: RGB,
    first_step: int = 0,
    last_step: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    skipped: Callable[[str], None] | None = None,
    repeats: NDArray[np.float64] | None = None,
) -> Iterator[TrainingBatch[T]]:
    """The batches of the steps `first_step` to `last_step` (excluded), counted from the beginning of training.

    Every epoch goes through the data in an order of its own, drawn from (seed, epoch). A step takes the next
    `batch_size * world_size` items of it, and rank r every `world_size`-th of these from the r-th on.

    Args:
        dataset: whose `training` samples are read.
        task: how their targets become a batch's.
        batch_size: images of one step of this rank.
        seed: of the order.
        fill: the colour with which smaller images are padded; the model's, `Resize.fill`.
        first_step, last_step: see above.
        workers: reading processes, which live as long as the iteration; 0 reads in this one.
        rank, world_size: of this process, and how many there are.
        pin_memory: for a GPU.
        skipped: hears what is wrong with an item that cannot be read. Another item, drawn from (seed, epoch, item),
            then takes its place, so a batch still follows from (seed, step) and the files. Without, it is an error.
        repeats: [number of items] how often each comes, as a ratio to the others; an epoch is as long as ever, and has
            each item as often as that says, rounded up or down by chance. Without, each comes once.

    An error while reading is raised here with its own type and message; where a worker met it, a note tells the place.
    ValueError if the data set is smaller than one step, or rank, steps or workers make no sense.
    """
    per_epoch = steps_per_epoch(len(dataset), batch_size=batch_size, world_size=world_size)
    _check_rank(rank, world_size)
    if not 0 <= first_step <= last_step:
        raise ValueError(f"steps run from first_step on, 0 or more, up to last_step, got {first_step} and {last_step}")
    schedule = _Schedule(len(dataset), per_epoch, batch_size, seed, range(first_step, last_step), rank, world_size,
                         repeats)
    collate = partial(collate_training, task=task, fill=fill)
    substitute = None if skipped is None else _Substitute(seed, len(dataset))
    reader = _Reader(dataset.training, collate, in_worker=workers > 0, substitute=substitute)
    return _read(reader, schedule, workers=workers, pin_memory=pin_memory, skipped=skipped)


def evaluation_batches(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    fill: RGB,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[EvaluationBatch]:
    """Every item exactly once over all ranks, in order: rank r reads the items r, r + world_size, and so on.

    Nothing is padded or repeated: the last batch is smaller, and ranks may differ by one item (or have none). Arguments
    and errors as in `training_batches`.
    """
    _check_at_least_one(batch_size=batch_size, world_size=world_size)
    _check_rank(rank, world_size)
    items = range(rank, len(dataset), world_size)
    parts = [list(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
    collate = partial(collate_evaluation, fill=fill)
    reader = _Reader(dataset.evaluation, collate, in_worker=workers > 0)
    return _read(reader, parts, workers=workers, pin_memory=pin_memory)


def collate_training(
    samples: Sequence[TrainingSample[T]], *, task: Task[T, Any, Any, Any], fill: RGB
) -> TrainingBatch[T]:
    """Training samples as a batch: smaller images padded at the end with the colour `fill`, targets as the task does
    it."""
    images = _stacked([sample.image for sample in samples], fill)
    size = (images.shape[2], images.shape[3])
    return TrainingBatch(images, task.collate_targets([sample.targets for sample in samples], size))


def collate_evaluation(samples: Sequence[EvaluationSample], *, fill: RGB) -> EvaluationBatch:
    """Evaluation samples as a batch, images padded likewise."""
    return EvaluationBatch(
        _stacked([sample.image for sample in samples], fill), tuple(sample.source for sample in samples),
        tuple(sample.truth for sample in samples))


def _stacked(images: Sequence[torch.Tensor], fill: RGB) -> torch.Tensor:
    """[B, 3, H, W] with the largest height and the largest width."""
    height, width = (max((image.shape[axis] for image in images), default=0) for axis in (1, 2))
    if all(image.shape[1:] == (height, width) for image in images):
        return torch.stack(list(images))
    colour = torch.tensor(fill, dtype=images[0].dtype).view(3, 1, 1)
    batch = colour.expand(len(images), 3, height, width).clone()
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
    return batch


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is at least 1, got {number}")


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank lies in 0..{world_size - 1} where world_size is {world_size}, got {rank}")


@dataclass(frozen=True)
class _Schedule:
    """The sample keys of one rank, a list for each of its steps."""

    num_items: int
    steps_per_epoch: int
    batch_size: int
    seed: int
    steps: range
    rank: int
    world_size: int
    repeats: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        ordered_epoch = -1
        for step in self.steps:
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(np.random.default_rng([self.seed, epoch])), epoch
            width = self.batch_size * self.world_size
            chosen = order[position * width : (position + 1) * width][self.rank :: self.world_size]
            yield [SampleKey(epoch, int(item)) for item in chosen]

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The items of an epoch."""
        order = rng.permutation(self.num_items)
        if self.repeats is None:
            return order
        # Evenly spaced places on a line where each item has a part of its length (systematic sampling).
        ends = np.cumsum(self.repeats[order]) / self.repeats.sum() * self.num_items
        drawn = order[np.searchsorted(ends, np.arange(self.num_items) + rng.random(), side="right").clip(
            max=self.num_items - 1)]
        return rng.permutation(drawn)


@dataclass(frozen=True)
class _Substitute:
    """Which item takes the place of a broken one."""

    seed: int
    num_items: int

    def __call__(self, key: SampleKey, attempt: int) -> SampleKey:
        state = np.random.SeedSequence((self.seed, key.epoch, key.item, attempt)).generate_state(1)
        return SampleKey(key.epoch, int(state[0]) % self.num_items)


@dataclass(frozen=True)
class _Parcel(Generic[BatchT]):
    """What a worker sends: a batch, or the error that reading it met; and what was left out on the way.

    DataLoader would send an error as the text of its traceback, and pin memory by turning tuples into lists.
    """

    content: BatchT | Exception
    left_out: tuple[str, ...] = ()

    def pin_memory(self) -> _Parcel[BatchT]:
        """The same in page-locked memory; DataLoader calls this."""
        return replace(self, content=tree_map_only(torch.Tensor, torch.Tensor.pin_memory, self.content))

    def packed(self) -> _Packed[BatchT]:
        """For the way to another process: tensors in shared memory, or where there is too little (a container's
        /dev/shm often has 64 MB) as bytes, which is slower. Pickled here and not by the queue, whose thread could only
        print an error, and the batch would be waited for without end.

        torch keeps what it has shared until 128 tensors have come together, the memory that they had before included:
        gigabytes, where batches are large."""
        reductions.shared_cache.free_dead_references()  # type: ignore[no-untyped-call]
        try:
            return _Packed(bytes(ForkingPickler.dumps(self)))
        except (OSError, RuntimeError):
            return _Packed(pickle.dumps(self, pickle.HIGHEST_PROTOCOL))

    def opened(self) -> _Parcel[BatchT]:
        """Itself."""
        return self


@dataclass(frozen=True)
class _Packed(Generic[BatchT]):
    """A parcel as bytes."""

    content: bytes

    def pin_memory(self) -> _Parcel[BatchT]:
        """The parcel in page-locked memory; DataLoader calls this."""
        return self.opened().pin_memory()

    def opened(self) -> _Parcel[BatchT]:
        """The parcel."""
        parcel: _Parcel[BatchT] = pickle.loads(self.content)
        return parcel


class _Reader(MapDataset[_Parcel[BatchT] | _Packed[BatchT]], Generic[ReadT, BatchT]):
    """Reads and collates one batch at a time, indexed by the list of what to read."""

    def __init__(
        self, read: Callable[[Any], ReadT], collate: Callable[[Sequence[ReadT]], BatchT], *, in_worker: bool,
        substitute: _Substitute | None = None,
    ) -> None:
        self.read, self.collate, self.in_worker, self.substitute = read, collate, in_worker, substitute

    def __getitem__(self, keys: Sequence[Any]) -> _Parcel[BatchT] | _Packed[BatchT]:
        left_out: list[str] = []
        content: BatchT | Exception
        try:
            content = self.collate([self._read(key, left_out) for key in keys])
        except Exception as error:
            content = _portable(error) if self.in_worker else error
        parcel = _Parcel(content, tuple(left_out))
        return parcel.packed() if self.in_worker else parcel

    def _read(self, key: Any, left_out: list[str]) -> ReadT:
        """An item, or the one in its place."""
        substitute = self.substitute
        if substitute is None:
            return self.read(key)
        chosen = key
        for attempt in range(_ATTEMPTS):
            try:
                return self.read(chosen)
            except (OSError, ValueError) as problem:
                left_out.append(str(problem))
                chosen = substitute(key, attempt)
        raise OSError(f"{_ATTEMPTS} images in a row cannot be read, the last: {left_out[-1]}")

    def __getstate__(self) -> tuple[tuple[ConfigModule, ...], bytes]:
        """A worker that is not forked has to run the config before it meets a class from there."""
        return running_configs(), bytes(ForkingPickler.dumps(self.__dict__))

    def __setstate__(self, state: tuple[tuple[ConfigModule, ...], bytes]) -> None:
        configs, content = state
        run_again(configs)
        self.__dict__.update(pickle.loads(content))


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, because tracebacks do not cross processes."""
    error.add_note("In a data loading worker:\n" + "".join(traceback.format_tb(error.__traceback__)).rstrip())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception may be anything, and one that does not pickle would hang or hide in the queue
        return RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))
    return error


def _read(
    reader: _Reader[Any, BatchT],
    keys: Iterable[Sequence[Any]],
    *,
    workers: int,
    pin_memory: bool,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[BatchT]:
    if workers < 0:
        raise ValueError(f"workers is the number of reading processes, 0 for none beside this one, got {workers}")
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        # DataLoader draws a number for its workers; without this it would take it from the training's own stream.
        generator=torch.Generator(),
    )
    return _opened(loader, skipped)


def _opened(loader: DataLoader[Any], skipped: Callable[[str], None] | None) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads. The workers do not touch the parent's threads.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        parcels = iter(loader)
    try:
        for parcel in _arrived(parcels):
            if skipped is not None:
                for problem in parcel.left_out:
                    skipped(problem)
            if isinstance(parcel.content, Exception):
                raise parcel.content
            yield parcel.content
    finally:
        del parcels  # its last reference: ends the workers now, even while an error keeps this frame alive


def _arrived(parcels: Iterator[_Parcel[BatchT] | _Packed[BatchT]]) -> Iterator[_Parcel[BatchT]]:
    """The parcels, opened. OSError where a worker was killed, in whose hands their shared memory may be."""
    try:
        try:
            for parcel in parcels:
                yield parcel.opened()
        except (RuntimeError, OSError, EOFError) as problem:
            raise _ended(problem) from problem
    except RuntimeError as signal:  # DataLoader's, of the same worker, while the error above is on its way
        raise _ended(signal) from signal


def _ended(problem: Exception) -> OSError:
    return OSError(f"a data loading process ended: {problem}. Where memory is short, take fewer with --set workers=1 "
                   "(0 for none), smaller batches, or give a container more (docker run --shm-size=1g)")


def _unchanged(parcel: Any) -> Any:
    return parcel


def _one_thread(_worker: int) -> None:
    """Workers are the parallelism; torch already sets itself to one thread in them."""
    cv2.setNumThreads(0)
