"""One image file to pixels, whatever its colour model, bit depth and orientation."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine import fileio
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from detseg.structures import Pixels, Size

_END_MARKS = {
    b"\xff\xd8\xff": b"\xff\xd9",
    b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82",
}
"""How a whole JPEG or PNG file ends, by how it begins."""


def read_image(path: str | Path, *, size: Size | None = None, said_by: str = "its annotations say") -> Pixels:
    """An image file as uint8 [H, W, 3] RGB.

    Grey becomes three equal channels, CMYK becomes RGB, 16 bits become 8, and an alpha channel is dropped (the colour
    below it stays). A path may be anything mmengine's file backends know, such as an HTTP address in a string.

    The EXIF orientation is applied, as viewers do. `size`, the (height, width) that annotations claim, decides where
    they were drawn on the picture as it is stored: if only the unturned image has this size, that one is given.
    `said_by` begins that part of the message about another size.

    Raises FileNotFoundError for a missing file, and ValueError for one that is empty, truncated, no image, or of
    neither size.
    """
    content = _read(path)
    try:
        turned = _decode(content, flag="color")
        if size is None or turned.shape[:2] == size:
            return turned
        stored = _decode(content, flag="color_ignore_orientation")
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
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):  # 16 bits; convert would clip them
            return np.repeat((np.asarray(turned) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(turned.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as problem:
        raise ValueError(f"cannot read the Pillow image: {problem}") from None


def _read(path: str | Path) -> bytes:
    try:
        content: bytes = fileio.get(path)
    except FileNotFoundError:
        folder = Path(path).absolute().parent
        why = "the folder has no such file" if folder.is_dir() else "the folder does not exist"
        raise FileNotFoundError(f"no image {Path(path).name} in {folder}: {why}") from None
    return content


def _decode(content: bytes, *, flag: str) -> Pixels:
    if not content:
        raise ValueError("the file is empty")
    # OpenCV before 5 fills what a truncated JPEG lacks with grey and says nothing. Bytes after the end mark are legal
    # (cameras append their own), so a file without the mark at its very end is only suspect: Pillow decides.
    if any(content.startswith(start) and not content.endswith(end) for start, end in _END_MARKS.items()):
        _decode_strictly(content)
    # mmcv reorders the channels for one of the two flags only, and fails on None when it does: asked for BGR, it does
    # neither.
    bgr = mmcv.imfrombytes(content, flag=flag, channel_order="bgr", backend="cv2")
    if bgr is None:
        _decode_strictly(content)
        raise ValueError("it is damaged, or of a kind that OpenCV cannot decode; save it anew as JPEG or PNG")
    rgb: Pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    assert rgb.dtype == np.uint8
    return rgb


def _decode_strictly(content: bytes) -> None:
    """Raises ValueError that says what is wrong with an image; does nothing where Pillow finds no fault."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UnidentifiedImageError:
        raise ValueError(f"its {len(content)} bytes are no image of a known kind") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"it is truncated or damaged ({problem})") from None
