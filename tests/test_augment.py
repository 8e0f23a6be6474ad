"""The augmentations against torchvision and by hand, and that a seed says everything."""

import hashlib
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import RandomIoUCrop

import detseg
from detseg.data import augment as augmentations
from detseg.data.augment import (
    Augment,
    BoxSample,
    Context,
    LabelSample,
    LargeScaleJitter,
    RandomErasing,
    SampleT,
    SegmentationAugment,
    SSDAugment,
)
from detseg.resize import MEAN_COLOUR, RGB, KeepAspect, Letterbox, Resize, Stretch
from detseg.structures import VOID, LabelPixels, Pixels, Size

Boxes = NDArray[np.float32]


def noise(size: Size, *, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def context(seed: int) -> Context[SampleT]:
    """Of the only sample of a data set: these augmentations look at no other."""

    def read(item: int) -> SampleT:
        raise AssertionError(f"sample {item} was read")

    return Context(seed, epoch=0, num_items=1, read=read)


def call(
    augment: Augment[BoxSample],
    image: Pixels,
    boxes: list[list[float]],
    *,
    crowd: list[bool] | None = None,
    seed: int = 0,
) -> BoxSample:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    crowds = np.array(crowd or [False] * len(boxes), dtype=bool)
    return augment(BoxSample(image, array, np.arange(len(boxes), dtype=np.int64), crowds), context(seed))


def only(resize: Resize, **options: Any) -> SSDAugment:
    """The augmentation with everything off that is not asked for."""
    off = {"photometric": 0.0, "zoom_out": 0.0, "iou_crop": 0.0, "flip": 0.0}
    return SSDAugment(resize, **(off | options))


# ---------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("resize", [Stretch((96, 128)), Letterbox((96, 128))])
def test_with_everything_off_it_is_the_resize(resize: Resize) -> None:
    image = noise((60, 100))
    out, boxes, labels, crowd = call(only(resize), image, [[10, 20, 30, 60]], crowd=[True])
    np.testing.assert_array_equal(out, resize.apply_rounded(image))
    assert np.abs(out - resize.apply(image)).max() <= 0.51  # rounding, and the last digits of two libraries
    place = resize.place((60, 100))
    expected = [
        10 * place.scale_x + place.offset_x,
        20 * place.scale_y + place.offset_y,
        30 * place.scale_x + place.offset_x,
        60 * place.scale_y + place.offset_y,
    ]
    np.testing.assert_allclose(boxes, [expected], rtol=1e-6)
    assert (str(out.dtype), str(boxes.dtype)) == ("uint8", "float32")
    assert (labels.tolist(), crowd.tolist()) == ([0], [True])


def test_a_mirror_image() -> None:
    image = noise((40, 60))
    out, boxes, *_ = call(only(Stretch((40, 60)), flip=1.0), image, [[5, 10, 20, 30]])
    np.testing.assert_array_equal(out, image[:, ::-1])
    np.testing.assert_allclose(boxes, [[40, 10, 55, 30]], rtol=1e-6)


def test_colours_change_and_boxes_stay() -> None:
    image = noise((40, 60))
    augment = only(Stretch((40, 60)), photometric=1.0)
    out, boxes, *_ = call(augment, image, [[5, 10, 20, 30]])
    assert np.abs(out.astype(int) - image).mean() > 2
    np.testing.assert_allclose(boxes, [[5, 10, 20, 30]], rtol=1e-6)
    assert len({call(augment, image, [], seed=seed)[0].tobytes() for seed in range(20)}) == 20


@pytest.mark.parametrize(("original", "size"), [((60, 90), (320, 256)), ((480, 640), (96, 128)), ((300, 40), (64, 64))])
@pytest.mark.parametrize("fill", [MEAN_COLOUR, (30, 200, 100)])
def test_zoom_out_puts_the_image_on_the_fill_colour(original: Size, size: Size, fill: RGB) -> None:
    image = np.full((*original, 3), (255, 0, 0), dtype=np.uint8)
    areas = []
    for seed in range(40):
        augment = only(Stretch(size, fill), zoom_out=1.0)
        out, boxes, *_ = call(augment, image, [[0, 0, original[1], original[0]]], seed=seed)
        assert_extent(boxes[0], out[..., 1] < fill[1] / 2, tolerance=2.0)
        areas.append(float(np.prod(boxes[0, 2:] - boxes[0, :2])) / (size[0] * size[1]))
        outside = out[(out == fill).all(axis=2)]
        assert len(outside) or areas[-1] > 0.8
    assert min(areas) < 0.12
    assert min(areas) > 1 / 16
    assert max(areas) > 0.5


def assert_extent(box: Boxes, mask: NDArray[np.bool_], *, tolerance: float) -> None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(box, extent, atol=tolerance)


def test_a_crop_keeps_boxes_by_their_centre_and_crowds_by_any_part() -> None:
    crop = augmentations._IoUCrop((None,), p=1.0)
    rows = np.array(
        [
            [0.0, 0.0, 0.5, 0.5, 0, 0],  # centre (25, 25) inside
            [0.0, 0.0, 0.38, 0.5, 1, 0],  # centre (19, 25) outside
            [0.0, 0.0, 0.38, 0.5, 2, 1],  # the same as a crowd
            [0.3, 0.4, 0.5, 0.6, 3, 0],  # wholly inside
        ]
    )
    moved = crop.apply_to_bboxes(rows, crop=(20, 10, 70, 90), shape=(100, 100, 3))
    np.testing.assert_allclose(
        moved,
        [[0.0, 0.0, 0.6, 0.5, 0, 0], [0.0, 0.0, 0.36, 0.5, 2, 1], [0.2, 0.375, 0.6, 0.625, 3, 0]],
        atol=1e-12,
    )


def test_a_crop_reaches_its_overlap_as_torchvision_counts_it() -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, size=(2, 50, 2))
    crops = np.concatenate([corners[0], corners[0] + rng.integers(1, 60, size=(50, 2))], axis=1)
    boxes = np.concatenate([corners[1], corners[1] + rng.uniform(1, 60, size=(50, 2))], axis=1)[:9]
    overlaps = torchvision.ops.box_iou(torch.from_numpy(crops).double(), torch.from_numpy(boxes)).numpy()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centres > crops[:, None, :2]) & (centres < crops[:, None, 2:])).all(axis=2)
    for least in (0.0, 0.1, 0.3, 0.5):
        expected = (inside & (overlaps >= least)).any(axis=1)
        assert expected.any()
        assert augmentations._reach(crops, boxes, least).tolist() == expected.tolist()


def test_crops_are_distributed_as_torchvision_s() -> None:
    height, width = 240, 320
    boxes = [[20.0, 30.0, 150.0, 200.0], [200.0, 100.0, 300.0, 160.0]]
    theirs, ours = RandomIoUCrop(), augmentations._IoUCrop(SSDAugment(Stretch((1, 1))).min_overlaps, p=1.0)
    sample = [
        torch.zeros(3, height, width, dtype=torch.uint8),
        tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
    ]
    normalised = np.column_stack([np.array(boxes) / (width, height, width, height), [0, 1], [0, 0]])
    torch.manual_seed(0)
    ours.set_random_seed(0)
    areas: list[list[float]] = [[], []]
    for _ in range(400):
        params = theirs.make_params(sample)
        areas[0].append(params.get("height", height) * params.get("width", width))
        drawn = ours.get_params_dependent_on_data({"shape": (height, width, 3)}, {"bboxes": normalised})
        left, top, right, bottom = drawn["crop"]
        areas[1].append((bottom - top) * (right - left))
    quantiles = np.quantile(np.array(areas) / (height * width), (0.1, 0.25, 0.5, 0.75), axis=1)
    np.testing.assert_allclose(quantiles[:, 0], quantiles[:, 1], atol=0.09)


# ---------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("resize", [Stretch((200, 300)), Letterbox((300, 200))])
def test_boxes_stay_on_what_they_show(resize: Resize) -> None:
    """Each box is a flat rectangle of its own colour on black, so its pixels can be found again."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    boxes = [[10, 20, 110, 120], [120, 100, 230, 170], [150, 10, 210, 80]]
    image = np.zeros((180, 240, 3), dtype=np.uint8)
    for (left, top, right, bottom), colour in zip(boxes, colours, strict=True):
        image[top:bottom, left:right] = colour
    kept = []
    for seed in range(60):
        augment = SSDAugment(resize, photometric=0.0, zoom_out=0.3)
        out, found, labels, crowd = call(augment, image, [list(map(float, box)) for box in boxes], seed=seed)
        assert out.shape == (*resize.size, 3)
        assert out.dtype == np.uint8
        assert not crowd.any()
        for box, label in zip(found, labels, strict=True):
            assert (box >= 0).all()
            assert (box[2:] <= resize.size[::-1]).all()
            primary = out[..., label].astype(int)
            others = np.delete(out, label, axis=2).max(axis=2).astype(int)
            assert_extent(box, primary - others > 120, tolerance=3.0)
        kept.append(len(labels))
    assert set(kept) == {1, 2, 3}


def test_crowds_never_decide_and_empty_images_are_cropped_too() -> None:
    image = noise((90, 120))
    augment = only(Stretch((60, 60)), iou_crop=1.0, zoom_out=0.5)
    whole = np.rint(augment.resize.apply(image))
    cropped = 0
    for seed in range(30):
        empty, none, *_ = call(augment, image, [], seed=seed)
        crowded, *_ = call(augment, image, [[10, 10, 100, 80]], crowd=[True], seed=seed)
        np.testing.assert_array_equal(empty, crowded)
        assert none.shape == (0, 4)
        cropped += not np.array_equal(empty, whole)
    assert cropped > 15


def test_a_crowd_is_cut_to_what_is_seen_and_goes_when_nothing_is() -> None:
    image = noise((100, 100))
    seen = []
    for seed in range(60):
        _, boxes, labels, crowd = call(
            only(Stretch((100, 100)), iou_crop=1.0, min_overlaps=(0.0,)),
            image,
            [[0, 0, 30, 100], [60, 60, 90, 90]],
            crowd=[True, False],
            seed=seed,
        )
        assert labels.tolist() == ([0, 1] if crowd.any() else [1])
        assert crowd.sum() == len(crowd) - 1
        seen.append(bool(crowd.any()))
        assert (boxes[:, 2:] - boxes[:, :2] >= augmentations.SMALLEST_SIDE - 1e-4).all()
    assert {True, False} == set(seen)


@pytest.mark.parametrize(
    "box", [[10, 10, 10, 30], [10, 10, 30, 10], [30, 10, 20, 30], [100, 0, 120, 50], [-9, 0, -1, 5]]
)
def test_boxes_without_area_are_dropped(box: list[float]) -> None:
    for seed in range(5):
        _, boxes, labels, crowd = call(SSDAugment(Stretch((50, 70))), noise((60, 100)), [box], seed=seed)
        assert boxes.shape == (0, 4)
        assert [str(array.dtype) for array in (boxes, labels, crowd)] == ["float32", "int64", "bool"]
        assert len(labels) == len(crowd) == 0


def test_boxes_are_clipped_to_the_image() -> None:
    _, boxes, *_ = call(only(Stretch((60, 100))), noise((60, 100)), [[-20, 10, 50, 90]])
    np.testing.assert_allclose(boxes, [[0, 10, 50, 60]], rtol=1e-6)


def test_what_comes_in_is_not_changed() -> None:
    image, boxes = noise((60, 100)), np.array([[10, 10, 50, 50]], dtype=np.float32)
    labels, crowd = np.array([4]), np.array([False])
    before = [array.copy() for array in (image, boxes, labels, crowd)]
    for seed in range(10):
        SSDAugment(Stretch((32, 32)))(BoxSample(image, boxes, labels, crowd), context(seed))
    for array, copy in zip((image, boxes, labels, crowd), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.lists(st.tuples(*[st.floats(-20, 220, width=32)] * 4), max_size=6),
    st.integers(0, 2**63),
)
def test_nothing_breaks_it(original: Size, boxes: list[tuple[float, ...]], seed: int) -> None:
    augment = SSDAugment(Letterbox((48, 32)))
    out, found, labels, crowd = call(augment, noise(original), [list(box) for box in boxes], seed=seed)
    assert out.shape == (48, 32, 3)
    assert len(found) == len(labels) == len(crowd) == len(set(labels.tolist()))
    assert (found[:, 2:] > found[:, :2]).all()
    assert (found >= 0).all()
    assert (found[:, 2:] <= (32, 48)).all()


# ---------------------------------------------------------------------------------------------- seeds


def fingerprint(seed: int) -> str:
    """Of an augmented sample; also run in other processes."""
    out = call(SSDAugment(Stretch((64, 96))), noise((60, 100)), [[10, 10, 50, 50], [30, 20, 90, 55]], seed=seed)
    return hashlib.sha256(b"".join(array.tobytes() for array in out)).hexdigest()


class Fingerprints(MapDataset[str]):
    def __getitem__(self, seed: int) -> str:
        return fingerprint(seed)

    def __len__(self) -> int:
        return 12


def test_the_seed_says_everything_in_any_order_and_whatever_came_before() -> None:
    augment = SSDAugment(Stretch((64, 96)))
    image, boxes = noise((60, 100)), [[10.0, 10.0, 50.0, 50.0]]
    forth = [call(augment, image, boxes, seed=seed)[0].tobytes() for seed in range(8)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    copied = pickle.loads(pickle.dumps(augment))
    back = [call(copied, image, boxes, seed=seed)[0].tobytes() for seed in reversed(range(8))]
    assert forth == back[::-1]
    assert len(set(forth)) == 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_seed_says_everything_in_any_worker(workers: int) -> None:
    here = [fingerprint(seed) for seed in range(12)]
    for base in (0, 1):  # albumentations and DataLoader seed workers from this
        generator = torch.Generator().manual_seed(base)
        loader = DataLoader(Fingerprints(), batch_size=None, num_workers=workers, generator=generator)
        assert list(loader) == here


def test_the_seed_says_everything_in_a_fresh_process_and_importing_is_quiet() -> None:
    code = "from tests.test_augment import fingerprint; print(fingerprint(7), flush=True)"
    quiet = "import warnings; warnings.simplefilter('error'); import detseg.data.augment; "
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    root = Path(detseg.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", quiet + code],
        cwd=root,
        env=environment | {"PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == (fingerprint(7), "")


def test_the_parts_are_drawn_independently() -> None:
    """albumentations' set_random_seed would give every part the same numbers."""
    image = noise((40, 40))
    image[:, :20] //= 2
    augment = only(Stretch((40, 40)), flip=0.5, photometric=1.0)
    flipped, bright, contrast = [], [], []
    for seed in range(300):
        out = call(augment, image, [], seed=seed)[0].astype(float)
        flipped.append(out[:, :20].mean() > out[:, 20:].mean())
        bright.append(out.mean())
        contrast.append(out.std() / out.mean())
    table = np.corrcoef([flipped, bright, contrast])
    assert 0.4 < np.mean(flipped) < 0.6
    assert abs(table[0, 1:]).max() < 0.2
    assert abs(table[1, 2]) < 0.6


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is a probability in 0..1, got 1.5"),
        ({"photometric": -0.1}, "photometric is a probability in 0..1, got -0.1"),
        ({"zoom_out": float("nan")}, "zoom_out is a probability in 0..1, got nan"),
        ({"iou_crop": 2}, "iou_crop is a probability in 0..1, got 2"),
        ({"zoom_out_ratio": 0.5}, "zoom_out_ratio is at least 1 (the image itself), got 0.5"),
        ({"min_overlaps": ()}, "min_overlaps holds at least one number in 0..1 (below 1) or None, got ()"),
        ({"min_overlaps": (0.5, 1.0)}, "got (0.5, 1.0); iou_crop=0 switches the crop off"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SSDAugment(Stretch((320, 320)), **options)


# ---------------------------------------------------------------------------------------------- segmentation


def just_crop(crop: Size, **options: Any) -> SegmentationAugment:
    """The augmentation with everything off that is not asked for."""
    off: dict[str, Any] = {"fill": MEAN_COLOUR, "scale": (1.0, 1.0), "flip": 0.0, "photometric": 0.0}
    return SegmentationAugment(crop, **(off | options))


def cropped(augment: SegmentationAugment, image: Pixels, labels: LabelPixels, *, seed: int = 0) -> LabelSample:
    return augment(LabelSample(image, labels), context(seed))


def blocks(size: Size, *, side: int = 40) -> tuple[Pixels, LabelPixels]:
    """Squares of two kinds, and their picture."""
    rows, columns = np.indices(size) // side
    labels = ((rows + columns) % 2).astype(np.uint8)
    return np.repeat(labels[..., None] * np.uint8(250), 3, axis=2), labels


def test_a_crop_of_the_image_s_size_is_the_image() -> None:
    image, labels = noise((20, 30)), noise((20, 30), seed=1)[..., 0]
    out, found = cropped(just_crop((20, 30)), image, labels)
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(found, labels)
    out, found = cropped(just_crop((20, 30), flip=1.0), image, labels)
    np.testing.assert_array_equal(out, image[:, ::-1])
    np.testing.assert_array_equal(found, labels[:, ::-1])


def test_a_smaller_crop_is_a_window_of_both() -> None:
    image = np.stack([*np.indices((50, 60)), np.zeros((50, 60))], axis=2).astype(np.uint8)
    labels = noise((50, 60))[..., 0]
    corners = set()
    for seed in range(200):
        out, found = cropped(just_crop((8, 10)), image, labels, seed=seed)
        top, left = (int(value) for value in out[0, 0, :2])
        np.testing.assert_array_equal(out, image[top : top + 8, left : left + 10])
        np.testing.assert_array_equal(found, labels[top : top + 8, left : left + 10])
        corners.add((top, left))
    tops, lefts = ({corner[axis] for corner in corners} for axis in (0, 1))
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 42, 0, 50)


@pytest.mark.parametrize("fill", [MEAN_COLOUR, (30, 200, 100)])
def test_a_smaller_image_lies_on_the_fill_colour_and_void(fill: RGB) -> None:
    places = set()
    for seed in range(60):
        augment = just_crop((9, 12), fill=fill, photometric=1.0)
        out, found = cropped(augment, noise((7, 12)), np.full((7, 12), 3, np.uint8), seed=seed)
        inside = found == 3
        assert inside.sum() == 7 * 12
        assert (found[~inside] == VOID).all()
        assert (out[~inside] == fill).all()
        places.add(int(inside.any(axis=1).argmax()))
    assert places == {0, 1, 2}


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.37, 2.0])
def test_labels_stay_on_what_they_show(scale: float) -> None:
    image, labels = blocks((180, 260))
    for seed in range(10):
        out, found = cropped(just_crop((96, 128), scale=(scale, scale), flip=0.5), image, labels, seed=seed)
        known = found != VOID
        brightness = out[..., 0].astype(int)
        # Halfway between two pixels is as near to the one as to the other; at a corner four mix.
        clear = known & (np.abs(brightness - 125) > 70)
        np.testing.assert_array_equal(found[clear], brightness[clear] > 125)
        assert clear.sum() > 0.85 * known.sum()


def test_scales_are_those_asked_for_of_the_image_or_of_its_shorter_side() -> None:
    image, labels = noise((40, 60)), np.zeros((40, 60), np.uint8)

    def heights(augment: SegmentationAugment) -> list[int]:
        found = (cropped(augment, image, labels, seed=seed).labels for seed in range(300))
        return [int((crop == 0).any(axis=1).sum()) for crop in found]

    found = heights(just_crop((100, 200), scale=(0.5, 2.0)))
    assert (min(found), max(found)) == (20, 80)
    assert np.mean(found) == pytest.approx(50, abs=4)
    of_shorter = heights(just_crop((100, 200), scale=(0.5, 1.5), shorter=60))
    assert (min(of_shorter), max(of_shorter)) == (30, 90)


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[:, 80:] = 1
    labels[:10] = VOID

    def shares(augment: SegmentationAugment) -> float:
        found = [cropped(augment, noise((100, 100)), labels, seed=seed).labels for seed in range(200)]
        return float(np.mean([(crop == 0).sum() > 0.75 * (crop != VOID).sum() for crop in found]))

    assert shares(just_crop((30, 30))) > 0.6
    assert shares(just_crop((30, 30), most_of_one_class=0.75)) < 0.25


def test_rare_classes_are_seen_more_often_and_void_alone_does_not_hurt() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[150:153, 20:23] = 1
    labels[:50] = VOID

    def seen(augment: SegmentationAugment) -> float:
        found = (cropped(augment, noise((200, 200)), labels, seed=seed).labels for seed in range(200))
        return float(np.mean([(crop == 1).any() for crop in found]))

    assert seen(just_crop((20, 20))) < 0.1
    assert seen(just_crop((20, 20), rare_classes=1.0)) > 0.95
    assert 0.35 < seen(just_crop((20, 20), rare_classes=0.5)) < 0.65
    void = np.full((30, 30), VOID, np.uint8)
    _, found = cropped(just_crop((20, 20), rare_classes=1.0, most_of_one_class=0.5), noise((30, 30)), void)
    assert (found == VOID).all()


def test_the_rare_pixel_lies_anywhere_in_the_crop() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[50, 50] = 1
    augment = just_crop((10, 10), rare_classes=1.0)
    found = (cropped(augment, noise((100, 100)), labels, seed=seed).labels for seed in range(400))
    rows = [int((crop == 1).any(axis=1).argmax()) for crop in found]
    assert np.bincount(rows, minlength=10).min() > 10


def test_the_seed_says_everything_about_a_crop_whatever_the_threads() -> None:
    image, labels = noise((300, 400)), noise((300, 400), seed=1)[..., 0] % 19

    def drawn(seed: int) -> bytes:
        augment = SegmentationAugment((160, 200), MEAN_COLOUR, rare_classes=0.5, most_of_one_class=0.75)
        return b"".join(array.tobytes() for array in cropped(augment, image, labels, seed=seed))

    before, threads = [drawn(seed) for seed in range(12)], cv2.getNumThreads()
    try:
        for number in (1, 3):
            cv2.setNumThreads(number)
            assert [drawn(seed) for seed in reversed(range(12))] == before[::-1]
    finally:
        cv2.setNumThreads(threads)
    assert len(set(before)) == 12
    augment = SegmentationAugment((160, 200), MEAN_COLOUR)
    copy = pickle.loads(pickle.dumps(augment))
    assert copy == augment
    again, once = (cropped(one, image, labels, seed=5) for one in (copy, augment))
    np.testing.assert_array_equal(again.image, once.image)


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 60), st.integers(1, 60)),
       st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_image_fills_every_crop(original: Size, crop: Size, seed: int) -> None:
    labels = noise(original)[..., 0] % 7
    augment = SegmentationAugment(crop, MEAN_COLOUR, rare_classes=0.5, most_of_one_class=0.6)
    out, found = cropped(augment, noise(original), labels, seed=seed)
    assert out.shape == (*crop, 3)
    assert found.shape == crop
    assert out.dtype == found.dtype == np.uint8
    assert set(np.unique(found)) <= {*range(7), VOID}
    assert (found != VOID).any()


@pytest.mark.parametrize(("options", "message"), [
    ({"crop": (0, 5)}, r"the crop is \(height, width\) in pixels, each at least 1, got \(0, 5\)"),
    ({"scale": (2.0, 0.5)}, r"the smallest and the largest, both above 0, got \(2\.0, 0\.5\)"),
    ({"scale": (0.0, 0.5)}, "both above 0"),
    ({"shorter": 0}, "shorter is a side in pixels, at least 1, or None, got 0"),
    ({"flip": 1.5}, r"flip is a probability in 0\.\.1, got 1\.5"),
    ({"photometric": -0.1}, "photometric is a probability"),
    ({"rare_classes": 2.0}, "rare_classes is a probability"),
    ({"most_of_one_class": 0.0}, r"a share above 0 and up to 1 \(any crop\), got 0\.0"),
])  # fmt: skip
def test_impossible_options_of_segmentation_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationAugment(**({"crop": (8, 8), "fill": MEAN_COLOUR} | options))


# ---------------------------------------------------------------------------------------------- scale jitter


RECTANGLES = [[10, 20, 110, 120], [120, 100, 230, 170], [150, 10, 210, 80]]


def rectangles() -> BoxSample:
    """Each of its own colour on black; the last one is a crowd."""
    image = np.zeros((180, 240, 3), dtype=np.uint8)
    for (left, top, right, bottom), colour in zip(RECTANGLES, np.eye(3, dtype=np.uint8) * 250, strict=True):
        image[top:bottom, left:right] = colour
    return BoxSample(image, np.array(RECTANGLES, dtype=np.float32), np.arange(3), np.array([False, False, True]))


@pytest.mark.parametrize("resize", [Stretch((90, 120), (30, 200, 100)), Letterbox((120, 90)), Stretch((200, 100))])
def test_scale_jitter_keeps_boxes_on_what_they_show(resize: Resize) -> None:
    kept, shares = [], []
    for seed in range(80):
        out, boxes, labels, crowd = LargeScaleJitter(resize)(rectangles(), context(seed))
        assert out.shape == (*resize.size, 3)
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= resize.size[::-1]).all()
        assert crowd.tolist() == (labels == 2).tolist()
        for box, label in zip(boxes, labels, strict=True):
            others = np.delete(out, label, axis=2).max(axis=2).astype(int)
            assert_extent(box, out[..., label].astype(int) - others > 120, tolerance=2.5)
        kept.append(len(boxes))
        shares.append((out == resize.fill).all(axis=2).mean())
    assert set(kept) >= {2, 3}
    assert min(shares) < 0.02
    assert max(shares) > 0.9


def test_scales_of_the_jitter_are_uniform_around_the_resize() -> None:
    sample = BoxSample(noise((40, 60)), np.array([[0, 0, 60, 40]], dtype=np.float32), np.zeros(1, np.int64),
                       np.zeros(1, np.bool_))
    jitter = LargeScaleJitter(Stretch((100, 100)), scale=(0.1, 0.9), flip=0.0)
    sides = np.array([jitter(sample, context(seed)).boxes[0] for seed in range(400)])
    heights, widths = sides[:, 3] - sides[:, 1], sides[:, 2] - sides[:, 0]
    np.testing.assert_allclose(heights, widths, atol=1e-4)
    np.testing.assert_allclose(np.quantile(heights, (0, 0.25, 0.5, 0.75, 1)), [10, 30, 50, 70, 90], atol=5)
    room = 100 - heights
    assert 0.4 < np.mean(sides[:, 1] / room) < 0.6, "anywhere in the frame"
    same = LargeScaleJitter(Stretch((40, 60)), scale=(1.0, 1.0), flip=1.0)(sample, context(0))
    np.testing.assert_array_equal(same.image, sample.image[:, ::-1])
    coloured = LargeScaleJitter(Stretch((40, 60)), scale=(1.0, 1.0), flip=0.0, photometric=1.0)(sample, context(0))
    assert np.abs(coloured.image.astype(int) - sample.image).mean() > 2
    free = LargeScaleJitter(KeepAspect(20, 90))(sample, context(0))
    assert free.image.shape == (20, 30, 3)


def test_what_is_hardly_left_of_an_object_goes_and_a_crowd_stays() -> None:
    boxes = np.array([[0, 0, 40, 40], [0, 0, 44, 40], [0, 0, 40.05, 40], [-9, 0, 0, 9]], dtype=np.float32)
    sample = BoxSample(noise((60, 60)), boxes, np.arange(4), np.array([False, False, False, True]))
    found = augmentations.visible_boxes(sample, (40, 0, 60, 60))
    assert found.boxes.tolist() == []
    found = augmentations.visible_boxes(sample, (36, 0, 60, 60))
    assert found.labels.tolist() == [0, 1, 2], "a tenth and more is enough"
    assert found.boxes[0].tolist() == [36, 0, 40, 40]
    crowds = augmentations.visible_boxes(sample._replace(crowd=np.ones(4, np.bool_)), (40, 0, 60, 60))
    assert crowds.labels.tolist() == [1], "of some width"


def test_pictures_are_put_where_they_belong_wherever_they_reach_out() -> None:
    picture = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    for top in range(-5, 8):
        for left in range(-6, 9):
            canvas, whole = np.zeros((5, 6), np.uint8), np.zeros((25, 26), np.uint8)
            whole[10 + top : 13 + top, 10 + left : 14 + left] = picture
            x1, y1, x2, y2 = augmentations.put(canvas, picture, top=top, left=left)
            np.testing.assert_array_equal(canvas, whole[10:15, 10:16])
            assert (canvas > 0).sum() == (x2 - x1) * (y2 - y1) == (canvas[y1:y2, x1:x2] > 0).sum()


# ---------------------------------------------------------------------------------------------- erasing


def plain(sample: Any, context: Context[Any]) -> Any:
    return sample


def test_erasing_hides_a_part_of_the_image_and_of_each_object() -> None:
    sample = rectangles()
    shares, inside, crowds = [], [], 0
    for seed in range(60):
        out = RandomErasing(plain, objects=False, probability=1.0)(sample, context(seed))
        changed = (out.image != sample.image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert changed.sum() > 0.98 * area, "one rectangle, of random pixels"
        shares.append(area / changed.size)
        for before, after in zip(sample[1:], out[1:], strict=True):
            np.testing.assert_array_equal(before, after)
    assert 0.015 < min(shares) < 0.05
    assert 0.15 < max(shares) < 0.21
    blank = sample._replace(image=np.zeros_like(sample.image))
    for seed in range(30):
        both = RandomErasing(plain, probability=1.0)(blank, context(seed)).image
        image = RandomErasing(plain, probability=1.0, objects=False)(blank, context(seed)).image
        more = (both != image).any(axis=2)  # the first rectangle is the same
        crowds += more[10:80, 150:210].any()
        for left, top, right, bottom in RECTANGLES[:2]:
            inside.append(more[top:bottom, left:right].mean())
            more[top:bottom, left:right] = False
        assert not more.any(), "objects are erased within their boxes, crowds not at all"
    assert not crowds
    assert 0.01 < np.mean(inside) < 0.2
    assert not (blank.image != 0).any(), "what comes in is not changed"


def test_erased_labels_are_void() -> None:
    labels = np.full((40, 60), 3, np.uint8)
    image = np.zeros((40, 60, 3), np.uint8)
    erasing: RandomErasing[LabelSample] = RandomErasing(plain, probability=0.5)
    erased = 0
    for seed in range(40):
        out = erasing(LabelSample(image, labels), context(seed))
        assert ((out.labels == VOID) | (out.image == 0).all(axis=2)).all()
        assert set(np.unique(out.labels)) <= {3, VOID}
        erased += bool((out.labels == VOID).any())
        again = erasing(LabelSample(image, labels), context(seed))
        np.testing.assert_array_equal(out.image, again.image)
    assert 10 < erased < 30


@pytest.mark.parametrize("make", [
    lambda: LargeScaleJitter(Stretch((64, 96)), photometric=0.5),
    lambda: RandomErasing(SSDAugment(Stretch((64, 96)))),
    lambda: RandomErasing(LargeScaleJitter(Stretch((64, 96)), scale=(0.01, 0.3))),
])
def test_the_seed_says_everything_about_jitter_and_erasing(make: Any) -> None:
    def drawn(augment: Any, seed: int) -> bytes:
        return b"".join(np.ascontiguousarray(values).tobytes() for values in augment(rectangles(), context(seed)))

    forth = [drawn(make(), seed) for seed in range(10)]
    copied = pickle.loads(pickle.dumps(make()))
    assert copied == make()
    assert [drawn(copied, seed) for seed in reversed(range(10))] == forth[::-1]
    assert len(set(forth)) == 10


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 60), st.integers(1, 60)),
       st.lists(st.tuples(*[st.floats(-5, 95, width=32)] * 4), max_size=4), st.integers(0, 2**32 - 1))
def test_no_image_breaks_jitter_or_erasing(
    original: Size, frame: Size, boxes: list[tuple[float, ...]], seed: int
) -> None:
    augment = RandomErasing(LargeScaleJitter(Letterbox(frame)), probability=1.0)
    out, found, labels, crowd = call(augment, noise(original), [list(box) for box in boxes], seed=seed)
    assert out.shape == (*frame, 3)
    assert (found[:, 2:] > found[:, :2]).all()
    assert len(found) == len(labels) == len(crowd)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LargeScaleJitter(Stretch((8, 8)), scale=(0.0, 1.0)), r"both above 0, got \(0\.0, 1\.0\)"),
    (lambda: LargeScaleJitter(Stretch((8, 8)), flip=2.0), r"flip is a probability in 0\.\.1, got 2\.0"),
    (lambda: RandomErasing(plain, probability=-1.0), r"probability is a probability in 0\.\.1, got -1\.0"),
    (lambda: RandomErasing(plain, area=(0.2, 1.5)), r"above 0 and up to 1, got \(0\.2, 1\.5\)"),
    (lambda: RandomErasing(plain, aspect=(0.0, 1.5)), r"aspect is the smallest and the largest, both above 0, got "),
])  # fmt: skip
def test_impossible_options_of_jitter_and_erasing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_else_imports_albumentations() -> None:
    package = Path(detseg.__file__).parent
    files = [path for folder in (package, package.parent / "heads") for path in folder.rglob("*.py")]
    importing = {path.name for path in files if re.search(r"^\s*(import|from) albumentations", path.read_text(), re.M)}
    assert importing == {"augment.py"}
