"""Top-1 and top-5 accuracy, by hand and whatever the order or the number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.data.class_index import ClassIndex
from detseg.metrics.accuracy import Accuracy
from detseg.structures import Classes, ImageClasses

SEVEN = Classes(tuple("abcdefg"), tuple(range(7)))


def index_of(labels: Sequence[int], classes: Classes = SEVEN) -> ClassIndex:
    return ClassIndex.of(classes, Path("x"), [f"{classes.names[k]}/{i}.jpg" for i, k in enumerate(labels)], labels)


def told(image_id: int, *labels: int) -> ImageClasses:
    return ImageClasses(image_id, torch.linspace(0.9, 0.1, len(labels)), torch.tensor(labels))


FOUR = (told(1, 0, 1, 2, 3, 4), told(2, 1, 0, 2, 3, 4), told(3, 5, 4, 3, 2, 0), told(4, 6, 5, 4, 3, 2))


def test_by_hand() -> None:
    """First, second, last of five, and not at all."""
    metric = Accuracy(index_of([0, 0, 0, 1]), per_class=True)
    metric.update(FOUR[2:], [None] * 2)
    metric.update(FOUR[:2], [None] * 2)
    numbers = metric.compute()
    assert (numbers["top1"], numbers["top5"]) == (1 / 4, 3 / 4)
    assert (numbers["top1/a"], numbers["top1/b"]) == (1 / 3, 0)
    assert all(math.isnan(numbers[f"top1/{name}"]) for name in "cdefg")
    table = metric.table(numbers)
    assert table.columns == ("measure", "value", "images", "most often taken for")
    assert table.rows[2:4] == (("top1/a", 1 / 3, "3", "b 33%"), ("top1/b", 0.0, "1", "g 100%"))
    assert table.notes == ("no images of: c, d, e, f, g",)
    assert table.sections == (1,)


def test_equal_to_sorting_all_scores() -> None:
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 7, 60), torch.from_numpy(random.normal(size=(60, 7)))
    metric = Accuracy(index_of(labels.tolist()))
    best = scores.topk(5, dim=1)
    metric.update([ImageClasses(i + 1, best.values[i], best.indices[i]) for i in range(60)], [None] * 60)
    ranks = (scores > scores.gather(1, torch.from_numpy(labels)[:, None])).sum(1)
    assert metric.compute() == {"top1": float((ranks == 0).double().mean()), "top5": float((ranks < 5).double().mean())}


@pytest.mark.parametrize(("classes", "told_of_each"), [(5, 5), (7, 3)])
def test_top5_that_says_nothing_is_no_number(classes: int, told_of_each: int) -> None:
    metric = Accuracy(index_of([2], Classes(SEVEN.names[:classes], tuple(range(classes)))))
    metric.update([told(1, *range(told_of_each))], [None])
    numbers = metric.compute()
    assert numbers["top1"] == 0
    assert math.isnan(numbers["top5"])
    assert metric.table(numbers).columns == ("measure", "value")


def test_processes_add_up_to_one() -> None:
    whole = Accuracy(index_of([0, 0, 0, 1]), per_class=True)
    whole.update(FOUR, [None] * 4)
    shares = [Accuracy(whole.index, per_class=True) for _ in range(3)]  # the third has no image
    shares[0].update(FOUR[::2], [None] * 2)
    shares[1].update(FOUR[1::2], [None] * 2)
    collected = [share.collected() for share in shares]
    shares[2].merge(collected)
    assert shares[2].compute() == pytest.approx(whole.compute(), nan_ok=True, abs=0)
    assert shares[2].table(shares[2].compute()).rows[:4] == whole.table(whole.compute()).rows[:4]
    with pytest.raises(AssertionError, match="two processes had the same image"):
        shares[0].merge([shares[0].collected()] * 2)


@pytest.mark.parametrize(("predictions", "message"), [
    ([FOUR[0], FOUR[0]], "image 1 was given twice; give each image once"),
    ([told(9, 1)], "image 9 is not one of the 4 images with classes; evaluate on the data that was predicted"),
])
def test_images_that_are_wrong(predictions: list[ImageClasses], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Accuracy(index_of([0, 0, 0, 1])).update(predictions, [None] * len(predictions))


def test_images_that_are_missing() -> None:
    metric = Accuracy(index_of([0, 0, 0, 1]))
    metric.update(FOUR[:1], [None])
    with pytest.raises(ValueError, match="3 of 4 images have no prediction, image 2 is the first; accuracy needs all"):
        metric.compute()
