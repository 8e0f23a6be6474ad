"""Reading image files and Pillow images: every colour model, depth, orientation, and every way to be broken."""

from __future__ import annotations

import functools
import http.server
import io
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detseg.data.images import image_size, read_image, to_rgb
from detseg.data.label_index import label_image_size, read_label_image
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
    with pytest.raises(ValueError, match=r"image\.jpg: it is no image of a known kind"):
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


def test_a_png_of_which_only_the_end_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image\.png: it is damaged; save it anew"):
        read_image(written(tmp_path, encoded(Image.fromarray(picture()), "PNG")[:-14], "image.png"))


KINDS: dict[str, dict[str, Any]] = {
    "PNG": {}, "TIFF": {}, "BMP": {}, "PPM": {}, "WEBP": {"lossless": True}, "GIF": {}, "TGA": {}, "PCX": {}, "SGI": {},
    "JPEG2000": {"irreversible": False}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}, "MPO": {"quality": 98},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_pillows_pixels(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(picture()).quantize(64) if kind == "GIF" else Image.fromarray(picture())
    content = encoded(image, kind, **KINDS[kind])
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    read = read_image(written(tmp_path, content, "image"))
    assert read.flags["C_CONTIGUOUS"]
    assert distance(read, expected) <= (2 if kind == "MPO" else 0)
    assert distance(read, picture()) <= 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_every_kind_that_says_how_it_was_held_is_turned(tmp_path: Path, kind: str) -> None:
    content = encoded(Image.fromarray(picture()), kind, exif=turned(6))
    path = written(tmp_path, content, "image")
    expected = np.rot90(picture(), -1)
    assert read_image(path).shape == (56, 40, 3)
    assert np.abs(read_image(path).astype(int) - expected).mean() < 4
    assert image_size(path) == (56, 40)


@pytest.mark.parametrize("kind", ["PNG", "AVIF"])
def test_of_every_kind_the_annotated_size_says_whether_to_turn(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, encoded(Image.fromarray(picture()), kind, exif=turned(6)), "image")
    assert np.abs(read_image(path, size=(40, 56)).astype(int) - picture()).mean() < 4


def test_the_first_picture_of_several_is_read(tmp_path: Path) -> None:
    for kind in ("TIFF", "GIF", "MPO"):
        grey = Image.new("RGB", (56, 40), (90, 90, 90))
        content = encoded(grey, kind, save_all=True, append_images=[Image.fromarray(picture())])
        assert distance(read_image(written(tmp_path, content, "image")), np.full((40, 56, 3), 90, np.uint8)) <= 2


def test_the_size_is_that_of_the_picture(tmp_path: Path) -> None:
    assert image_size(written(tmp_path, jpeg())) == (40, 56)
    assert image_size(written(tmp_path, encoded(Image.fromarray(picture()), "TIFF", exif=turned(6)))) == (56, 40)
    with pytest.raises(ValueError, match=r"cannot read the image .*image\.jpg: it is no image of a known kind"):
        image_size(written(tmp_path, b"text"))
    with pytest.raises(ValueError, match=r"image\.jpg: the file is empty"):
        image_size(written(tmp_path, b""))
    with pytest.raises(FileNotFoundError, match=r"no image gone\.jpg in .*: the folder has no such file"):
        image_size(tmp_path / "gone.jpg")


@pytest.mark.parametrize(("values", "what"), [
    (picture() / np.float32(255), "floating-point numbers of 32 bits"),
    (picture()[..., 0] / np.float32(255), "floating-point numbers of 32 bits"),
    (picture().astype(np.float64), "floating-point numbers of 64 bits"),
    (picture()[..., 0].astype(np.int32), "whole numbers of 32 bits"),
])
def test_pixels_of_more_bits_than_images_have_are_refused_with_the_reason(
    tmp_path: Path, values: NDArray[Any], what: str
) -> None:
    path = tmp_path / "image.tif"
    assert cv2.imwrite(str(path), values)
    with pytest.raises(ValueError, match=rf"image\.tif: its pixels are {what}, and nothing says which of them is "
                       "white; save it anew with 8 or 16 bits a channel"):
        read_image(path)


def test_a_heic_picture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    content = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200)
    with pytest.raises(ValueError, match=r"image\.heic: it is a HEIC picture, as iPhones take them; save it as JPEG or "
                       r"PNG, or `pip install pillow-heif`, which is then used"):
        read_image(written(tmp_path, content, "image.heic"))


def test_a_jpeg_xl_picture_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it is a JPEG XL picture; .*pip install pillow-jxl-plugin"):
        read_image(written(tmp_path, b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "image.jxl"))


def test_an_installed_plugin_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pillow_heif.py").write_text("called = []\ndef register_heif_opener():\n    called.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="it is no image of a known kind"):  # this plugin reads nothing
        read_image(written(tmp_path, b"\0\0\0\x18ftypheic" + bytes(200), "image.heic"))
    assert sys.modules.pop("pillow_heif").called == [1]


def test_a_raw_file_of_a_camera_is_no_image_though_it_has_a_thumbnail(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image\.NEF: it is a camera's raw file; develop it"):
        read_image(written(tmp_path, encoded(Image.fromarray(picture()), "TIFF"), "image.NEF"))


def large_png(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels of one bit."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\1\0\0\0\0"
    rows = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_that_is_too_large_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = written(tmp_path, large_png(40000, 28000), "image.png")
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"image\.png: it has 28000 x 40000 pixels \(height x width\), and more "
                           r"than 1,073,741,824 are not read at once; cut it into parts, or make it smaller"):
            read(path)


def test_an_image_beyond_pillows_limit_is_read_as_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phones take 200 million pixels. A JPEG with bytes after its end, and one of Pillow's kinds, go through Pillow."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(written(tmp_path, jpeg() + b"notes")).shape == (40, 56, 3)
    assert read_image(written(tmp_path, encoded(Image.fromarray(picture()), "PCX"))).shape == (40, 56, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_png_with_a_damaged_header_is_not_believed(tmp_path: Path) -> None:
    content = bytearray(encoded(Image.fromarray(picture()), "PNG"))
    content[17] = 99
    with pytest.raises(ValueError, match=r"image\.png: its header is damaged"):
        read_image(written(tmp_path, bytes(content), "image.png"))


@pytest.mark.parametrize("kind", [*KINDS, "JPEG"])
def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, kind: str) -> None:
    """Cut, changed and filled with zeros in places: read, or a ValueError; in images and label maps alike."""
    rng = np.random.default_rng(0)
    whole = encoded(Image.fromarray(picture()).quantize(64) if kind == "GIF" else Image.fromarray(picture()), kind)
    refused = 0
    for attempt in range(24):
        damaged = np.frombuffer(whole, np.uint8).copy()
        first = int(rng.integers(0, len(whole) if attempt % 2 else min(80, len(whole))))
        if attempt % 3 == 0:
            damaged = damaged[: max(1, first)]
        else:
            damaged[first : first + 4 * (attempt % 3)] = 0 if attempt % 3 == 1 else rng.integers(0, 256)
        path = written(tmp_path, damaged.tobytes(), "damaged")
        for read in (read_image, read_label_image, label_image_size, image_size):
            problem = ""
            try:
                read(path)
            except ValueError as error:
                problem = str(error)
            assert not problem or str(path) in problem
            refused += bool(problem) and read is read_image
    assert refused >= 8, "that many are cut"


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


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_a_pillow_image_of_32_bits_is_refused_with_the_reason(mode: str, dtype: type) -> None:
    image = Image.fromarray(picture()[..., 0].astype(dtype))
    assert image.mode == mode
    with pytest.raises(ValueError, match=r"cannot read the Pillow image: its pixels are .* numbers of 32 bits"):
        to_rgb(image)


def test_a_pillow_image_of_premultiplied_alpha_is_read() -> None:
    image = Image.fromarray(picture()).convert("RGBA").convert("RGBa")
    np.testing.assert_array_equal(to_rgb(image), picture())


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
