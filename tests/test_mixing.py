"""Mosaic, mixup and copy-paste: boxes lie where the pixels lie, crowds and void stay what they are, and the seed says
everything."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.data import mixing
from detseg.data.augment import (
    Augment,
    BoxSample,
    Context,
    LabelSample,
    LargeScaleJitter,
    Mask,
    SegmentationAugment,
    SSDAugment,
)
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.loading import training_batches
from detseg.data.mixing import CopyPaste, LabelMosaic, MixUp, Mosaic
from detseg.data.sample import generate_sample
from detseg.interfaces import SampleKey
from detseg.resize import MEAN_COLOUR, KeepAspect, Letterbox, Resize, Stretch
from detseg.structures import VOID, Size
from detseg.tasks.detection import Detection

from .conftest import ROOT

COLOURS = np.array([(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250), (250, 10, 250),
                    (130, 130, 130)], np.uint8)
"""Of the objects, by label."""
GROUND = 40
FILL = (90, 120, 60)


def unchanged(sample: Any, context: Context[Any]) -> Any:
    return sample


def as_resized(resize: Resize) -> Callable[[BoxSample, Context[BoxSample]], BoxSample]:
    """An augmentation that does nothing else."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=0.0)


def painted(size: Size, boxes: list[tuple[int, int, int, int]], labels: list[int], crowd: tuple[int, ...] = ()
            ) -> BoxSample:
    """An image with rectangles of their labels' colours; `crowd` names the rows that are."""
    image = np.full((*size, 3), GROUND, np.uint8)
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        image[top:bottom, left:right] = COLOURS[label]
    return BoxSample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64),
                     np.isin(np.arange(len(boxes)), crowd))


SAMPLES = [
    painted((60, 80), [(10, 10, 40, 30), (50, 35, 70, 55)], [0, 1]),
    painted((80, 60), [(5, 5, 55, 35), (20, 50, 40, 75)], [2, 3], crowd=(1,)),
    painted((90, 120), [(30, 30, 100, 80)], [4]),
    painted((50, 50), [], []),
    painted((40, 100), [(2, 2, 30, 38), (60, 10, 95, 30)], [5, 0], crowd=(0,)),
]


def masks_of(item: int) -> list[Mask | None]:
    """The objects fill their boxes."""
    sample = SAMPLES[item]
    found = []
    for left, top, right, bottom in sample.boxes.astype(int).tolist():
        mask = np.zeros(sample.image.shape[:2], np.bool_)
        mask[top:bottom, left:right] = True
        found.append(mask)
    return [*found]


def context(seed: int, *, item: int = 0, **changes: Any) -> Context[BoxSample]:
    return Context(seed, 0, len(SAMPLES), SAMPLES.__getitem__, 10, item, masks_of)._replace(**changes)


def check_colours(sample: BoxSample) -> None:
    """Boxes lie inside the image, and within each are its object's pixels; those at its edges mix with others."""
    height, width = sample.image.shape[:2]
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= (width, height, width, height)).all()
    assert [str(values.dtype) for values in sample[1:]] == ["float32", "int64", "bool"]
    for box, label in zip(sample.boxes, sample.labels, strict=True):
        left, top = np.ceil(box[:2]).astype(int) + 1
        right, bottom = np.floor(box[2:]).astype(int) - 1
        if left < right and top < bottom:
            inside = sample.image[top:bottom, left:right].astype(int)
            assert (np.abs(inside - COLOURS[label]).max(axis=2) < 80).mean() > 0.97, (box, label)


# ---------------------------------------------------------------------------------------------- mosaic


def test_four_pictures_meet_at_the_centre() -> None:
    tiles = [*mixing._quarters((50, 70), [(40, 30), (45, 60), (10, 20), (30, 40)])]
    assert [(top, left) for _, top, left in tiles] == [(10, 40), (5, 70), (50, 50), (50, 70)]
    rng = np.random.default_rng(0)
    centres = np.array([mixing._centre(rng, (40, 60)) for _ in range(2000)])
    assert centres.min(axis=0).tolist() == [20, 30], "half of the frame"
    assert centres.max(axis=0).tolist() == [60, 90], "to one and a half"


def test_a_picture_is_cut_where_it_leaves_the_canvas_and_its_boxes_with_it() -> None:
    canvas = np.full((80, 100, 3), 7, np.uint8)
    sample = painted((40, 60), [(0, 0, 20, 20), (0, 20, 40, 40), (30, 0, 60, 40), (0, 0, 9, 40)], [0, 1, 2, 3],
                     crowd=(3,))
    laid = Mosaic._laid(sample, mixing._Tile((40, 60), top=-19, left=-8), canvas)
    # The first has a twentieth of its height left; the crowd, of which a column is left, stays.
    assert laid.boxes.tolist() == [[0, 1, 32, 21], [22, 0, 52, 21], [0, 0, 1, 21]]
    assert (laid.labels.tolist(), laid.crowd.tolist()) == ([1, 2, 3], [False, False, True])
    np.testing.assert_array_equal(canvas[:21, :52], sample.image[19:, 8:])
    assert (canvas[21:] == 7).all()
    assert (canvas[:, 52:] == 7).all()


@pytest.mark.parametrize("resize", [Stretch((60, 80), FILL), Letterbox((96, 64), FILL), KeepAspect(48, 64, fill=FILL)])
def test_boxes_lie_where_their_objects_do(resize: Resize) -> None:
    counts, crowds, filled = [], [], 0
    for seed in range(60):
        out = Mosaic(unchanged, resize, probability=1.0)(SAMPLES[seed % 5], context(seed))
        assert out.image.shape == (2 * resize.size[0], 2 * resize.size[1], 3)
        check_colours(out)
        counts.append(len(out.boxes))
        crowds.append(int(out.crowd.sum()))
        assert set(out.labels[out.crowd].tolist()) <= {3, 5}, "a crowd is still a crowd"
        assert not set(out.labels[~out.crowd].tolist()) & {3, 5}
        filled += int((out.image == FILL).all(axis=2).any())
    assert filled > 30
    assert max(counts) >= 6
    assert max(crowds) >= 2


def test_what_comes_next_gets_the_mosaic_as_its_picture() -> None:
    seen: list[BoxSample] = []

    def then(sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        assert context.item is None, "its masks are those of no sample"
        assert context.seed == 5
        seen.append(sample)
        return as_resized(Stretch((60, 80)))(sample, context)

    out = Mosaic(then, Stretch((60, 80)), probability=1.0)(SAMPLES[0], context(5))
    assert out.image.shape == (60, 80, 3)
    np.testing.assert_allclose(out.boxes, seen[0].boxes / 2, atol=1e-4)
    check_colours(out)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.tuples(st.integers(1, 50), st.integers(1, 50)),
       st.lists(st.tuples(*[st.integers(0, 70)] * 4), max_size=4), st.integers(0, 2**32 - 1))
def test_no_size_breaks_a_mosaic(
    size: Size, frame: Size, boxes: list[tuple[int, int, int, int]], seed: int
) -> None:
    points = np.array(boxes, np.float32).reshape(-1, 2, 2).clip(0, (size[1], size[0]))
    corners = np.hstack([points.min(axis=1), points.max(axis=1)]).astype(np.float32)
    corners = corners[(points[:, 0] != points[:, 1]).all(axis=1)]
    sample = BoxSample(np.zeros((*size, 3), np.uint8), corners, np.arange(len(corners)),
                       np.arange(len(corners)) % 2 == 1)
    mosaic = Mosaic(SSDAugment(Stretch(frame)), Stretch(frame), probability=1.0)
    out = mosaic(sample, Context(seed, 0, 2, [sample, SAMPLES[0]].__getitem__))
    assert out.image.shape == (*frame, 3)
    assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()
    assert len(out.boxes) == len(out.labels) == len(out.crowd)


def test_label_maps_lie_on_what_they_show_and_the_rest_is_void() -> None:
    samples = []
    for k, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (30, 80)]):
        labels = np.full((height, width), k, np.uint8)
        labels[: height // 4] = VOID
        image = np.where(labels[..., None] == VOID, np.uint8(0), COLOURS[k])
        samples.append(LabelSample(image, labels))
    shares = []
    for seed in range(40):
        given: Context[LabelSample] = Context(seed, 0, 4, samples.__getitem__)
        out = LabelMosaic(unchanged, (48, 64), FILL, probability=1.0)(samples[0], given)
        assert out.image.shape == (96, 128, 3)
        assert out.labels.shape == (96, 128)
        filled = (out.image == FILL).all(axis=2)
        assert (out.labels[filled] == VOID).all()
        known = out.labels != VOID
        off = np.abs(out.image[known].astype(int) - COLOURS[out.labels[known]]).max(axis=1) > 130
        assert off.mean() < 0.02, "at the border to void two pixels mix"
        shares.append(known.mean())
    assert 0.2 < np.mean(shares) < 0.75
    cropped = LabelMosaic(SegmentationAugment((32, 40), FILL), (48, 64), FILL, probability=1.0)(samples[1], given)
    assert cropped.image.shape == (32, 40, 3)
    assert cropped.labels.shape == (32, 40)


# ---------------------------------------------------------------------------------------------- mixup


def test_mixup_blends_two_augmented_images_and_unites_their_boxes() -> None:
    resize = Stretch((60, 80))
    seeds = []

    def after(sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        seeds.append(context.seed)
        return as_resized(resize)(sample, context)

    for seed in range(20):
        seeds.clear()
        out = MixUp(after, FILL, probability=1.0)(SAMPLES[1], context(seed, item=1))
        assert seeds[0] == seed
        assert len(set(seeds)) == 2, "the second image has random numbers of its own"
        first = as_resized(resize)(SAMPLES[1], context(seed))
        others = [as_resized(resize)(sample, context(0)) for sample in SAMPLES]
        (second,) = [other for other in others if np.array_equal(other.boxes, out.boxes[2:])]
        np.testing.assert_array_equal(out.boxes[:2], first.boxes)
        assert out.crowd.tolist() == [*first.crowd, *second.crowd]
        assert out.labels.tolist() == [*first.labels, *second.labels]
        here, there = first.image.astype(float), second.image.astype(float)
        differ = np.abs(here - there) > 100
        shares = ((out.image - there)[differ] / (here - there)[differ]) if differ.any() else np.array([0.5])
        assert np.ptp(shares) < 0.02, "one share everywhere"
        assert 0.2 < shares.mean() < 0.8


def test_images_of_different_sizes_are_mixed_at_the_top_left() -> None:
    first, second = painted((20, 50), [(0, 0, 10, 10)], [0]), painted((40, 30), [(5, 5, 30, 40)], [1])
    given: Context[BoxSample] = Context(0, 0, 2, [first, first, second].__getitem__)
    given = given._replace(read=lambda item: second)
    out = MixUp(unchanged, FILL, probability=1.0, alpha=1e6)(first, given)
    assert out.image.shape == (40, 50, 3)
    np.testing.assert_allclose(out.image[39, 49], FILL, atol=1)
    np.testing.assert_allclose(out.image[15, 45], (np.array(FILL) + GROUND) / 2, atol=1)
    assert out.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 30, 40]]


# ---------------------------------------------------------------------------------------------- copy-paste


def beside(own: BoxSample, other: BoxSample, masks: dict[int, list[Mask | None]], seed: int = 0
           ) -> Context[BoxSample]:
    """Of a data set of the two, in which always the other one is read."""
    return Context(seed, 0, 2, lambda item: other, 1, 0, lambda item: masks[0 if item == 0 else 1])


def test_objects_are_pasted_by_their_masks_with_the_boxes_of_what_is_seen() -> None:
    own = painted((90, 120), [(30, 30, 100, 80)], [6])
    found, sizes = [], []
    for seed in range(80):
        paste = CopyPaste(unchanged, probability=1.0, share=0.7)
        out = paste(own, context(seed, item=5, masks=lambda item: masks_of(item) if item < 5 else [masks_like(own, 0)]))
        assert out.image.shape == own.image.shape
        pasted = out.labels != 6
        check_colours(BoxSample(out.image, *(values[pasted] for values in out[1:])))
        if not pasted.all():
            below = (out.image == COLOURS[6]).all(axis=2)
            np.testing.assert_array_equal(out.boxes[~pasted][0], mixing._extent(below))
        assert not out.crowd.any(), "crowds are not pasted"
        found.append(len(out.boxes))
        sizes += [float((box[2] - box[0]) * (box[3] - box[1])) for box, label in zip(out.boxes, out.labels, strict=True)
                  if label != 6]
    assert {1, 2} <= set(found)
    assert max(sizes) / min(sizes) > 10


def test_a_pasted_object_has_exactly_its_masks_pixels() -> None:
    own = painted((40, 60), [], [])
    other = painted((40, 60), [(10, 10, 30, 30)], [1])
    triangle = np.tri(40, 60, -8, dtype=np.bool_) & masks_like(other, 0)
    masks: dict[int, list[Mask | None]] = {0: [triangle], 1: [triangle]}
    paste = CopyPaste(unchanged, probability=1.0, scale=(1.0, 1.0), share=1.0, flip=0.0)
    out = paste(own, beside(own, other, masks)._replace(masks=lambda item: [triangle], item=None))
    np.testing.assert_array_equal((out.image == COLOURS[1]).all(axis=2), triangle)
    assert (out.image[~triangle] == GROUND).all()
    rows, columns = np.nonzero(triangle)
    assert out.boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    turned = replace(paste, flip=1.0)(own, beside(own, other, masks)._replace(masks=lambda item: [triangle], item=None))
    np.testing.assert_array_equal(turned.image, out.image[:, ::-1])
    assert turned.boxes[0, 0] == 60 - out.boxes[0, 2]


def masks_like(sample: BoxSample, row: int) -> Mask:
    left, top, right, bottom = sample.boxes[row].astype(int).tolist()
    mask = np.zeros(sample.image.shape[:2], np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def test_hidden_boxes_shrink_to_what_is_visible_or_go() -> None:
    boxes = [(0, 0, 20, 20), (5, 5, 40, 15), (24, 2, 38, 18), (0, 30, 20, 40), (30, 20, 60, 40)]
    own = painted((40, 60), boxes, [0, 1, 2, 3, 4], crowd=(2,))
    hiding = np.zeros((40, 60), np.bool_)
    hiding[0:20, 20:60] = True  # the right of the second, and all of the crowd
    hiding[31:40, 0:20] = True  # all but a row of the fourth
    filled: list[Mask | None] = [masks_like(own, row) for row in range(5)]
    out = mixing._uncovered(own, filled, hiding)
    assert out.boxes.tolist() == [[0, 0, 20, 20], [5, 5, 20, 15], [24, 2, 38, 18], [0, 30, 20, 31], [30, 20, 60, 40]]
    hiding[30, 0:2] = True  # and a tenth of that
    assert mixing._uncovered(own, filled, hiding).labels.tolist() == [0, 1, 2, 4]
    # Of an object with an outline only what is seen of that counts; without, it is taken to fill its box.
    thin = np.zeros((40, 60), np.bool_)
    thin[5:15, 5:8] = True
    thin[9, 5:40] = True
    hiding = np.zeros((40, 60), np.bool_)
    hiding[5:12, 8:60] = True
    masks: list[Mask | None] = [None, thin, None, None, None]
    assert mixing._uncovered(own, masks, hiding).boxes[1].tolist() == [5, 5, 8, 15]
    assert mixing._uncovered(own, [None] * 5, hiding).boxes[1].tolist() == [5, 5, 40, 15]


def test_a_looser_box_keeps_the_sides_that_nothing_hides() -> None:
    own = painted((40, 60), [(10, 10, 30, 30)], [0])
    loose = own._replace(boxes=np.array([[9.5, 9.25, 30.5, 30.75]], np.float32))
    hiding = np.zeros((40, 60), np.bool_)
    assert mixing._uncovered(loose, [masks_like(own, 0)], hiding).boxes.tolist() == [[9.5, 9.25, 30.5, 30.75]]
    hiding[:, 25:] = True
    assert mixing._uncovered(loose, [masks_like(own, 0)], hiding).boxes.tolist() == [[9.5, 9.25, 25, 30.75]]


def test_objects_without_an_outline_are_not_pasted() -> None:
    paste = CopyPaste(unchanged, probability=1.0, share=1.0)
    for seed in range(5):
        out = paste(SAMPLES[0], context(seed, masks=lambda item: [None] * len(SAMPLES[item].boxes)))
        np.testing.assert_array_equal(out.image, SAMPLES[0].image)


# ---------------------------------------------------------------------------------------------- all of them


def all_mixings() -> dict[str, Any]:
    resize = Stretch((60, 80))
    ssd = SSDAugment(resize)
    return {
        "mosaic": Mosaic(ssd, resize, probability=1.0),
        "mixup": MixUp(ssd, MEAN_COLOUR, probability=1.0),
        "copy-paste": CopyPaste(LargeScaleJitter(resize), probability=1.0, scale=(0.5, 1.5), share=1.0),
        "all": MixUp(CopyPaste(Mosaic(ssd, resize), probability=1.0), MEAN_COLOUR, probability=1.0),
    }


def bytes_of(sample: BoxSample) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in sample)


@pytest.mark.parametrize("name", all_mixings())
def test_the_seed_says_everything_in_any_order(name: str) -> None:
    augment = all_mixings()[name]
    before = [bytes_of(sample) for sample in SAMPLES]
    forth = [bytes_of(augment(SAMPLES[seed % 5], context(seed, item=seed % 5))) for seed in range(10)]
    np.random.seed(3)
    copied = pickle.loads(pickle.dumps(augment))
    assert copied == augment
    back = [bytes_of(copied(SAMPLES[seed % 5], context(seed, item=seed % 5))) for seed in reversed(range(10))]
    assert forth == back[::-1]
    assert len(set(forth)) >= 9
    assert [bytes_of(sample) for sample in SAMPLES] == before, "what comes in is not changed"


@pytest.mark.parametrize(("closing", "num_epochs", "mixed"), [
    (0.0, 10, 10), (0.2, 10, 8), (1.0, 10, 0), (15 / 300, 300, 285), (0.1, 3, 3), (0.5, 3, 1)])
@pytest.mark.parametrize("name", ["mosaic", "mixup", "copy-paste"])
def test_the_last_epochs_have_images_as_they_are(name: str, closing: float, num_epochs: int, mixed: int) -> None:
    augment = replace(all_mixings()[name], closing=closing)
    inner = augment.after if name == "mixup" else augment.then
    for epoch in {0, mixed - 1, mixed, num_epochs - 1} - {-1, num_epochs}:
        given = context(1, epoch=epoch, num_epochs=num_epochs, read=lambda item: SAMPLES[1],
                        masks=lambda item: masks_of(1))._replace(item=None)
        plain = bytes_of(augment(SAMPLES[0], given)) == bytes_of(inner(SAMPLES[0], given))
        assert plain == (epoch >= mixed), epoch


def test_images_are_mixed_as_often_as_asked_for() -> None:
    mosaic = Mosaic(unchanged, Stretch((60, 80)), probability=0.3)
    mixed = [mosaic(SAMPLES[0], context(seed)).image.shape != SAMPLES[0].image.shape for seed in range(400)]
    assert 0.22 < np.mean(mixed) < 0.38


@pytest.mark.parametrize(("make", "message"), [
    (partial(Mosaic, unchanged, Stretch((8, 8)), probability=1.5), "probability is a probability in 0..1, got 1.5"),
    (partial(Mosaic, unchanged, Stretch((8, 8)), closing=15), "closing is the last share of the run's epochs, 0..1, in "
     "which the mosaic does nothing, got 15; the last 15 of 300 epochs are closing=15 / 300"),
    (partial(MixUp, unchanged, FILL, closing=-0.1), "in which the mixup does nothing, got -0.1"),
    (partial(MixUp, unchanged, FILL, alpha=0.0), "alpha is above 0 (the larger, the nearer to halves), got 0.0"),
    (partial(CopyPaste, unchanged, scale=(2.0, 0.1)), "both above 0, got (2.0, 0.1)"),
    (partial(CopyPaste, unchanged, share=2.0), "share is a probability in 0..1, got 2.0"),
    (partial(LabelMosaic, unchanged, (0, 8), FILL), "size is (height, width) in pixels, each at least 1, got (0, 8)"),
])  # fmt: skip
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("name", ["mosaic", "mixup", "copy-paste"])
def test_one_image_alone_cannot_be_mixed(name: str) -> None:
    augment = replace(all_mixings()[name], probability=0.0)  # whether or not this sample would be
    with pytest.raises(ValueError, match=f"a {name} mixes images, and the training data have 1; give at least 2, or "
                                         f"leave the {name} out of the config's augment"):
        augment(SAMPLES[0], context(0, num_items=1))


def test_copy_paste_says_what_data_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"copy-paste needs the objects' masks: give the config's data "
                                         r"dataset=partial\(DetectionDataset, masks=True\)"):
        CopyPaste(unchanged)(SAMPLES[0], context(0, masks=None))
    index = read_boxes(generate_sample(tmp_path / "sample", num_train=2, num_val=1), "train")
    with pytest.raises(ValueError, match=r"masks are drawn from outlines, and the data in .* have boxes only; take "
                                         r"data with outlines"):
        DetectionDataset(replace(index, outlines=None), Stretch((8, 8)), augment=unchanged, masks=True)


# ---------------------------------------------------------------------------------------------- from files


def test_the_augmentation_of_the_docs_runs() -> None:
    page = (ROOT / "docs" / "your_data.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(def augment.*?)```", page, re.DOTALL)
    names = {"Resize": Resize, "Augment": Augment, "BoxSample": BoxSample, "SSDAugment": SSDAugment, "MixUp": MixUp,
             "Mosaic": Mosaic}
    exec(code, names)
    augment: Any = names["augment"]
    for seed in range(5):
        assert augment(Stretch((60, 80)))(SAMPLES[0], context(seed)).image.shape == (60, 80, 3)


def test_a_data_set_gives_masks_that_fit_their_boxes(tmp_path: Path) -> None:
    folder = generate_sample(tmp_path / "sample", num_train=6, num_val=1)
    seen = 0

    def look(sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        nonlocal seen
        assert context.masks is not None
        assert context.item is not None
        masks = context.masks(context.item)
        assert len(masks) == len(sample.boxes)
        for box, mask in zip(sample.boxes, masks, strict=True):
            if mask is not None:
                assert mask.shape == sample.image.shape[:2]
                np.testing.assert_allclose(mixing._extent(mask), box, atol=1.5)
                seen += 1
        return as_resized(Stretch((32, 48)))(sample, context)

    index = read_boxes(folder, "train")
    dataset = DetectionDataset(index, Stretch((32, 48)), augment=look, masks=True, num_epochs=3)
    for item in range(6):
        dataset.training(SampleKey(0, item))
    assert seen > 6
    plain = DetectionDataset(index, Stretch((32, 48)), masks=True)
    assert not plain.masks, "without an augmentation nobody reads them"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_any_number_of_workers_gives_the_same_batches(tmp_path: Path) -> None:
    folder, resize = generate_sample(tmp_path / "sample", num_train=6, num_val=1), Stretch((48, 64))
    augment = MixUp(CopyPaste(Mosaic(SSDAugment(resize), resize, closing=0.5)), resize.fill)
    dataset = DetectionDataset(read_boxes(folder, "train"), resize, augment=augment, masks=True, num_epochs=2)
    copied = pickle.loads(pickle.dumps(dataset))  # as to a process that is not forked
    for item in range(6):
        assert torch.equal(copied.training(SampleKey(0, item)).image, dataset.training(SampleKey(0, item)).image)
    here, there = (list(training_batches(dataset, Detection(), batch_size=3, seed=0, fill=resize.fill, last_step=4,
                                         workers=workers)) for workers in (0, 2))
    for (images, targets), other in zip(here, there, strict=True):
        assert torch.equal(images, other.images)
        assert torch.equal(targets.boxes, other.targets.boxes)
        assert torch.equal(targets.crowd, other.targets.crowd)
