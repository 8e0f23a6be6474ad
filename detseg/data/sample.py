"""A data set generated on the spot, with boxes in COCO's layout and label maps: shapes on textured grounds.

Discs, squares, triangles, stars and rings, turned, squeezed, shaded and patterned in any colour, overlap each other and
cast shadows. Only the outline tells the class. There are crowds, images without objects, and many image sizes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from detseg.data.masks import class_file, mask_folder, write_classes
from detseg.structures import Classes, LabelPixels, Pixels, Size

Mask: TypeAlias = NDArray[np.bool_]
Field: TypeAlias = NDArray[np.float32]
"""A value for each pixel, [H, W], or a colour, [H, W, 3]; light is 0..1."""

CATEGORIES = ((1, "disc"), (2, "square"), (4, "triangle"), (7, "star"), (11, "ring"))
"""Source id and name of each class; the ids have gaps, as COCO's have."""

LABELS = Classes(
    names=("ground", *(name for _, name in CATEGORIES)),
    source_ids=(0, *(source_id for source_id, _ in CATEGORIES)),
    colours=((70, 70, 70), (230, 60, 60), (250, 170, 30), (90, 200, 70), (60, 140, 240), (180, 90, 220)),
)
"""The classes of the label maps, with their values in the files."""

VERSION = 2
"""Changes when the same parameters would give other files. 2 draws the pictures of 1, and has label maps."""


class Thing(NamedTuple):
    """An object of a scene, or a crowd of objects of one class."""

    label: int
    """Position in CATEGORIES."""
    crowd: bool


class Scene(NamedTuple):
    """A picture and whose each of its pixels is."""

    image: Pixels
    instances: NDArray[np.uint8]
    """[H, W]: i + 1 where things[i] is seen, 0 on the ground."""
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class _Recipe:
    """What decides the content of a data set, stored with it."""

    seed: int
    num_train: int
    num_val: int
    version: int = VERSION
    layout: str = "scenes"


def generate_sample(folder: Path, *, seed: int = 0, num_train: int = 400, num_val: int = 100) -> Path:
    """Writes the data set to `folder`, or leaves it if the same one is there; gives `folder` back.

    It has COCO's layout, annotations/instances_{train,val}2017.json, train2017/ and val2017/, and label maps where
    `read_masks` finds them, masks/{train,val}/ and classes.txt; in these a crowd's objects are of their class, and what
    is no object is ground. sample.json holds the parameters. An image depends on the seed and its number, not on how
    many there are. Another sample in `folder` is replaced. The folder appears complete or not at all, also when several
    processes generate it at once.

    ValueError if there is something else in `folder`, or a number is below 1.
    """
    def write(made: Path) -> None:
        _write_split(made, "train", seed=(seed, 0), first_id=1, num_images=num_train)
        _write_split(made, "val", seed=(seed, 1), first_id=1_000_001, num_images=num_val)
        write_classes(class_file(made), LABELS)

    return _generated(folder, _Recipe(seed, num_train, num_val), write)


def generate_class_sample(folder: Path, *, seed: int = 0, num_train: int = 1000, num_val: int = 200) -> Path:
    """Writes pictures of single objects in class folders, train/CLASS/ and val/CLASS/.

    The folder is a neighbour of `folder`, for that is where the scenes go: its name ends in "-classes"; given back.
    Classes follow each other, so that all have as many images, at least one for training. Otherwise as
    `generate_sample`.
    """
    if num_train < len(CATEGORIES):
        raise ValueError(f"a sample of {len(CATEGORIES)} classes needs as many training images, got {num_train}")

    def write(made: Path) -> None:
        for side, (split, number) in enumerate((("train", num_train), ("val", num_val))):
            for _, name in CATEGORIES:
                (made / split / name).mkdir(parents=True)
            for k in range(number):
                label = k % len(CATEGORIES)
                picture = draw_object(np.random.default_rng([seed, side, k]), label)
                _write_jpeg(made / split / CATEGORIES[label][1] / f"{k:06d}.jpg", picture)

    return _generated(folder.with_name(f"{folder.name}-classes"),
                      _Recipe(seed, num_train, num_val, layout="class folders"), write)


def _generated(folder: Path, recipe: _Recipe, write: Callable[[Path], None]) -> Path:
    """The folder with a sample of this recipe, which is written unless it is there."""
    if min(recipe.num_train, recipe.num_val) < 1:
        raise ValueError(f"a sample needs at least 1 training and 1 validation image, got {recipe.num_train} and "
                         f"{recipe.num_val}")
    if _recipe_of(folder) == recipe:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = work / "made"
        write(made)
        (made / "sample.json").write_text(json.dumps(vars(recipe)) + "\n")
        if _recipe_of(folder) not in (None, recipe):
            with suppress(FileNotFoundError):  # another process may take it away first
                os.rename(folder, work / "replaced")
        try:
            os.rename(made, folder)
        except OSError:
            if _recipe_of(folder) != recipe:  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(work)
    return folder


def _recipe_of(folder: Path) -> _Recipe | None:
    """What the sample in this folder was made from; None if there is nothing. ValueError if there is something else."""
    try:
        return _Recipe(**json.loads((folder / "sample.json").read_text()))
    except (OSError, ValueError, TypeError):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(
                f"{folder} is not empty and holds no generated sample; name another folder for it"
            ) from None
        return None


# ---------------------------------------------------------------------------------------------- the files


def _write_split(root: Path, split: str, *, seed: tuple[int, int], first_id: int, num_images: int) -> None:
    pictures, masks = root / f"{split}2017", mask_folder(root, split)
    for folder in (pictures, masks):
        folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(num_images):
        scene = draw_scene(np.random.default_rng([*seed, number]))
        image_id = first_id + number
        height, width = scene.instances.shape
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height})
        _write_jpeg(pictures / f"{image_id:012d}.jpg", scene.image)
        label_map = cv2.imencode(".png", _source_ids(scene))[1]
        (masks / f"{image_id:012d}.png").write_bytes(label_map.tobytes())
        for index, thing in enumerate(scene.things):
            numbers = {"id": len(annotations) + first_id, "image_id": image_id}
            annotations.append(numbers | _annotation(scene.instances == index + 1, thing))
    categories = [{"id": source_id, "name": name, "supercategory": "shape"} for source_id, name in CATEGORIES]
    contents = {
        "info": {"description": "detseg's generated sample", "version": str(VERSION)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(contents))


def _write_jpeg(path: Path, picture: Pixels) -> None:
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    path.write_bytes(jpeg.tobytes())


def _source_ids(scene: Scene) -> LabelPixels:
    """[H, W]: the id of each pixel's class."""
    of_instance = [LABELS.source_ids[0], *(CATEGORIES[thing.label][0] for thing in scene.things)]
    return np.array(of_instance, dtype=np.uint8)[scene.instances]


def _annotation(mask: Mask, thing: Thing) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": CATEGORIES[thing.label][0],
        "iscrowd": int(thing.crowd),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "segmentation": _run_lengths(mask) if thing.crowd else _polygons(mask),
    }


def _run_lengths(mask: Mask) -> dict[str, list[int]]:
    """COCO's uncompressed RLE: lengths of the runs of 0 and 1 in turn, down the columns, beginning with 0."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], borders, [mask.size]]))
    return {"size": list(mask.shape), "counts": (counts if counts[-1] else counts[:-1]).tolist()}


def _polygons(mask: Mask) -> list[list[float]]:
    """The mask's parts as polygons [x, y, x, y, ...] along the borders of pixels.

    COCO's polygons have no holes, so a mask with one is cut through the hole's middle.
    """
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    holes = [contour for contour, (*_, parent) in zip(contours, hierarchy[0], strict=True) if parent >= 0]
    if holes:
        largest = max(holes, key=cv2.contourArea)
        cut = int(largest[:, 0, 0].min() + largest[:, 0, 0].max() + 2) // 4
        left, right = mask.copy(), mask.copy()
        left[:, cut:], right[:, :cut] = False, False
        return _polygons(left) + _polygons(right)
    # Pixel p is 2p and 2p + 1 in the doubled mask; rounding these up to even gives its borders p and p + 1.
    # Half a pixel of tolerance takes two thirds of the corners, and none of what pycocotools makes of the polygon.
    return [cv2.approxPolyDP((contour + 1) // 2, 0.5, True).ravel().tolist() for contour in contours]


# ---------------------------------------------------------------------------------------------- scenes


class _Shape(NamedTuple):
    """One figure: where it is, in pixels, and how it is turned and squeezed."""

    label: int
    x: float
    y: float
    side: float
    angle: float
    squeeze: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """A picture of 240 to 480 pixels a side with up to seven objects of 40 to 200 pixels, or none.

    Of an object at least 70 % of what lies in the picture is seen.
    """
    size = (int(rng.integers(240, 481)), int(rng.integers(240, 481)))
    picture = _ground(rng, size)
    light = float(rng.uniform(0, 2 * np.pi))
    instances = np.zeros(size, dtype=np.uint8)
    things: list[Thing] = []
    whole: list[int] = []
    for thing, shapes in _arrangement(rng, size):
        windows = [_window(shape, size) for shape in shapes]
        covers = [_cover(shape, window) for shape, window in zip(shapes, windows, strict=True)]
        placed = instances.copy()
        for window, cover in zip(windows, covers, strict=True):
            placed[window][cover >= 0.5] = len(things) + 1
        seen = np.bincount(placed.ravel(), minlength=len(things) + 2)[1:]
        if any(now < 0.7 * before for now, before in zip(seen, [*whole, 1], strict=True)):
            continue
        instances = placed
        things.append(thing)
        whole.append(int(seen[-1]))
        for shape, window, cover in zip(shapes, windows, covers, strict=True):
            _paint(rng, picture[window], shape, window=window, cover=cover, light=light)
    return Scene(_finished(rng, picture), instances, tuple(things))


def draw_object(rng: np.random.Generator, label: int) -> Pixels:
    """A picture of 96 to 192 pixels a side with one object, nearly whole.

    label: position in CATEGORIES.
    """
    size = (int(rng.integers(96, 193)), int(rng.integers(96, 193)))
    picture, light = _ground(rng, size), float(rng.uniform(0, 2 * np.pi))
    side = float(rng.uniform(0.5, 0.9)) * min(size)
    x, y = (float(rng.uniform(0.45 * side, length - 0.45 * side)) for length in (size[1], size[0]))
    shape = _shape(rng, label, x=x, y=y, side=side)
    window = _window(shape, size)
    _paint(rng, picture[window], shape, window=window, cover=_cover(shape, window), light=light)
    return _finished(rng, picture)


def _finished(rng: np.random.Generator, picture: Field) -> Pixels:
    """The picture with noise, as bytes."""
    picture += rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None] * rng.uniform(0.005, 0.02)
    pixels: Pixels = (picture.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _arrangement(rng: np.random.Generator, size: Size) -> list[tuple[Thing, list[_Shape]]]:
    """What is put down, one after the other; things that would hide others too much are left out later."""
    if rng.random() < 0.08:
        return []
    things = []
    if rng.random() < 0.12:
        label = int(rng.integers(len(CATEGORIES)))
        things.append((Thing(label, crowd=True), _crowd(rng, size, label=label)))
    longest = min(200.0, 0.6 * min(size))
    for _ in range(rng.integers(1, 8)):
        label = int(rng.integers(len(CATEGORIES)))
        side = float(rng.uniform(48, longest))
        x, y = (float(rng.uniform(0.3 * side, length - 0.3 * side)) for length in (size[1], size[0]))
        things.append((Thing(label, crowd=False), [_shape(rng, label, x=x, y=y, side=side)]))
    return things


def _crowd(rng: np.random.Generator, size: Size, *, label: int) -> list[_Shape]:
    """Many small figures of one class, row behind row."""
    side = float(rng.uniform(16, 26))
    rows, columns = int(rng.integers(3, 5)), int(rng.integers(4, 8))
    left = rng.uniform(side, size[1] - side * columns)
    top = rng.uniform(side, size[0] - side * rows)
    jitter = rng.uniform(-0.2, 0.2, size=(rows, columns, 2))
    return [
        _shape(rng, label, x=left + (c + jx) * 0.85 * side, y=top + (r + jy) * 0.85 * side, side=side)
        for r in range(rows)
        for c, (jx, jy) in enumerate(jitter[r])
    ]


def _shape(rng: np.random.Generator, label: int, *, x: float, y: float, side: float) -> _Shape:
    return _Shape(label, x, y, side, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.75, 1.0)))


def _corners(count: int, radii: tuple[float, ...] = (1.0,)) -> NDArray[np.float64]:
    """Points [count, 2] around the unit circle, at these distances from its centre in turn."""
    angles = np.arange(count) * (2 * np.pi / count)
    points: NDArray[np.float64] = np.column_stack([np.cos(angles), np.sin(angles)]) * np.resize(radii, count)[:, None]
    return points


_OUTLINES = {
    "disc": [_corners(64)],
    "square": [_corners(4, (1.15,))],
    "triangle": [_corners(3, (1.15,))],
    "star": [_corners(10, (1.15, 0.5))],
    "ring": [_corners(64), 0.55 * _corners(64)],
}
"""Outline and hole of each class in a circle of about radius 1."""


def _window(shape: _Shape, size: Size) -> tuple[slice, slice]:
    """The part of the picture that the figure and its shadow lie in."""
    reach = 0.75 * shape.side + 2
    top, left = max(0, int(shape.y - reach)), max(0, int(shape.x - reach))
    return slice(top, min(size[0], int(shape.y + reach))), slice(left, min(size[1], int(shape.x + reach)))


def _cover(shape: _Shape, window: tuple[slice, slice]) -> Field:
    """How much of each pixel of the window the figure covers, its corners rounded."""
    rows, columns = window
    turn = np.array([[np.cos(shape.angle), np.sin(shape.angle)], [-np.sin(shape.angle), np.cos(shape.angle)]])
    # OpenCV's whole numbers are the middles of pixels, ours their borders; its points count sixteenths.
    origin = np.array([shape.x - columns.start, shape.y - rows.start]) - 0.5
    filled = np.zeros((rows.stop - rows.start, columns.stop - columns.start), dtype=np.uint8)
    for outline, value in zip(_OUTLINES[CATEGORIES[shape.label][1]], (255, 0), strict=False):
        points = (outline * (1, shape.squeeze)) @ turn * (shape.side / 2) + origin
        cv2.fillPoly(filled, [np.rint(points * 16).astype(np.int32)], value, cv2.LINE_AA, 4)
    softness = 0.02 * shape.side
    soft = cv2.GaussianBlur(filled, (0, 0), softness).astype(np.float32) / 255
    sharp: Field = ((soft - 0.5) * max(1.0, 2.5 * softness) + 0.5).clip(0, 1)
    return sharp


def _paint(
    rng: np.random.Generator,
    view: Field,
    shape: _Shape,
    *,
    window: tuple[slice, slice],
    cover: Field,
    light: float,
) -> None:
    """Paints a figure, with the light from one side and its shadow on the other, onto the view in place."""
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(shape.y)
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(shape.x)
    first, second = _vivid_colours(rng, against=view.mean(axis=(0, 1)))
    pattern = _pattern(rng, y, x, wavelength=shape.side * float(rng.uniform(0.15, 0.4)))
    towards_y, towards_x = np.float32(np.sin(light)), np.float32(np.cos(light))
    # A blurred cover falls off towards the rim, which makes the figure look thick.
    body = cv2.GaussianBlur(cover, (0, 0), 0.05 * shape.side)
    lit = (0.7 + 0.35 * body) * (1 + (towards_y * y + towards_x * x) * np.float32(0.5 / shape.side))
    colour = first + (second - first) * pattern[..., None]
    away = np.array([[1, 0, -0.07 * shape.side * towards_x], [0, 1, -0.07 * shape.side * towards_y]])
    shadow = cv2.warpAffine(body, away, (view.shape[1], view.shape[0]))
    view *= (1 - 0.5 * shadow)[..., None]
    view += cover[..., None] * (colour * lit[..., None] - view)


def _vivid_colours(rng: np.random.Generator, *, against: Field) -> tuple[Field, Field]:
    """Two RGB colours [3] of one hue; the first differs well from the ground's."""
    while True:
        hue, saturation, value = rng.uniform((0, 0.45, 0.45), (360, 1, 1))
        first = _rgb(hue, saturation, value)
        if np.linalg.norm(first - against) > 0.35:
            break
    return first, _rgb(hue + rng.uniform(-25, 25), saturation * rng.uniform(0.4, 1), value * rng.uniform(0.55, 0.85))


def _rgb(hue: float, saturation: float, value: float) -> Field:
    """HSV, the hue in degrees, to RGB [3]."""
    pixel = np.array([[[hue % 360, saturation, value]]], dtype=np.float32)
    colour: Field = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
    return colour


def _ground(rng: np.random.Generator, size: Size) -> Field:
    """A pale or dull background: two colours in a gradient with clouds, a third in blots, a pattern over all."""
    first, second, third = (_rgb(*rng.uniform((0, 0.05, 0.3), (360, 0.4, 0.9))) for _ in range(3))
    y = np.arange(size[0], dtype=np.float32)[:, None]
    x = np.arange(size[1], dtype=np.float32)[None]
    angle = rng.uniform(0, 2 * np.pi)
    slope = (y * np.float32(np.sin(angle)) + x * np.float32(np.cos(angle))) / np.float32(max(size))
    clouds = _noise(rng, size, cell=90) + 0.5 * _noise(rng, size, cell=30)
    mix = (0.5 + 0.7 * slope + 0.5 * clouds).clip(0, 1)[..., None]
    ground: Field = first + (second - first) * mix
    blots = (4 * _noise(rng, size, cell=60) - float(rng.uniform(0.5, 3))).clip(0, 1)[..., None]
    ground += (third - ground) * (0.6 * blots)
    pattern = _pattern(rng, y, x, wavelength=float(rng.uniform(10, 40))) * np.float32(rng.uniform(-0.15, 0.15))
    ground *= (1 + pattern + 0.06 * _noise(rng, size, cell=9) + 0.06 * _noise(rng, size, cell=3))[..., None]
    return ground


def _noise(rng: np.random.Generator, size: Size, *, cell: int) -> Field:
    """Smooth noise [H, W] of about -1..1 that changes over `cell` pixels."""
    grid = rng.uniform(-1, 1, size=(size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    noise: Field = cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return noise


def _pattern(rng: np.random.Generator, y: Field, x: Field, *, wavelength: float) -> Field:
    """Stripes, checks, dots or nothing, as a field 0..1 over the coordinates y [H, 1] and x [1, W]."""
    angle = rng.uniform(0, np.pi)
    scale = 2 * np.pi / wavelength
    sin, cos = np.float32(scale * np.sin(angle)), np.float32(scale * np.cos(angle))
    return _PATTERNS[rng.integers(len(_PATTERNS))](y * sin + x * cos, y * cos - x * sin)


_PATTERNS: tuple[Callable[[Field, Field], Field], ...] = (
    lambda u, _: np.zeros_like(u),
    lambda u, _: (3 * np.sin(u) + 0.5).clip(0, 1),
    lambda u, v: (6 * np.sin(u) * np.sin(v) + 0.5).clip(0, 1),
    lambda u, v: (4 * (np.sin(u) + np.sin(v)) - 3).clip(0, 1),
)
"""Nothing, stripes, checks and dots of period 2 pi."""
