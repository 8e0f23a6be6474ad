"""What a check of data has found, as a page that needs nothing else: pictures of each finding are in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from detseg.data.check import Finding, Report, Spot
from detseg.data.images import read_image
from detseg.report.html import Picture, picture_of, templates, write_page
from detseg.structures import Pixels

_SHOWN = 8
"""Pictures of a finding."""
_NAMED = 200
"""Places of a finding that are written out."""
_SIDE = 420
"""Pixels of a picture's longer side."""
_LEAST_CROP = 160
_LINE = (255, 92, 40)
_RIM = (16, 16, 16)


class _Section(NamedTuple):
    finding: Finding
    pictures: tuple[Picture, ...]
    places: tuple[str, ...]
    more: int


def write_check_page(path: Path, report: Report) -> None:
    """Writes the page, and its folder. OSError where it cannot be written."""
    sections = [_section(finding) for finding in report.findings]
    write_page(path, templates().get_template("check_page.html").render(report=report, sections=sections))


def _section(finding: Finding) -> _Section:
    pictures: list[Picture] = []
    for spot in finding.spots:
        if len(pictures) == _SHOWN:
            break
        if (picture := _picture(spot)) is not None:
            pictures.append(picture)
    places = tuple(spot.where for spot in finding.spots[:_NAMED])
    return _Section(finding, tuple(pictures), places, len(finding.spots) - len(places))


def _picture(spot: Spot) -> Picture | None:
    if spot.image is None:
        return None
    try:
        image = read_image(spot.image, size=spot.size)
    except (OSError, ValueError):
        return None
    image, boxes = _closer(image, [box.xyxy for box in spot.boxes])
    scale = min(1.0, _SIDE / max(image.shape[:2])) if not spot.boxes else _SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for thickness, colour in ((4, _RIM), (2, _LINE)):
        for box in boxes:
            left, top, right, bottom = (round(float(np.clip(value * scale, -9999, 9999))) for value in box)
            cv2.rectangle(small, (left, top), (right - 1, bottom - 1), colour, thickness)
    return picture_of(small, spot.where)


def _closer(
    image: Pixels, boxes: Sequence[tuple[float, float, float, float]]
) -> tuple[Pixels, list[tuple[float, float, float, float]]]:
    """The part of an image around small boxes, and the boxes there; all of it around large ones."""
    if not boxes:
        return image, []
    corners = np.array(boxes).clip([0, 0, 0, 0], np.tile(image.shape[1::-1], 2))
    left, top = corners[:, :2].min(axis=0)
    right, bottom = corners[:, 2:].max(axis=0)
    side = max(_LEAST_CROP, 4 * max(right - left, bottom - top))
    if side >= min(image.shape[:2]):
        return image, [*boxes]
    x, y = ((low + high - side) / 2 for low, high in ((left, right), (top, bottom)))
    x0, y0 = (int(np.clip(start, 0, end - side)) for start, end in ((x, image.shape[1]), (y, image.shape[0])))
    part = np.ascontiguousarray(image[y0 : y0 + int(side), x0 : x0 + int(side)])
    return part, [(a - x0, b - y0, c - x0, d - y0) for a, b, c, d in boxes]
