"""How long an annotation file of the size of COCO's training set takes to read, and how much memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detseg.atomic import atomic_write
from detseg.data.coco import COCO_80

_SIZE = (480, 640)
"""Height and width of the images."""

_SHAPES = 2_000
"""Different outlines; every annotation has one of them, which is text like any other to a reader."""

_MEASURED = """
import contextlib, io, json, re, sys, time
from pathlib import Path
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
annotations, images = map(Path, sys.argv[1:])
{imports}
before, start, cpu = peak(), time.perf_counter(), time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    {read}
seconds = time.perf_counter() - start
print(json.dumps([seconds, time.process_time() - cpu, peak(), before]))
"""


class Reader(NamedTuple):
    """A way to read an annotation file."""

    name: str
    imports: str
    read: str


PYCOCOTOOLS = Reader("pycocotools, `COCO(file)`", "from pycocotools.coco import COCO", "COCO(str(annotations))")
DETSEG = Reader("detseg, `read_coco`", "from detseg.data.coco import read_coco", "read_coco(annotations, images)")


class Figures(NamedTuple):
    """What one reading took, in a process of its own."""

    name: str
    seconds: float
    """Without the imports."""
    cpu_seconds: float
    """Of them those of the processor: less where others use it too."""
    peak: int
    """Bytes of the whole process."""
    imports: int
    """Bytes that it had taken before it began to read."""


def write_annotations(folder: Path, *, images: int, annotations: int) -> Path:
    """Writes an annotation file with COCO's categories and keys and random boxes, and an empty file for each image.

    Gives the annotation file; the images lie in `folder / "images"`.
    """
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(10 * images, images, replace=False)).tolist()
    (folder / "images").mkdir(parents=True)
    for image_id in ids:
        (folder / "images" / f"{image_id:012d}.jpg").touch()
    path = folder / "instances.json"
    with atomic_write(path, failure="not written") as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "random boxes"}, "licenses": [], "images": [')
        file.write(", ".join(map(_image, ids)))
        file.write('], "annotations": [')
        for number, record in enumerate(_annotations(rng, ids, annotations)):
            file.write(f"{', ' if number else ''}{record}")
        listed = [{"supercategory": "thing", "id": i, "name": name} for i, name in COCO_80.used.items()]
        file.write(f'], "categories": {json.dumps(listed)}}}')
    return path


def _image(image_id: int) -> str:
    name = f"{image_id:012d}.jpg"
    return json.dumps({
        "license": 4, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": _SIZE[0], "width": _SIZE[1], "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{name}", "id": image_id,
    })


def _annotations(rng: np.random.Generator, image_ids: Sequence[int], number: int) -> Iterator[str]:
    shapes = [json.dumps([np.round(rng.uniform(0, _SIZE[0], 2 * (8 + k % 18)), 2).tolist()]) for k in range(_SHAPES)]
    category_ids = rng.choice(COCO_80.source_ids, number).tolist()
    sizes = rng.uniform(5, _SIZE[0] / 2, (number, 2))
    corners = rng.uniform(0, 1, (number, 2)) * (np.array(_SIZE[::-1]) - sizes)
    boxes = np.round(np.concatenate([corners, sizes], axis=1), 2).tolist()
    for k, (box, category_id) in enumerate(zip(boxes, category_ids, strict=True)):
        yield (f'{{"segmentation": {shapes[k % _SHAPES]}, "area": {box[2] * box[3] * 0.7:.4f}, "iscrowd": 0, '
               f'"image_id": {image_ids[k % len(image_ids)]}, "bbox": {box}, "category_id": {category_id}, '
               f'"id": {k + 1}}}')


def measure(annotations: Path, *, cache: Path) -> list[Figures]:
    """Reads a file of `write_annotations` with pycocotools and twice with detseg, each time in a new process.

    `cache` is an empty folder for what detseg keeps. OSError where a process fails, or away from Linux.
    """
    if sys.platform != "linux":
        raise OSError("the peak memory of a process is read from Linux's /proc, which this system has not")
    runs = ((PYCOCOTOOLS.name, PYCOCOTOOLS), (f"{DETSEG.name}, the first time", DETSEG),
            (f"{DETSEG.name}, from its cache", DETSEG))
    return [_measured(name, reader, annotations, cache) for name, reader in runs]


def _measured(name: str, reader: Reader, annotations: Path, cache: Path) -> Figures:
    code = _MEASURED.replace("{imports}", reader.imports).replace("{read}", reader.read)
    done = subprocess.run(
        [sys.executable, "-c", code, str(annotations), str(annotations.parent / "images")],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{name} failed: {done.stderr.strip()[-500:]}")
    return Figures(name, *json.loads(done.stdout))


def markdown(figures: Sequence[Figures]) -> str:
    """A table; ratios are to the first line."""
    rows = [("reader", "seconds", "ratio", "CPU seconds", "ratio", "peak memory", "ratio", "of it imports")]
    rows += [(each.name, f"{each.seconds:.2f}", f"{each.seconds / figures[0].seconds:.2f}",
              f"{each.cpu_seconds:.2f}", f"{each.cpu_seconds / figures[0].cpu_seconds:.2f}",
              f"{each.peak / 1e6:,.0f} MB", f"{each.peak / figures[0].peak:.2f}", f"{each.imports / 1e6:,.0f} MB")
             for each in figures]
    lines = [rows[0], ("--",) * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
