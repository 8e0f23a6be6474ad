"""RandAugment and AutoAugment's policies: operations by hand, against torchvision and PIL, and movements on what they
show."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional

from detseg.data import augment, policies
from detseg.data.augment import BoxSample, Context, LabelSample, Matrix, SSDAugment
from detseg.data.policies import DetectionPolicy, OneOf, RandAugment, moved
from detseg.resize import Stretch
from detseg.structures import VOID, Pixels, Size

FILL = (90, 120, 60)
RED, GREEN = (250, 10, 10), (10, 250, 10)


def noise(size: Size, *, seed: int = 0) -> Pixels:
    # Not over the full range, so that stretching it changes something.
    return np.random.default_rng(seed).integers(30, 220, (*size, 3), dtype=np.uint8)


def unchanged(sample: Any, context: Context[Any]) -> Any:
    return sample


def context(seed: int) -> Context[Any]:
    def read(item: int) -> Any:
        raise AssertionError(f"sample {item} was read")

    return Context(seed, epoch=0, num_items=1, read=read, item=0)


def two_rectangles() -> BoxSample:
    """A red object and a green crowd on grey."""
    image = np.full((120, 160, 3), 60, np.uint8)
    image[20:60, 30:80], image[70:100, 90:150] = RED, GREEN
    return BoxSample(image, np.array([[30, 20, 80, 60], [90, 70, 150, 100]], np.float32), np.array([3, 1]),
                     np.array([False, True]))


def extent(image: Pixels, colour: tuple[int, int, int]) -> list[int]:
    """The box around the pixels that are more of this colour than of another."""
    mask = np.abs(image.astype(int) - colour).max(axis=2) < 100
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


# ---------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize(("ours", "theirs"), [
    (augment.equalized, ImageOps.equalize),
    (augment.contrast_stretched, ImageOps.autocontrast),
    (partial(augment.posterized, bits=3), partial(ImageOps.posterize, bits=3)),
    (partial(augment.posterized, bits=8), partial(ImageOps.posterize, bits=8)),
    (partial(augment.solarized, threshold=128), partial(ImageOps.solarize, threshold=128)),
    (partial(augment.solarized, threshold=100), partial(ImageOps.solarize, threshold=100)),
    (partial(augment.solarized, threshold=256), np.array),
    (partial(augment.brightened, factor=1.4), lambda image: ImageEnhance.Brightness(image).enhance(1.4)),
    (partial(augment.contrasted, factor=0.4), lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
    (partial(augment.saturated, factor=1.7), lambda image: ImageEnhance.Color(image).enhance(1.7)),
    (partial(policies.sharpened, factor=1.6), lambda image: ImageEnhance.Sharpness(image).enhance(1.6)),
    (partial(policies.sharpened, factor=0.2), lambda image: ImageEnhance.Sharpness(image).enhance(0.2)),
])  # fmt: skip
def test_colours_are_those_of_pil(ours: Callable[[Pixels], Pixels], theirs: Callable[[Any], Any]) -> None:
    image = noise((40, 50))
    before = image.copy()
    found, expected = ours(image).astype(int), np.asarray(theirs(Image.fromarray(image))).astype(int)
    assert np.abs(found - expected).max() <= 3, "rounding, and where a histogram's steps begin"
    np.testing.assert_array_equal(image, before)


def test_solarize_add_brightens_dark_values_alone() -> None:
    image = np.array([[[0, 100, 127], [128, 200, 255]]], np.uint8)
    assert policies.solar_added(image, 40).tolist() == [[[40, 140, 167], [128, 200, 255]]]
    assert policies.solar_added(image, 200).tolist() == [[[200, 255, 255], [128, 200, 255]]]


# ---------------------------------------------------------------------------------------------- movements


def test_a_movement_by_whole_pixels_moves_all_alike() -> None:
    sample = two_rectangles()
    out = moved(sample, policies._translation(-40, 10), FILL)
    np.testing.assert_array_equal(out.image[10:, :-40], sample.image[:-10, 40:])
    assert (out.image[:10] == FILL).all()
    assert (out.image[:, -40:] == FILL).all()
    assert out.boxes.tolist() == [[0, 30, 40, 70], [50, 80, 110, 110]]
    # A twentieth of the object is left, which goes, and a sliver of the crowd, which stays.
    gone = moved(sample, policies._translation(-78, -99), FILL)
    assert gone.boxes.tolist() == [[12, 0, 72, 1]]
    assert gone.crowd.tolist() == [True]
    labels = np.arange(120 * 160).reshape(120, 160).astype(np.uint8) % 7
    shifted = moved(LabelSample(sample.image, labels), policies._translation(-40, 10), FILL)
    np.testing.assert_array_equal(shifted.labels[10:, :-40], labels[:-10, 40:])
    assert (shifted.labels[:10] == VOID).all()
    assert (shifted.labels[:, -40:] == VOID).all()


@pytest.mark.parametrize("matrix", [
    policies._rotation(25, (120, 160)), policies._rotation(-10, (120, 160)),
    np.array([[1.0, 0.25, 0.0], [0.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 0.0], [-0.2, 1.0, 0.0]])])
def test_boxes_hold_what_was_turned_or_sheared(matrix: Matrix) -> None:
    sample = two_rectangles()
    out = moved(sample, matrix, FILL)
    for box, colour in zip(out.boxes, (RED, GREEN), strict=True):
        np.testing.assert_allclose(box, extent(out.image, colour), atol=1.5)
    labels = np.where((sample.image == RED).all(axis=2), np.uint8(1), np.uint8(0))
    turned = moved(LabelSample(sample.image, labels), matrix, FILL)
    np.testing.assert_allclose(extent(turned.labels[..., None].repeat(3, axis=2) * np.uint8(250), (250, 250, 250)),
                               out.boxes[0], atol=1.5)


def test_a_rotation_is_torchvision_s() -> None:
    sample = two_rectangles()
    theirs = functional.affine(
        torch.from_numpy(sample.image).permute(2, 0, 1), angle=25, translate=[0, 0], scale=1.0, shear=[0.0],
        interpolation=functional.InterpolationMode.BILINEAR, fill=[float(value) for value in FILL])
    ours = moved(sample, policies._rotation(25, (120, 160)), FILL).image
    assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy()).mean() < 1.5


# ---------------------------------------------------------------------------------------------- RandAugment


def test_randaugment_draws_all_its_operations_equally_often_and_none_that_turns() -> None:
    assert len(policies._RAND_AUGMENT) == 11
    assert not [name for name in policies._RAND_AUGMENT if "shear" in name or "rotate" in name]
    drawn = []

    class Counting(RandAugment[BoxSample]):
        def _changed(self, sample: BoxSample, operation: str, *, sign: int) -> BoxSample:
            drawn.append((operation, sign))
            return super()._changed(sample, operation, sign=sign)

    small = two_rectangles()._replace(image=noise((20, 20)))
    for seed in range(300):
        Counting(unchanged, FILL, number=3)(small, context(seed))
    counts = {name: sum(operation == name for operation, _ in drawn) for name in policies._RAND_AUGMENT}
    assert sum(counts.values()) == len(drawn) == 900
    assert min(counts.values()) > 50
    assert 350 < sum(sign > 0 for _, sign in drawn) < 550


@pytest.mark.parametrize("operation", [name for name in policies._RAND_AUGMENT if name not in policies._PLAIN])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_larger_magnitude_changes_more_and_none_nothing(operation: str, sign: int) -> None:
    sample = BoxSample(noise((64, 64)), *two_rectangles()[1:])
    changes = []
    for magnitude in (0.0, 2.5, 5.0, 10.0):
        augmentation: RandAugment[BoxSample] = RandAugment(unchanged, FILL, magnitude=magnitude)
        image = augmentation._changed(sample, operation, sign=sign).image
        changes.append(float(np.abs(image.astype(int) - sample.image).mean()))
    assert changes[0] == 0
    if operation.startswith("translate"):  # of noise, every shift is one
        assert all(change > 0 for change in changes[1:])
    else:
        assert changes == sorted(changes)
        assert changes[3] > 1.5 * changes[1]


def test_translation_reaches_the_share_asked_for() -> None:
    sample = two_rectangles()
    augmentation: RandAugment[BoxSample] = RandAugment(unchanged, FILL, magnitude=10, translate=0.25)
    assert augmentation._changed(sample, "translate x", sign=-1).boxes[0].tolist() == [0, 20, 40, 60]
    assert augmentation._changed(sample, "translate y", sign=1).boxes[0].tolist() == [30, 50, 80, 90]


def test_label_maps_move_with_their_images() -> None:
    labels = np.full((60, 80), 4, np.uint8)
    labels[10:30, 20:50], labels[50:] = 2, VOID
    image = np.repeat(np.where(labels == 2, np.uint8(250), np.uint8(5))[..., None], 3, axis=2)
    augmentation: RandAugment[LabelSample] = RandAugment(unchanged, FILL, number=1, magnitude=8)
    moves = 0
    for seed in range(60):
        out = augmentation(LabelSample(image, labels), context(seed))
        assert set(np.unique(out.labels)) <= {2, 4, VOID}
        if not np.array_equal(out.labels, labels):
            assert (out.image[out.labels == 2] == 250).all()
            assert (out.image[out.labels == 4] == 5).all()
            assert (out.labels[(out.image == FILL).all(axis=2)] == VOID).all()
            moves += 1
    assert moves > 3


# ---------------------------------------------------------------------------------------------- AutoAugment


def test_the_policies_are_complete_and_every_operation_runs() -> None:
    assert {name: len(steps) for name, steps in policies._POLICIES.items()} == {"v0": 5, "v1": 20, "v2": 15, "v3": 15}
    names = {step.operation for steps in policies._POLICIES.values() for one in steps for step in one}
    assert len(names) == 22
    sample = two_rectangles()
    for name in sorted(names):
        for level in (0, 5, 10):
            policy = DetectionPolicy(unchanged, FILL)
            out = policy._done(sample, policies._Step(name, 1.0, level), np.random.default_rng(level))
            assert out.image.shape == sample.image.shape
            assert out.image.dtype == np.uint8
            assert len(out.boxes) == len(out.labels) == len(out.crowd)
            if not name.startswith(("translate", "shear", "rotate")):
                np.testing.assert_array_equal(out.boxes, sample.boxes)


def test_distances_are_those_of_coco_scaled_to_the_image() -> None:
    image = np.full((480, 640, 3), 60, np.uint8)
    sample = BoxSample(image, np.array([[300, 200, 340, 240]], np.float32), np.array([0]), np.array([False]))
    policy = DetectionPolicy(unchanged, FILL)
    out = policy._done(sample, policies._Step("translate x", 1.0, 8), np.random.default_rng(0))
    assert abs(float(out.boxes[0, 0]) - 300) == 200
    half = sample._replace(image=image[::2, ::2], boxes=(sample.boxes / 2).astype(np.float32))
    out = policy._done(half, policies._Step("translate x", 1.0, 8), np.random.default_rng(0))
    assert abs(float(out.boxes[0, 0]) - 150) == 100
    cut = policy._done(sample, policies._Step("cutout", 1.0, 4), np.random.default_rng(3)).image
    rows, columns = np.nonzero((cut == FILL).all(axis=2))
    assert 40 <= np.ptp(columns) + 1 <= 80, "half or more of a square of 2 x 40 pixels"
    assert 40 <= np.ptp(rows) + 1 <= 80


def test_what_is_done_to_objects_stays_within_them_and_out_of_crowds() -> None:
    sample = two_rectangles()
    sample = sample._replace(image=noise((120, 160)))
    outside = np.ones((120, 160), np.bool_)
    outside[20:60, 30:80] = False
    policy, changed = DetectionPolicy(unchanged, FILL), 0
    for operation in ("translate y", "shear x", "shear y", "flip", "equalize", "cutout"):
        for seed in range(20):
            for kind in ("each", "one") if operation == "cutout" else ("each",):
                step = policies._Step(f"{kind} {operation}", 1.0, 10 if kind == "each" else 4)
                out = policy._done(sample, step, np.random.default_rng(seed))
                np.testing.assert_array_equal(out.boxes, sample.boxes)
                same = (out.image == sample.image).all(axis=2)
                assert kind == "one" or same[outside].all()
                assert same[70:100, 90:150].all(), "not in the crowd"
                changed += kind == "each" and not same.all()
    assert 20 < changed < 70, "each with a third of the probability"


def test_a_flipped_object_is_its_mirror_image() -> None:
    sample = two_rectangles()._replace(image=noise((120, 160)))
    policy = DetectionPolicy(unchanged, FILL)
    outs = [policy._done(sample, policies._Step("each flip", 1.0, 0), np.random.default_rng(seed)) for seed in range(9)]
    assert any(np.array_equal(out.image[20:60, 30:80], sample.image[20:60, 30:80][:, ::-1]) for out in outs)


# ---------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("make", [
    lambda then: RandAugment(then, FILL, number=3), *(partial(DetectionPolicy, fill=FILL, policy=name)
                                                      for name in ("v0", "v1", "v2", "v3"))])
def test_the_seed_says_everything(make: Callable[[Any], Any]) -> None:
    augmentation, sample = make(SSDAugment(Stretch((40, 50)))), two_rectangles()
    before = [values.copy() for values in sample]

    def drawn(augmentation: Any, seed: int) -> bytes:
        return b"".join(np.ascontiguousarray(values).tobytes() for values in augmentation(sample, context(seed)))

    forth = [drawn(augmentation, seed) for seed in range(12)]
    copied = pickle.loads(pickle.dumps(augmentation))
    assert copied == augmentation
    assert [drawn(copied, seed) for seed in reversed(range(12))] == forth[::-1]
    assert len(set(forth)) == 12
    for values, copy in zip(sample, before, strict=True):
        np.testing.assert_array_equal(values, copy)


def test_what_comes_next_knows_that_the_picture_has_changed() -> None:
    def then(sample: BoxSample, context: Context[BoxSample]) -> BoxSample:
        assert context.item is None
        return sample

    RandAugment(then, FILL)(two_rectangles(), context(0))
    DetectionPolicy(then, FILL)(two_rectangles(), context(0))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(0, 2**32 - 1),
       st.sampled_from(["v0", "v1", "v2", "v3", None]), st.integers(0, 3))
def test_no_image_breaks_them(size: Size, seed: int, policy: Any, objects: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (objects, 2, 2)) * (size[1], size[0])
    boxes = np.hstack([corners.min(axis=1), corners.max(axis=1)]).astype(np.float32)
    sample = BoxSample(noise(size), boxes, np.arange(objects), rng.random(objects) < 0.3)
    make: Any = RandAugment(unchanged, FILL, magnitude=10) if policy is None else DetectionPolicy(
        unchanged, FILL, policy)
    out = make(sample, context(seed))
    assert out.image.shape == sample.image.shape
    assert (out.boxes[:, 2:] > out.boxes[:, :2]).all()
    assert len(out.boxes) == len(out.labels) == len(out.crowd)


def test_one_of_several_is_drawn_by_its_share_and_by_the_seed_alone() -> None:
    sample = BoxSample(noise((20, 30)), *two_rectangles()[1:])
    mixed = OneOf(tuple(lambda one, _, label=label: one._replace(labels=np.array([label])) for label in range(3)),
                  shares=(2.0, 0.0, 6.0))
    drawn = [int(mixed(sample, context(seed)).labels[0]) for seed in range(400)]
    assert drawn == [int(mixed(sample, context(seed)).labels[0]) for seed in range(400)]
    assert 70 < drawn.count(0) < 130
    assert drawn.count(2) == 400 - drawn.count(0)


@pytest.mark.parametrize(("make", "message"), [
    (partial(RandAugment, unchanged, FILL, number=-1), "number is how many operations follow each other, at least 0, "
     "got -1"),
    (partial(RandAugment, unchanged, FILL, magnitude=15), "magnitude is 0..10, got 15"),
    (partial(RandAugment, unchanged, FILL, translate=2.0), "translate is a share of the image's side, 0..1, got 2.0"),
    (partial(OneOf, ()), "OneOf draws among augmentations, and got none"),
    (partial(OneOf, (unchanged, unchanged), shares=(1.0,)), "a number of at least 0 for each of the 2 augmentations"),
    (partial(OneOf, (unchanged, unchanged), shares=(0.0, 0.0)), "one of them above 0, got (0.0, 0.0)"),
    (partial(DetectionPolicy, unchanged, FILL, policy=cast(Any, "v4")), "policy is one of v0, v1, v2, v3, got 'v4'"),
])  # fmt: skip
def test_impossible_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
