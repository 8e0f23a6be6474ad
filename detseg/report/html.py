"""What pages have in common: templates that share one look, and pictures that are a part of the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2

from detseg.atomic import atomic_write
from detseg.structures import Pixels

_QUALITY = 80


class Picture(NamedTuple):
    """A JPEG to stand in a page."""

    data: str
    """In base64."""
    width: int
    height: int
    where: str
    """What it shows."""


def templates() -> jinja2.Environment:
    """The templates of this room; what is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True)


def picture_of(image: Pixels, where: str, *, side: int | None = None) -> Picture:
    """An RGB image as it is, or with a longer side of at most so many pixels."""
    if side is not None and (scale := side / max(image.shape[:2])) < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert encoded
    height, width = image.shape[:2]
    return Picture(base64.b64encode(content.tobytes()).decode("ascii"), width, height, where)


def write_page(path: Path, text: str) -> None:
    """Writes a page, and its folder, atomically. OSError where it cannot be written."""
    with atomic_write(path, failure="the page was not written") as unfinished:
        unfinished.write_text(text, "utf-8", "surrogateescape")
