"""One image file to pixels, whatever its colour model, bit depth and orientation."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine import fileio
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from detseg.structures import Pixels, Size

_END_MARKS = {
    b"\xff\xd8\xff": b"\xff\xd9",
    b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82",
}
"""How a whole JPEG or PNG file ends, by how it begins."""

_OPENCV_STARTS = (*_END_MARKS, b"RIFF", b"BM", b"II*\x00", b"MM\x00*", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
"""JPEG, PNG, WebP, BMP, TIFF, PNM. Pillow reads the other kinds, of which it knows more; and OpenCV does not turn an
AVIF as its EXIF data say."""

_MOST_PIXELS = 2**30
"""Of one image: OpenCV's own limit."""

_RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
"""Raw files of cameras, which begin like a TIFF and show a thumbnail to who takes them for one."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")

_pillow_limit = threading.Lock()

if "OPENCV_LOG_LEVEL" not in os.environ:
    # What OpenCV cannot read is said here with the file's name; its own remarks come without.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: str | Path, *, size: Size | None = None, said_by: str = "its annotations say") -> Pixels:
    """An image file as uint8 [H, W, 3] RGB.

    Every kind that Pillow or OpenCV reads; of several pictures in a file the first. Grey becomes three equal channels,
    CMYK becomes RGB, 16 bits become 8, and an alpha channel is dropped (the colour below it stays). A path may be
    anything mmengine's file backends know, such as an HTTP address in a string.

    The EXIF orientation is applied, as viewers do. `size`, the (height, width) that annotations claim, decides where
    they were drawn on the picture as it is stored: if only the unturned image has this size, that one is given.
    `said_by` begins that part of the message about another size.

    Raises FileNotFoundError for a missing file, and ValueError for one that is empty, truncated, damaged, too large, no
    image, of a kind that is not read, or of neither size.
    """
    content = _read(path)
    try:
        if Path(path).suffix.lower() in _RAW_SUFFIXES:
            raise ValueError("it is a camera's raw file; develop it, and save it as JPEG or PNG")
        turned = _decode(content, turn=True)
        if size is None or turned.shape[:2] == size:
            return turned
        stored = _decode(content, turn=False)
    except ValueError as problem:
        raise ValueError(f"cannot read the image {path}: {problem}") from None
    if stored.shape[:2] == size:
        return stored
    raise ValueError(
        f"the image {path} is {turned.shape[0]} x {turned.shape[1]} (height x width), {said_by} "
        f"{size[0]} x {size[1]}: was it resized, or replaced by another? Labels would come to lie at the wrong places"
    )


def channels_first(image: Pixels | NDArray[np.float32]) -> torch.Tensor:
    """[H, W, 3] as a tensor [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_rgb(image: Image.Image) -> Pixels:
    """A Pillow image as uint8 [H, W, 3] RGB, turned as its EXIF data say; as `read_image` gives its file.

    ValueError for one that cannot be read.
    """
    try:
        with _decoding():
            return _rgb(ImageOps.exif_transpose(image), kind=image.format)
    except ValueError as problem:
        raise ValueError(f"cannot read the Pillow image: {problem}") from None


def image_size(path: Path) -> Size:
    """(height, width) of an image file as `read_image` gives it, from its header. Raises what `read_image` does."""
    try:
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        with _decoding(), _opened(path) as image:
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            # Pillow turns a TIFF's size itself.
            return (image.width, image.height) if is_turned and image.format != "TIFF" else (image.height, image.width)
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as problem:
        raise ValueError(f"cannot read the image {path}: {problem}") from None


class ImageKind(NamedTuple):
    """What an image file's header says of its pixels."""

    format: str
    """Pillow's name: "JPEG", "PNG" ..."""
    mode: str
    """Pillow's name: "RGB", "L" of grey, "P" of a palette, "I;16" ..."""
    is_turned: bool
    """Whether the EXIF orientation asks viewers to turn or mirror it."""


def image_kind(path: Path) -> ImageKind:
    """What kind of image a file is, from its header. Raises what `read_image` does."""
    try:
        with _decoding(), _opened(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            return ImageKind(image.format or "", image.mode, turned)
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as problem:
        raise ValueError(f"cannot read the image {path}: {problem}") from None


def glance(path: Path) -> Size | None:
    """(height, width) of an image as it is stored, or None where only a decoder can tell: a look at a file's first and
    last bytes that takes a fraction of reading it. None too for a JPEG or PNG that lacks its end.

    Raises FileNotFoundError, or ValueError where it is empty.
    """
    try:
        with path.open("rb") as file:
            start = file.read(24)
            if not start:
                raise ValueError(f"cannot read the image {path}: the file is empty")
            for mark, end in _END_MARKS.items():
                if start.startswith(mark):
                    file.seek(-len(end), os.SEEK_END)
                    whole = file.read() == end
                    return (_jpeg_size(file) if start.startswith(b"\xff") else _png_size(start)) if whole else None
    except FileNotFoundError:
        raise _missing(path) from None
    return None


def _png_size(start: bytes) -> Size:
    return int.from_bytes(start[20:24], "big"), int.from_bytes(start[16:20], "big")


def _jpeg_size(file: BinaryIO) -> Size | None:
    """From the frame's header: segment by segment, which may be long before it."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        kind, length = head[1], int.from_bytes(head[2:], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = file.read(5)
            return int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
        file.seek(length - 2, os.SEEK_CUR)
    return None


def load_pillow(path: Path, *, header_only: bool = False) -> Image.Image:
    """A file as a Pillow image with its pixels in memory, or without them if `header_only`.

    FileNotFoundError for a missing file, another OSError for one that the system does not give. Whatever else Pillow
    raises becomes a ValueError that says what is wrong with it, without its name.
    """
    if not path.stat().st_size:
        raise ValueError("the file is empty")
    with _decoding(), _opened(path) as image:
        if not header_only:
            image.load()
        return image


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever a decoder raises inside into a ValueError; they raise far more than they document. What the
    system says about a file stays as it is."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError("it is no image of a known kind") from None
    except MemoryError:
        raise ValueError("it needs more memory than there is; cut it into parts, or make it smaller") from None
    except OSError as problem:
        if problem.errno is not None:
            raise
        raise ValueError(f"it is truncated or damaged ({problem})") from None
    except _RefusedError as problem:
        raise ValueError(str(problem)) from None
    except Exception as problem:
        raise ValueError(f"it is truncated or damaged ({_first_line(problem)})") from None


class _RefusedError(ValueError):
    """A reason of ours: the image is not damaged."""


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """The image, opened; with this module's limit of pixels in place of Pillow's, which phones' cameras exceed."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        _check_size(image.height, image.width)
        yield image


def _check_size(height: int, width: int) -> None:
    if height * width > _MOST_PIXELS:
        raise _RefusedError(f"it has {height} x {width} pixels (height x width), and more than {_MOST_PIXELS:,} are "
                            "not read at once; cut it into parts, or make it smaller")


def _rgb(image: Image.Image, *, kind: str | None) -> Pixels:
    """Its pixels as uint8 [H, W, 3] RGB."""
    if image.mode == "F" or (image.mode == "I" and kind not in ("PNG", "PPM")):  # in these, I means 16 bits
        raise _RefusedError(_too_deep("floating-point numbers" if image.mode == "F" else "whole numbers", bits=32))
    if image.mode.startswith("I"):  # 16 bits; convert would clip them
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return np.array(image.convert("RGB"))


def _too_deep(what: str, *, bits: int) -> str:
    return (f"its pixels are {what} of {bits} bits, and nothing says which of them is white; save it anew with 8 or 16 "
            "bits a channel")


def _read(path: str | Path) -> bytes:
    try:
        content: bytes = fileio.get(path)
    except FileNotFoundError:
        raise _missing(path) from None
    return content


def _missing(path: str | Path) -> FileNotFoundError:
    folder = Path(path).absolute().parent
    why = "the folder has no such file" if folder.is_dir() else "the folder does not exist"
    return FileNotFoundError(f"no image {Path(path).name} in {folder}: {why}")


def _decode(content: bytes, *, turn: bool) -> Pixels:
    if not content:
        raise ValueError("the file is empty")
    if not content.startswith(_OPENCV_STARTS):
        return _decode_by_pillow(content, turn=turn)
    if content.startswith(b"\x89PNG") and zlib.crc32(content[12:29]).to_bytes(4, "big") != content[29:33]:
        raise ValueError("its header is damaged")  # OpenCV would believe the size in it, and take minutes over it
    # OpenCV before 5 fills what a truncated JPEG lacks with grey and says nothing. Bytes after the end mark are legal
    # (cameras append their own), so a file without the mark at its very end is only suspect: Pillow decides.
    if any(content.startswith(start) and not content.endswith(end) for start, end in _END_MARKS.items()):
        _decode_strictly(content)
    bgr = _decode_by_opencv(content, flag="color" if turn else "color_ignore_orientation")
    if bgr is None and content.startswith((*_END_MARKS,)):
        _decode_strictly(content)
        raise ValueError("it is damaged; save it anew")  # Pillow reads what is left of a PNG without its end
    if bgr is None:
        return _decode_by_pillow(content, turn=turn)
    rgb: Pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    assert rgb.dtype == np.uint8
    return rgb


def _decode_by_opencv(content: bytes, *, flag: str) -> Pixels | None:
    """[H, W, 3] BGR; None for what it cannot decode."""
    try:
        # mmcv reorders the channels for one of the two flags only, and fails on None when it does: asked for BGR, it
        # does neither.
        bgr: Pixels | None = mmcv.imfrombytes(content, flag=flag, channel_order="bgr", backend="cv2")
    except Exception:  # too large for it, or damaged in a way that its decoders have not thought of
        return None
    return bgr


def _decode_by_pillow(content: bytes, *, turn: bool) -> Pixels:
    """What OpenCV does not decode, or a ValueError that says why nobody does."""
    if reason := _not_read(content):
        raise ValueError(reason)
    try:
        with _decoding(), _opened(io.BytesIO(content)) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image) if turn else image, kind=image.format)
    except ValueError:
        if reason := _deep_pixels(content):
            raise ValueError(reason) from None
        raise


def _decode_strictly(content: bytes) -> None:
    """Raises ValueError that says what is wrong with an image; does nothing where Pillow finds no fault."""
    with _decoding(), _opened(io.BytesIO(content)) as image:
        image.load()


def _not_read(content: bytes) -> str:
    """What a file is that neither library decodes, and the way out."""
    if content[4:8] == b"ftyp" and _HEIF_BRANDS & {content[i : i + 4] for i in (8, *range(16, 64, 4))}:
        return _by_plugin("it is a HEIC picture, as iPhones take them", "pillow-heif", module="pillow_heif",
                          register="register_heif_opener")
    if content.startswith(_JXL_STARTS):
        return _by_plugin("it is a JPEG XL picture", "pillow-jxl-plugin", module="pillow_jxl")
    return ""


def _by_plugin(what: str, package: str, *, module: str, register: str = "") -> str:
    """Nothing where Pillow's plugin for it is installed, and it then knows the kind; otherwise the way out."""
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        return f"{what}; save it as JPEG or PNG, or `pip install {package}`, which is then used"
    if register:
        getattr(plugin, register)()
    return ""


def _deep_pixels(content: bytes) -> str:
    """Why a file of more bits than images have is not read; nothing where that is not the reason."""
    try:
        stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return ""
    if stored is None or stored.dtype in (np.uint8, np.uint16):
        return ""
    what = "floating-point numbers" if np.issubdtype(stored.dtype, np.floating) else "whole numbers"
    return _too_deep(what, bits=8 * stored.dtype.itemsize)
