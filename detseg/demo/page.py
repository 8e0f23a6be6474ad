"""The demo's page as a folder that any web server can host."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detseg.atomic import atomic_folder
from detseg.data.images import read_image
from detseg.data.loading import spread
from detseg.data.sample import CATEGORIES, LABELS
from detseg.demo.runtime import FILES
from detseg.export.artefact import Artefact, is_artefact, open_artefact
from detseg.predict import find_images
from detseg.recipes import sample_pictures
from detseg.report.pictures import write_picture
from detseg.structures import Classes, Pixels

PAGE_FILES = ("index.html", "style.css", "page.js", "worker.js", "resize.js")
"""As they are in the package."""
MOST_SAMPLES = 48

_SHOWN = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Formats that browsers read; others are written as PNG."""
_THUMBNAIL = 160
"""Pixels of its longer side."""
_GENERATED = 8


def open_for_page(path: Path) -> Artefact:
    """An exported file that browsers can run to the end.

    ValueError for one of another format, for a classifier, and for one that ends before final predictions: the page has
    no suppression. Else as `open_artefact`.
    """
    if path.is_dir() and not is_artefact(path):
        raise ValueError(f"{path} is a folder, and the page runs an exported file; if it is a run: "
                         f"{_export_command(str(path))}")
    artefact = open_artefact(path)
    if artefact.format.name != "onnx":
        raise ValueError(f"{path} is for {artefact.format.title}, and the page runs ONNX files; export its checkpoint "
                         f"{artefact.manifest.checkpoint['name']} again: {_export_command('RUN')}")
    if artefact.manifest.task["kind"] == "classification":
        raise ValueError(f"{path} is a classifier, and the page shows boxes and label maps; its classes are written "
                         f"on pictures by detseg predict {path} IMAGE")
    if artefact.manifest.resize == "centre_crop":
        raise ValueError(f"{path} sees the middle of a picture, and the page has no such crop; give the config's model "
                         "a Stretch or a Letterbox")
    if artefact.manifest.contract != "final":
        raise ValueError(f'{path} ends with "{artefact.manifest.contract}", and the page needs a file that ends with '
                         f'"final"; export its checkpoint {artefact.manifest.checkpoint["name"]} again: '
                         f"{_export_command('RUN')}")
    return artefact


def write_page(folder: Path, artefact: Artefact, *, runtime: Path, images: Sequence[str] = ()) -> int:
    """Writes the page into a folder, which is new, empty or an earlier page, and is replaced when all is there.

    Args:
        folder: where it goes.
        artefact: as `open_for_page` gives it.
        runtime: as `runtime_folder` gives it.
        images: paths, folders and patterns of sample pictures; none: generated ones, where the file knows these.

    Gives the number of sample pictures, of which there are at most `MOST_SAMPLES`, spread over all. ValueError where
    the folder holds anything else, and for an image that cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "demo.json").is_file())):
        raise ValueError(f"{folder} holds something else than an earlier page; name a new or an empty folder")
    with atomic_folder(folder) as beside:
        unfinished = beside / folder.name
        unfinished.mkdir()
        for name in PAGE_FILES:
            (unfinished / name).write_bytes((files("detseg.demo") / "web" / name).read_bytes())
        (unfinished / "runtime").mkdir()
        for name in FILES:
            shutil.copyfile(runtime / name, unfinished / "runtime" / name)
        shutil.copyfile(artefact.path, unfinished / "model.onnx")
        samples = _write_samples(unfinished / "samples", artefact, images)
        content = described(artefact) | {"samples": samples}
        (unfinished / "demo.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return len(samples)


def described(artefact: Artefact) -> dict[str, Any]:
    """What the page has to know of a file."""
    manifest = artefact.manifest
    height, width = manifest.input.size
    return {
        "title": artefact.path.stem,
        "about": f"{width} x {height}, {len(manifest.classes.used)} classes",
        "kind": manifest.task["kind"],
        "classes": manifest.classes.as_plain(),
        "thresholds": manifest.classes.thresholds(manifest.thresholds),
        "input": {"size": manifest.input.size, "pixels": manifest.input.pixels, "layout": manifest.input.layout,
                  "resize": manifest.resize, "fill": manifest.fill},
        "model": "model.onnx",
        "bytes": artefact.path.stat().st_size,
    }


def _export_command(run: str) -> str:
    return f"detseg export {run} --format onnx"


def _write_samples(folder: Path, artefact: Artefact, images: Sequence[str]) -> list[dict[str, str]]:
    """The pictures, a small one of each to tap on, and how the page finds them."""
    found = []
    if images:
        paths = find_images(images)
        for number, path in enumerate(paths[k] for k in spread(len(paths), MOST_SAMPLES)):
            picture = read_image(path)
            suffix = path.suffix.lower()
            file = folder / f"{number:02d}{suffix if suffix in _SHOWN else '.png'}"
            if suffix in _SHOWN:
                file.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, file)
            else:
                write_picture(file, picture)
            found.append((path.name, file, picture))
    elif _knows_generated(artefact.classes):
        for number, picture in enumerate(sample_pictures(_GENERATED)):
            file = folder / f"{number:02d}.png"
            write_picture(file, picture)
            found.append((f"generated picture {number + 1}", file, picture))
    samples = []
    for name, file, picture in found:
        thumbnail = file.with_name(f"{file.stem}.small.jpg")
        write_picture(thumbnail, _thumbnail(picture))
        samples.append({"name": name, "file": f"{folder.name}/{file.name}",
                        "thumbnail": f"{folder.name}/{thumbnail.name}"})
    return samples


def _thumbnail(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = _THUMBNAIL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _knows_generated(classes: Classes) -> bool:
    return classes.names in (LABELS.names, tuple(name for _, name in CATEGORIES))
