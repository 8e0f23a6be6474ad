"""Reading image files and Pillow images: every colour model, depth, orientation, and every way to be broken."""

from __future__ import annotations

import functools
import http.server
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detseg.data.images import read_image, to_rgb
from detseg.structures import Pixels


def picture(height: int = 40, width: int = 56) -> Pixels:
    """A smooth colourful picture, so that JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 255 * (1 - x / width)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg(quality: int = 95, **options: Any) -> bytes:
    return encoded(Image.fromarray(picture()), "JPEG", quality=quality, **options)


def written(folder: Path, content: bytes, name: str = "image.jpg") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_rgb_png_comes_exactly_and_as_rgb(tmp_path: Path) -> None:
    image = read_image(written(tmp_path, encoded(Image.fromarray(picture()), "PNG")))
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image, picture())


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.fromarray(picture()), "PNG"))
    np.testing.assert_array_equal(read_image(str(path)), picture())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, kind: str) -> None:
    grey = Image.fromarray(picture()).convert("L")
    image = read_image(written(tmp_path, encoded(grey, kind)))
    assert image.shape == (40, 56, 3)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert distance(image[..., 1], np.asarray(grey)) <= 6


@pytest.mark.parametrize("is_ycck", [False, True])
def test_cmyk_jpeg_has_pillows_colours(tmp_path: Path, is_ycck: bool) -> None:
    content = bytearray(encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=98))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2 if is_ycck else 0  # the same numbers, declared to be YCCK
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    image = read_image(written(tmp_path, bytes(content)))
    assert distance(image, expected) <= 2
    assert is_ycck or distance(image, picture()) <= 12


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    wide = picture().astype(np.uint16) * 257
    _, rgb = cv2.imencode(".png", wide[..., ::-1])
    assert distance(read_image(written(tmp_path, rgb.tobytes())), picture()) <= 1
    _, grey = cv2.imencode(".png", wide[..., 0])
    assert distance(read_image(written(tmp_path, grey.tobytes()))[..., 2], picture()[..., 0]) <= 1


def test_alpha_is_dropped_and_the_colour_below_kept(tmp_path: Path) -> None:
    see_through = Image.fromarray(picture())
    see_through.putalpha(0)
    np.testing.assert_array_equal(read_image(written(tmp_path, encoded(see_through, "PNG"))), picture())


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).quantize(32)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(written(tmp_path, encoded(image, "PNG"))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    content = encoded(Image.fromarray(picture()), "PNG", exif=turned(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(read_image(written(tmp_path, content)), expected)


def test_the_annotated_size_says_whether_to_turn(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.fromarray(picture(40, 56)), "PNG", exif=turned(6)))
    np.testing.assert_array_equal(read_image(path, size=(56, 40)), np.rot90(picture(), -1))
    np.testing.assert_array_equal(read_image(path, size=(40, 56)), picture())


def test_an_orientation_that_keeps_the_size_is_applied(tmp_path: Path) -> None:
    path = written(tmp_path, encoded(Image.fromarray(picture(40, 56)), "PNG", exif=turned(3)))
    np.testing.assert_array_equal(read_image(path, size=(40, 56)), np.rot90(picture(), 2))


def test_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, jpeg())
    with pytest.raises(ValueError, match=r"image\.jpg is 40 x 56 \(height x width\), its annotations say 56 x 40"):
        read_image(path, size=(56, 40))


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"no image gone\.jpg in {tmp_path}: the folder has no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"no image gone\.jpg in .*nowhere: the folder does not exist"):
        read_image(tmp_path / "nowhere" / "gone.jpg")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the image .*image\.jpg: the file is empty"):
        read_image(written(tmp_path, b""))


def test_a_text_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image\.jpg: its 21 bytes are no image of a known kind"):
        read_image(written(tmp_path, b"<html>not found</html"))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG"])
def test_a_truncated_file_is_an_error(tmp_path: Path, kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    content = encoded(noise, "PNG") if kind == "PNG" else encoded(noise, "JPEG", progressive=kind == "progressive")
    with pytest.raises(ValueError, match=r"image\.jpg: it is (truncated or )?damaged"):
        read_image(written(tmp_path, content[: int(len(content) * share)]))


def test_a_truncated_jpeg_is_an_error_where_opencv_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_opencv_4(content: bytes, **options: str) -> Pixels:
        return np.full((40, 56, 3), 128, np.uint8)

    monkeypatch.setattr(mmcv, "imfrombytes", as_opencv_4)
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_image(written(tmp_path, jpeg()[:-40]))


def test_bytes_after_the_end_of_a_jpeg_are_legal(tmp_path: Path) -> None:
    expected = read_image(written(tmp_path, jpeg()))
    np.testing.assert_array_equal(read_image(written(tmp_path, jpeg() + b"a camera's own notes")), expected)


def test_a_kind_that_opencv_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of a kind that OpenCV cannot decode; save it anew as JPEG or PNG"):
        read_image(written(tmp_path, encoded(Image.fromarray(picture()), "PCX"), "image.pcx"))


def test_an_address_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    written(tmp_path, encoded(Image.fromarray(picture()), "PNG"), "image.png")
    monkeypatch.setenv("no_proxy", "*")
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        image = read_image(f"http://127.0.0.1:{server.server_port}/image.png")
        server.shutdown()
        thread.join()
    np.testing.assert_array_equal(image, picture())


# ---------------------------------------------------------------------------------------------- Pillow images


def see_through() -> Image.Image:
    """With every degree of transparency, full colour also where nothing is seen."""
    image = Image.fromarray(picture())
    image.putalpha(Image.fromarray(picture()[..., 0]))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(picture()[..., 0].astype(np.uint16) * 256 + picture()[..., 1])


MODES: dict[str, Callable[[], Image.Image]] = {
    "RGB": lambda: Image.fromarray(picture()),
    "L": lambda: Image.fromarray(picture()).convert("L"),
    "P": lambda: Image.fromarray(picture()).quantize(32),
    "RGBA": see_through,
    "CMYK": lambda: Image.fromarray(picture()).convert("CMYK"),
    "I;16": sixteen_bits,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 5])
def test_a_pillow_image_is_read_as_its_file(tmp_path: Path, mode: str, orientation: int | None) -> None:
    image = MODES[mode]()
    assert image.mode == mode
    if orientation is not None:
        image.getexif()[0x0112] = orientation
    # PNG has no CMYK. Compressed, because Pillow 13 garbles raw CMYK files that are turned.
    options = {"kind": "TIFF", "compression": "tiff_lzw"} if mode == "CMYK" else {"kind": "PNG"}
    path = written(tmp_path, encoded(image, **options, exif=image.getexif()), f"image.{options['kind'].lower()}")
    expected = read_image(path)
    assert expected.shape == ((56, 40, 3) if orientation in (6, 8, 5) else (40, 56, 3))
    with Image.open(path) as opened:
        for pixels in (to_rgb(image), to_rgb(opened)):
            assert pixels.dtype == np.uint8
            assert pixels.flags["C_CONTIGUOUS"]
            np.testing.assert_array_equal(pixels, expected)


def test_a_pillow_image_is_left_as_it_is() -> None:
    image = Image.fromarray(picture())
    image.getexif()[0x0112] = 6
    pixels = to_rgb(image)
    assert pixels.flags.writeable
    pixels[:] = 0
    np.testing.assert_array_equal(np.asarray(image), picture())
    assert image.getexif()[0x0112] == 6


def test_a_pillow_image_of_a_damaged_file_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot read the Pillow image: .*truncated"):
        to_rgb(Image.open(io.BytesIO(jpeg()[:-40])))


@pytest.mark.real
def test_coco_images_are_pillows(shared: Path) -> None:
    paths = sorted((shared / "data/coco_mini/val2017").glob("*.jpg"))
    assert len(paths) == 84
    for path in paths[::4]:
        assert distance(read_image(path), np.asarray(Image.open(path).convert("RGB"))) <= 2


@pytest.mark.real
def test_a_cut_coco_image_is_an_error(shared: Path, tmp_path: Path) -> None:
    path = sorted((shared / "data/coco_mini/val2017").glob("*.jpg"))[0]
    content = path.read_bytes()
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_image(written(tmp_path, content[: len(content) // 2]))
