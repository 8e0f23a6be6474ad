"""Resizing against torch and torchvision, and where boxes and labels come to lie: in the network's image and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import resize as torchvision_resize

from detseg.resize import MEAN_COLOUR, RGB, KeepAspect, Letterbox, Placement, Resize, Stretch, TensorFlowStretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, VOID, Pixels, Size

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 700))


def noise(size: Size) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def interpolated(image: Pixels, size: Size) -> NDArray[np.float32]:
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(batch, size=size, mode="bilinear", align_corners=False)[0]
    return resized.permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("original", [(480, 640), (427, 640), (640, 333), (123, 77), (1, 50), (1080, 1920), (1, 1)])
@pytest.mark.parametrize("size", [(320, 320), (300, 512), (640, 200), (7, 5)])
def test_stretch_is_torch_s_bilinear(original: Size, size: Size) -> None:
    image = noise(original)
    resized = Stretch(size).apply(image)
    assert resized.dtype == np.float32
    assert resized.shape == (*size, 3)
    np.testing.assert_allclose(resized, interpolated(image, size), atol=0.03)


@pytest.mark.parametrize("original", [(480, 640), (640, 333), (123, 77), (1, 50)])
@pytest.mark.parametrize("size", [(320, 320), (300, 512)])
def test_letterbox_is_torch_s_bilinear_between_bars_of_the_fill_colour(original: Size, size: Size) -> None:
    image = noise(original)
    resize = Letterbox(size, fill=(7, 80, 200))
    boxed, rounded = resize.apply(image), resize.apply_rounded(image)
    assert boxed.dtype == np.float32
    assert rounded.dtype == np.uint8
    assert boxed.shape == rounded.shape == (*size, 3)
    scale_y, scale_x, top, left = resize.place(original)
    height, width = round(original[0] * scale_y), round(original[1] * scale_x)
    inner = (slice(int(top), int(top) + height), slice(int(left), int(left) + width))
    np.testing.assert_allclose(boxed[inner], interpolated(image, (height, width)), atol=0.03)
    np.testing.assert_allclose(rounded, boxed, atol=0.55)
    boxed[inner] = rounded[inner] = resize.fill
    assert (boxed == resize.fill).all()
    assert (rounded == resize.fill).all()


def test_tensorflows_stretch_by_hand() -> None:
    """Pixels are points: of 2 x 3 to 4 x 2, rows lie at 0, 1/2, 1, 3/2 (beyond the last) and columns at 0, 3/2."""
    image = np.array([[0, 10, 20], [100, 110, 140]], dtype=np.uint8)[..., None].repeat(3, axis=2)
    stretched = TensorFlowStretch((4, 2)).apply(image)
    assert stretched.dtype == np.float32
    assert stretched[..., 1].tolist() == [[0.0, 15.0], [50.0, 70.0], [100.0, 125.0], [100.0, 125.0]]
    rounded = TensorFlowStretch((3, 3)).apply_rounded(image)  # rows at 0, 2/3, 4/3
    assert rounded.dtype == np.uint8
    assert rounded[..., 0].tolist() == [[0, 10, 20], [67, 77, 100], [100, 110, 140]]
    assert TensorFlowStretch((300, 512)).place((600, 256)) == Stretch((300, 512)).place((600, 256))


@pytest.mark.parametrize("original", [(480, 640), (123, 77), (1, 50), (1, 1)])
@pytest.mark.parametrize("size", [(320, 320), (300, 512), (7, 5), (1, 1)])
def test_tensorflows_stretch_is_torchs_of_points(original: Size, size: Size) -> None:
    """grid_sample with whole numbers for the pixels' places, in double precision."""
    image = noise(original)
    rows, columns = (torch.arange(wanted, dtype=torch.float64) * given / wanted
                     for wanted, given in zip(size, original, strict=True))
    grid = torch.stack(torch.meshgrid(
        2 * columns / max(1, original[1] - 1) - 1, 2 * rows / max(1, original[0] - 1) - 1, indexing="xy"), -1)[None]
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    wanted = F.grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    found = TensorFlowStretch(size).apply(image)
    np.testing.assert_allclose(found, wanted.permute(1, 2, 0).numpy(), atol=0.05)


def test_where_images_come_to_lie() -> None:
    assert Stretch((300, 512)).place((600, 256)) == Placement(0.5, 2.0, 0.0, 0.0)
    assert Letterbox((320, 320)).place((480, 640)) == Placement(0.5, 0.5, 40.0, 0.0)
    assert Letterbox((300, 512)).place((600, 256)) == Placement(0.5, 0.5, 0.0, 192.0)
    assert Letterbox((10, 10)).place((3, 6)) == Placement(5 / 3, 10 / 6, 2.0, 0.0)  # bars of 2 and 3
    assert Letterbox((10, 10)).place((1, 500)) == Placement(1.0, 0.02, 4.0, 0.0)  # never without a row


@given(SIZES, SIZES)
def test_letterbox_keeps_the_whole_image_its_aspect_ratio_and_the_centre(size: Size, original: Size) -> None:
    place = Letterbox(size).place(original)
    height, width = original[0] * place.scale_y, original[1] * place.scale_x
    for inner, length, offset in ((height, size[0], place.offset_y), (width, size[1], place.offset_x)):
        assert 1 <= round(inner) <= length
        assert round(length - inner - 2 * offset) in (0, 1)
    assert max(round(height) / size[0], round(width) / size[1]) == 1
    scale = min(size[0] / original[0], size[1] / original[1])
    assert abs(height - original[0] * scale) <= 1
    assert abs(width - original[1] * scale) <= 1


@pytest.mark.parametrize("kind", [Stretch, TensorFlowStretch, Letterbox])
def test_an_impossible_size_is_refused(kind: type[Stretch | TensorFlowStretch | Letterbox]) -> None:
    with pytest.raises(ValueError, match=r"each at least 1, got \(0, 320\)"):
        kind((0, 320))


@pytest.mark.parametrize("fill", [(0, 256, 0), (-1, 0, 0)])
def test_an_impossible_colour_is_refused(fill: RGB) -> None:
    for make in (lambda: Stretch((8, 8), fill), lambda: Letterbox((8, 8), fill), lambda: KeepAspect(8, 9, fill=fill)):
        with pytest.raises(ValueError, match=r"fill is a colour \(red, green, blue\), each 0\.\.255, got \("):
            make()


def test_the_fill_colour_is_imagenet_s_mean_unless_chosen() -> None:
    assert MEAN_COLOUR == (124, 116, 104)
    for resize in (Stretch((8, 8)), TensorFlowStretch((8, 8)), Letterbox((8, 8)), KeepAspect(8, 9)):
        assert resize.fill == MEAN_COLOUR


@pytest.mark.parametrize(("shorter", "longer"), [(320, 640), (200, 333)])
@pytest.mark.parametrize("original", [(480, 640), (640, 427), (123, 77), (40, 400), (375, 500), (1, 1)])
def test_keep_aspect_is_what_torchvision_s_detectors_do(original: Size, shorter: int, longer: int) -> None:
    image = noise(original)
    transform = GeneralizedRCNNTransform(shorter, longer, list(IMAGENET_MEAN), list(IMAGENET_STD))
    channels_first = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    batch, _ = transform([channels_first])
    resize = KeepAspect(shorter, longer)
    resized = resize.apply(image)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    height, width = batch.image_sizes[0]
    expected = batch.tensors[0, :, :height, :width].permute(1, 2, 0)
    np.testing.assert_allclose((resized / 255 - mean) / std, expected, atol=2e-5)
    place = resize.place(original)
    np.testing.assert_allclose(place, (height / original[0], width / original[1], 0, 0))
    rounded = resize.apply_rounded(image)
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, resized, atol=0.55)


@given(SIZES, st.integers(100, 900), st.integers(0, 700))
@settings(max_examples=300)
def test_keep_aspect_comes_to_torchvision_s_sides(original: Size, shorter: int, more: int) -> None:
    longer = shorter + more
    scale = min(shorter / min(original), longer / max(original))
    height, width = (max(1, int(float(side) * scale)) for side in original)  # as interpolate() counts them
    place = KeepAspect(shorter, longer).place(original)
    assert (place.scale_y * original[0], place.scale_x * original[1]) == pytest.approx((height, width))


@pytest.mark.parametrize("original", [(480, 640), (640, 427), (123, 77), (600, 1300)])
def test_keep_aspect_is_what_torchvision_s_segmenters_do(original: Size) -> None:
    image = noise(original)
    channels_first = torch.from_numpy(image).permute(2, 0, 1).float()
    expected = torchvision_resize(channels_first, [260], antialias=True).permute(1, 2, 0)
    resized = KeepAspect(260, 10**6, antialias=True).apply(image)
    np.testing.assert_allclose(resized, expected, atol=1e-3)


def test_keep_aspect_has_a_typical_size_and_says_that_others_come() -> None:
    assert KeepAspect(800, 1333).size == (800, 1066)
    assert not KeepAspect.fixed
    with pytest.raises(ValueError, match="need 1 <= shorter <= longer, got 800 and 600"):
        KeepAspect(800, 600)


# ---------------------------------------------------------------------------------------------- boxes and labels


@st.composite
def _resized(draw: Any, *, longest: int) -> tuple[Resize, Size]:
    """A way to resize and the size of an image; odd bars, enlarging and shrinking among them."""
    original, network = (draw(st.tuples(st.integers(1, longest), st.integers(1, longest))) for _ in range(2))
    shorter = min(network)
    return draw(st.sampled_from([
        Stretch(network), Letterbox(network), KeepAspect(shorter, 3 * shorter),
        KeepAspect(shorter, 3 * shorter, antialias=True)])), original


def network_size(resize: Resize, original: Size) -> Size:
    """Of the image that the network gets."""
    height, width, _ = resize.apply_rounded(np.zeros((*original, 3), dtype=np.uint8)).shape
    return height, width


def test_boxes_by_hand() -> None:
    # An image 3 high and 6 wide in a letterbox of 10 x 12: twice as large, below 2 rows.
    placement = Letterbox((10, 12)).place((3, 6))
    network = placement.boxes_to_network(np.array([[1.0, 0.5, 5.0, 3.0]], dtype=np.float32))
    assert network.tolist() == [[2.0, 3.0, 10.0, 8.0]]
    outside = torch.tensor([[[-4.0, 0.0, 20.0, 10.0], [2.0, 3.0, 10.0, 8.0]]])
    assert placement.boxes_to_original(outside, (3, 6)).tolist() == [[[0.0, 0.0, 6.0, 3.0], [1.0, 0.5, 5.0, 3.0]]]
    # Both axes on their own.
    stretched = Stretch((30, 12)).place((3, 6))
    assert stretched.boxes_to_network(np.array([[1, 1, 2, 3]], dtype=np.float32)).tolist() == [[2.0, 10.0, 4.0, 30.0]]
    assert stretched.boxes_to_original(torch.tensor([2.0, 10.0, 4.0, 30.0]), (3, 6)).tolist() == [1.0, 1.0, 2.0, 3.0]
    assert placement.boxes_to_network(np.zeros((0, 4), dtype=np.float32)).shape == (0, 4)
    assert placement.boxes_to_original(torch.zeros(2, 0, 4), (3, 6)).shape == (2, 0, 4)


@given(_resized(longest=700), st.data())
@settings(max_examples=200, deadline=None)
def test_boxes_come_back_from_the_network(resized: tuple[Resize, Size], data: st.DataObject) -> None:
    resize, original = resized
    rows = []
    for _ in range(3):
        (x1, x2), (y1, y2) = (sorted(data.draw(st.tuples(*[st.floats(0, side)] * 2))) for side in original[::-1])
        rows.append((x1, y1, x2, y2))
    placement = resize.place(original)
    network = placement.boxes_to_network(np.array(rows))
    height, width = network_size(resize, original)
    assert (network >= -1e-9).all()
    assert (network <= np.array([width, height] * 2) + 1e-9).all()
    # Exact but for the digits of a float, which the way back sees through the scale.
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        found = placement.boxes_to_original(torch.from_numpy(network).to(dtype), original)
        assert found.dtype == dtype
        least = min(placement.scale_y, placement.scale_x)
        np.testing.assert_allclose(found, rows, rtol=0, atol=digits * max(height, width, least * max(original)) / least)
        assert bool((found >= 0).all())
        assert bool((found <= torch.tensor(original[::-1] * 2)).all())


def test_labels_by_hand() -> None:
    labels = np.array([[0, 1, VOID, 3], [4, 5, 6, 7]], dtype=np.uint8)
    # 2 x 4 in a letterbox of 7 x 8: twice as large, one row above it and two below.
    network = Letterbox((7, 8)).place((2, 4)).labels_to_network(labels, (7, 8))
    assert network.dtype == np.uint8
    assert (network[[0, 5, 6]] == VOID).all()
    np.testing.assert_array_equal(network[1:5], labels.repeat(2, axis=0).repeat(2, axis=1))
    # Half as large, each of the network's pixels has its centre on the border of two: the second is taken.
    assert Stretch((1, 2)).place((2, 4)).labels_to_network(labels, (1, 2)).tolist() == [[5, 7]]
    restored = Stretch((1, 2)).place((2, 4)).labels_to_original(np.array([[8, 9]], dtype=np.uint8), (2, 4))
    assert restored.dtype == np.uint8
    assert restored.tolist() == [[8, 8, 9, 9]] * 2


@given(_resized(longest=160))
@example((Letterbox((9, 160)), (160, 1)))
@settings(max_examples=200, deadline=None)
def test_labels_come_back_from_the_network(resized: tuple[Resize, Size]) -> None:
    """The label map holds the row, or the column, of each pixel, so that it is seen where its label came from."""
    resize, original = resized
    placement, size = resize.place(original), network_size(resize, original)
    for axis in (0, 1):
        wanted = np.indices(original, dtype=np.uint8)[axis]
        network = placement.labels_to_network(wanted, size)
        assert network.shape == size
        found = placement.labels_to_original(network, original)
        assert found.shape == original
        away = np.abs(found.astype(int) - wanted).max()
        # Enlarged, each pixel gets its own label again; shrunk, one that is half a pixel of the network's away.
        scale = placement[axis]
        assert away <= (0 if scale >= 1 else 0.5 / scale + 0.5)


@given(_resized(longest=160))
@settings(max_examples=100, deadline=None)
def test_all_of_the_image_has_labels_and_all_around_it_void(resized: tuple[Resize, Size]) -> None:
    resize, original = resized
    placement, size = resize.place(original), network_size(resize, original)
    known = placement.labels_to_network(np.zeros(original, dtype=np.uint8), size) == 0
    left, top, right, bottom = placement.boxes_to_network(np.array([0.0, 0.0, *original[::-1]])).round().astype(int)
    inside = np.zeros(size, dtype=bool)
    inside[top:bottom, left:right] = True
    np.testing.assert_array_equal(known, inside)


@given(_resized(longest=120), st.integers(0, 1), st.data())
@settings(max_examples=150, deadline=None)
def test_labels_and_boxes_lie_where_the_image_shows_them(
    resized: tuple[Resize, Size], axis: int, data: st.DataObject
) -> None:
    """A bright strip across a dark image; its label and its box cover what is bright in the network's image."""
    resize, original = resized
    if isinstance(resize, KeepAspect):
        resize = KeepAspect(resize.shorter, resize.longer)  # antialias would blur narrow strips away
    start = data.draw(st.integers(0, original[axis] - 1))
    stop = data.draw(st.integers(start + 1, original[axis]))
    labels, box = np.zeros(original, dtype=np.uint8), [0, 0, *original[::-1]]
    labels[(slice(start, stop), slice(None)) if axis == 0 else (slice(None), slice(start, stop))] = 1
    box[1 - axis], box[3 - axis] = start, stop
    image = resize.apply(np.repeat(labels[..., None] * np.uint8(255), 3, axis=2))
    size, placement = (image.shape[0], image.shape[1]), resize.place(original)
    found = placement.labels_to_network(labels, size)
    # Halfway between two pixels is as near to the one as to the other.
    clear = (found != VOID) & (np.abs(image[..., 0] - 127.5) > 1)
    np.testing.assert_array_equal(found[clear] == 1, image[clear][:, 0] > 127.5)
    placed = placement.boxes_to_network(np.array([box], dtype=np.float64))[0]
    centres = np.indices(size)[axis] + 0.5
    in_box = (centres > placed[1 - axis]) & (centres < placed[3 - axis])
    np.testing.assert_array_equal(in_box[clear], image[clear][:, 0] > 127.5)
