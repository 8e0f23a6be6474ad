"""Pictures for people: boxes, labels or classes on an image, many images on a sheet; files that are complete or not
there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detseg.atomic import atomic_write
from detseg.structures import (
    VOID,
    BoxTargets,
    Classes,
    ClassTargets,
    ImageClasses,
    ImageDetections,
    ImageLabels,
    LabelPixels,
    LabelTargets,
    Pixels,
    Size,
    Threshold,
)

Colour: TypeAlias = tuple[int, int, int]
"""RGB, 0..255."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK: Colour = (16, 16, 16)
_LIGHT: Colour = (255, 255, 255)
_LEAST_WIDTH = 160
"""Pixels; a narrower picture shows nothing."""
_GAP = 8
"""Pixels between and around the images of a sheet."""


class _Rectangle(NamedTuple):
    """The pixels from (left, top) to (right, bottom), these included."""

    left: int
    top: int
    right: int
    bottom: int


class _Box(NamedTuple):
    """A box and what is written on it."""

    place: _Rectangle
    words: str
    colour: Colour
    dashed: bool = False


class _Text(NamedTuple):
    """Words with the size in which they are written, and the pixels that they take with a margin."""

    words: str
    scale: float
    thickness: int
    margin: int
    width: int
    height: int
    descent: int
    """Pixels below the base line, margin included."""


@singledispatch
def draw(prediction: Any, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    """A copy of `image` with the prediction on it; of predictions with scores, those of at least `threshold`. The
    targets of one image are drawn likewise.

    A task of your own registers its predictions: `@draw.register`.
    """
    raise TypeError(f"nobody knows how to draw a {type(prediction).__name__}")


@draw.register
def _(prediction: ImageDetections, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    return draw_boxes(image, prediction, classes, threshold=threshold)


@draw.register
def _(prediction: ImageLabels, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    return draw_labels(image, prediction.labels, classes)


@draw.register
def _(prediction: BoxTargets, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    return draw_true_boxes(image, prediction, classes)


@draw.register
def _(prediction: LabelTargets, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    return draw_labels(image, prediction.labels.numpy(), classes)


@draw.register
def _(prediction: ImageClasses, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    return draw_classes(image, prediction, classes)


@draw.register
def _(prediction: ClassTargets, image: Pixels, classes: Classes, *, threshold: Threshold) -> Pixels:
    label = int(prediction.labels)
    return _captioned(image, [(classes.names[label], classes.colours[label])] if label >= 0 else [])


def draw_boxes(image: Pixels, prediction: ImageDetections, classes: Classes, *, threshold: Threshold) -> Pixels:
    """A copy of `image` with every box of at least `threshold`, its class and its score.

    Lines and letters grow with the image. The surest boxes and labels lie on top; a label goes around its box where
    it hides least of surer ones, and never leaves the image.
    """
    places = _pixels(prediction.boxes, (image.shape[0], image.shape[1]))
    surest_first = prediction.scores.argsort(descending=True, stable=True).tolist()
    sure = prediction.shown(threshold).tolist()
    shown = [row for row in surest_first if sure[row]]
    labels = prediction.labels.tolist()
    return _drawn(image, [
        _Box(places[row], f"{classes.names[labels[row]]} {float(prediction.scores[row]):.2f}",
             classes.colours[labels[row]]) for row in shown])


def draw_true_boxes(image: Pixels, targets: BoxTargets, classes: Classes) -> Pixels:
    """A copy of `image` with the true boxes of one image and their classes, the smallest on top. Crowds have dashed
    lines and the word, and lie below."""
    places = _pixels(targets.boxes, (image.shape[0], image.shape[1]))
    areas = (targets.boxes[:, 2:] - targets.boxes[:, :2]).prod(dim=1).tolist()
    labels, crowd = targets.labels.tolist(), targets.crowd.tolist()
    order = sorted(range(len(places)), key=lambda row: (crowd[row], areas[row]))
    return _drawn(image, [
        _Box(places[row], f"{classes.names[labels[row]]}{', crowd' if crowd[row] else ''}",
             classes.colours[labels[row]], crowd[row]) for row in order])


def draw_against_truth(
    image: Pixels, prediction: ImageDetections, targets: BoxTargets, *, classes: Classes
) -> Pixels:
    """A copy of a small `image` with what was found and, dashed and below, what is true."""
    size = (image.shape[0], image.shape[1])
    found = [_Box(place, f"{classes.names[label]} {score:.2f}", classes.colours[label]) for place, label, score in zip(
        _pixels(prediction.boxes, size), prediction.labels.tolist(), prediction.scores.tolist(), strict=True)]
    true = [_Box(place, f"true {classes.names[label]}", classes.colours[label], dashed=True) for place, label in zip(
        _pixels(targets.boxes, size), targets.labels.tolist(), strict=True)]
    return _drawn(image, [*found, *true], least_line=2)


def _drawn(image: Pixels, boxes: Sequence[_Box], *, least_line: int = 1) -> Pixels:
    """A copy of the image with the boxes, the first on top."""
    picture = np.ascontiguousarray(image).copy()
    size = (picture.shape[0], picture.shape[1])
    line = max(least_line, round((size[0] * size[1]) ** 0.5 / 280))
    for box in reversed(boxes):
        # The dark rim keeps the line visible where the background has its colour.
        below = picture.copy() if box.dashed else picture
        for tone, thickness in ((_DARK, line + 2 * ((line + 2) // 3)), (box.colour, line)):
            cv2.rectangle(picture, box.place[:2], box.place[2:], tone, thickness)
        if box.dashed:
            gaps = np.indices(size).sum(axis=0) // (4 * line) % 2 == 1
            picture[gaps] = below[gaps]

    texts: list[tuple[_Text, _Rectangle]] = []
    visible = [box.place for box in boxes]
    for box in boxes:
        text = _measure(box.words, size)
        texts.append((text, _place(text, box.place, size=size, visible=visible)))
        visible.append(texts[-1][1])
    for box, (text, place) in zip(reversed(boxes), reversed(texts), strict=True):
        _write(picture, text, place=place, colour=box.colour)
    return picture


def draw_labels(image: Pixels, labels: LabelPixels, classes: Classes) -> Pixels:
    """A copy of `image` under the colours of its classes with thin lines between them, and the names of the classes.

    VOID stays as it is. The names stand in lines, the largest class first, at the lower or the upper edge, wherever
    they hide fewer borders; where they would take more than a third of the image, the last tells how many are left out.
    """
    size = (image.shape[0], image.shape[1])
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(classes)] = classes.colours
    picture: Pixels = cv2.addWeighted(np.ascontiguousarray(image), 0.45, colours[labels], 0.55, 0)
    void = labels == VOID
    picture[void] = image[void]

    line = max(1, round((size[0] * size[1]) ** 0.5 / 560))
    thickest, thinnest = (operation(labels, np.ones((line + 1, line + 1), dtype=np.uint8))
                          for operation in (cv2.dilate, cv2.erode))
    borders = thickest != thinnest
    picture[borders] = _DARK

    counts = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    order = np.argsort(-counts, kind="stable")
    shown = order[counts[order] > 0].tolist()
    texts, places = _legend([classes.names[k] for k in shown], size)
    if places:
        height = places[-1].bottom + 1
        below = size[0] - height if borders[-height:].sum() <= borders[:height].sum() else 0
        for text, place, k in zip(texts, places, shown, strict=False):
            place = place._replace(top=place.top + below, bottom=place.bottom + below)
            whole = text.words == classes.names[k]
            _write(picture, text, place=place, colour=classes.colours[k] if whole else _LIGHT)
    return picture


def draw_classes(image: Pixels, prediction: ImageClasses, classes: Classes) -> Pixels:
    """A copy of `image` with its best classes and their scores, one below the other, as many as a third of it holds."""
    rows = zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
    return _captioned(image, [(f"{classes.names[label]} {score:.2f}", classes.colours[label]) for label, score in rows])


def _captioned(image: Pixels, lines: Sequence[tuple[str, Colour]]) -> Pixels:
    """A copy of the image with lines of words at the upper left; those beyond a third of it are left out, but for the
    first."""
    picture = np.ascontiguousarray(image).copy()
    size, top = (picture.shape[0], picture.shape[1]), 0
    for number, (words, colour) in enumerate(lines):
        text = _measure(words, size)
        if number and top + text.height > size[0] / 3:
            break
        _write(picture, text, place=_Rectangle(0, top, text.width - 1, top + text.height - 1), colour=colour)
        top += text.height
    return picture


def contact_sheet(images: Sequence[Pixels], *, columns: int, width: int = 1600) -> Pixels:
    """The images in reading order, `columns` to a row, as one picture of `width` pixels.

    A row has one height and fills the width, so that images of any aspect ratio stand together without distortion;
    one beyond 1:2 or 2:1 is centred in a frame of that ratio. A last row that is not full is no higher than the row
    above it. No images, or columns narrower than 16 pixels, are a ValueError.
    """
    if not images:
        raise ValueError("a sheet needs at least one image, got none")
    columns = min(columns, len(images))
    most = (width - _GAP) // (16 + _GAP)
    if not 1 <= columns <= most:
        raise ValueError(f"a sheet {width} pixels wide has 1 to {most} columns, not {columns}; "
                         "ask for other columns or another width")
    strips = [np.full((_GAP, width, 3), _LIGHT, dtype=np.uint8)]
    for start in range(0, len(images), columns):
        row = images[start:start + columns]
        ratios = [min(max(image.shape[1] / image.shape[0], 0.5), 2.0) for image in row]
        height = (width - _GAP * (len(row) + 1)) / sum(ratios)
        if len(row) < columns:
            height = min(height, strips[-1].shape[0] - _GAP)
        strip = np.full((round(height) + _GAP, width, 3), _LIGHT, dtype=np.uint8)
        for i, image in enumerate(row):
            left = round(sum(ratios[:i]) * height) + _GAP * (i + 1)
            right = round(sum(ratios[:i + 1]) * height) + _GAP * (i + 1)
            _centre(image, strip[:round(height), left:right])
        strips.append(strip)
    return np.concatenate(strips)


def write_picture(path: Path, image: Pixels) -> None:
    """Writes an RGB image in the format that the suffix of `path` names (.png, .jpg, ...), making its folder.

    On failure (an OSError that names `path`) whatever was there before stays. A suffix without a format is a
    ValueError.
    """
    if not path.suffix or not cv2.haveImageWriter(path.name):
        raise ValueError(f"no picture format has the suffix {path.suffix!r} of {path}; name it .png or .jpg")
    _write_encoded(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_small_picture(path: Path, image: Pixels, *, width: int, most_bytes: int) -> None:
    """Writes an RGB image as a JPEG for a page: of this width at most, in the best quality that needs no more bytes,
    and narrower where none does. Failures as in `write_picture`; ValueError where nothing is small enough.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        raise ValueError(f"a small picture is a JPEG; name {path} .jpg")
    while width >= _LEAST_WIDTH:
        scale = min(1.0, width / image.shape[1])
        size = (round(image.shape[1] * scale), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        for quality in range(90, 54, -5):
            encoded, content = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
            assert encoded
            if len(content) <= most_bytes:
                with atomic_write(path, failure="the picture was not written") as unfinished:
                    unfinished.write_bytes(content.tobytes())
                return
        width = round(width * 0.9)
    raise ValueError(f"{most_bytes} bytes are not enough for a picture {_LEAST_WIDTH} pixels wide; allow more")


def write_labels(path: Path, labels: LabelPixels) -> None:
    """Writes uint8 values [H, W] unchanged as a PNG of one channel; failures as in `write_picture`."""
    assert path.suffix == ".png", f"{path}: other formats change values"
    _write_encoded(path, labels)


def _write_encoded(path: Path, values: NDArray[np.uint8]) -> None:
    """uint8 [H, W] or BGR [H, W, 3] to a file of the format that its suffix names."""
    encoded, content = cv2.imencode(path.suffix, values)
    assert encoded, f"OpenCV could not encode {values.shape} as {path.suffix}"
    with atomic_write(path, failure="the picture was not written") as unfinished:
        unfinished.write_bytes(content.tobytes())


def _pixels(boxes_xyxy: Tensor, size: Size) -> list[_Rectangle]:
    """The boxes [R, 4] to whole pixels, all of them inside the image."""
    last = np.array([size[1] - 1, size[0] - 1] * 2)
    boxes = boxes_xyxy.detach().float().cpu().numpy().clip(0, last).round().astype(int)
    return [_Rectangle(*box) for box in boxes.tolist()]


def _measure(words: str, size: Size) -> _Text:
    """The words as large as suits an image of `size`, and smaller if they would not fit into it."""
    height, width = size
    letters = max(9.0, (height * width) ** 0.5 / 42)
    for _ in range(8):
        thickness = max(1, round(letters / 14))
        scale = cv2.getFontScaleFromHeight(_FONT, max(1, round(letters)), thickness)
        (text_width, ascent), descent = cv2.getTextSize(words, _FONT, scale, thickness)
        margin = max(1, round(letters / 5))
        text = _Text(words, scale, thickness, margin, text_width + 2 * margin, ascent + descent + margin,
                     descent)
        shrink = min(width / text.width, height / text.height)
        if shrink >= 1:
            break
        letters = min(letters * shrink, max(1.0, round(letters) - 1.0))  # OpenCV knows whole sizes only
    return text


def _legend(names: Sequence[str], size: Size) -> tuple[list[_Text], list[_Rectangle]]:
    """The names, or the first of them and how many more there are, in lines from the top left of an image of `size`."""
    measured = [_measure(name, size) for name in names]
    for left_out in range(len(names)):
        texts = measured[: len(names) - left_out] + ([_measure(f"+{left_out}", size)] if left_out else [])
        places = _lines(texts, size[1])
        if places[-1].bottom < size[0] / 3:
            descent = max(text.descent for text in texts)
            return [text._replace(descent=descent) for text in texts], places
    return measured[:1], _lines(measured[:1], size[1])


def _lines(texts: Sequence[_Text], width: int) -> list[_Rectangle]:
    """The texts beside each other with one base line, and in a next line where `width` ends."""
    places: list[_Rectangle] = []
    descent = max((text.descent for text in texts), default=0)
    height = max((text.height - text.descent + descent for text in texts), default=0)
    left = top = 0
    for text in texts:
        if left + text.width > width:
            left, top = 0, top + height
        places.append(_Rectangle(left, top, left + text.width - 1, top + height - 1))
        left += text.width
    return places


def _place(text: _Text, box: _Rectangle, *, size: Size, visible: Sequence[_Rectangle]) -> _Rectangle:
    """Where at the box, inside the image, the text hides the least share of what should stay visible.

    On top of the box, under it, beside it, inside it: each has to save 2 % of a box or label over the one before.
    """
    above, under, left, right = box.top - text.height, box.bottom + 1, box.left, box.right - text.width + 1
    before, after = box.left - text.width, box.right + 1
    low = box.bottom - text.height + 1
    starts = np.array([(left, above), (right, above), (left, under), (right, under), (after, box.top), (after, low),
                       (before, box.top), (before, low), (left, box.top), (right, box.top), (left, low), (right, low)])
    starts = starts.clip(0, [size[1] - text.width, size[0] - text.height])
    stops = starts + np.array([text.width, text.height])
    others = np.array(visible)
    corners, ends = others[:, :2], others[:, 2:] + 1
    hidden = (np.minimum(stops[:, None], ends) - np.maximum(starts[:, None], corners)).clip(0).prod(axis=2)
    shares = (hidden / (ends - corners).prod(axis=1)).sum(axis=1)
    best = (shares + 0.02 * np.arange(len(starts))).argmin()
    return _Rectangle(*starts[best].tolist(), *(stops[best] - 1).tolist())


def _write(picture: Pixels, text: _Text, *, place: _Rectangle, colour: Colour) -> None:
    """Fills the place and writes the words on it, dark on bright colours and bright on dark ones."""
    cv2.rectangle(picture, place[:2], place[2:], colour, cv2.FILLED)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    origin = (place.left + text.margin, place.bottom - text.descent)
    cv2.putText(picture, text.words, origin, _FONT, text.scale, _DARK if luminance > 128 else _LIGHT, text.thickness,
                cv2.LINE_AA)


def _centre(image: Pixels, frame: Pixels) -> None:
    """Scales the image to fit into the frame, in place and without distortion."""
    scale = min(frame.shape[0] / image.shape[0], frame.shape[1] / image.shape[1])
    # Rounded up: an image with the frame's own ratio fills it, though the frame was rounded to whole pixels.
    height = min(math.ceil(image.shape[0] * scale), frame.shape[0])
    width = min(math.ceil(image.shape[1] * scale), frame.shape[1])
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    frame[top:top + height, left:left + width] = scaled
