"""Prediction: a trained network, image files in, detections in original pixels out."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detseg.data.images import read_image
from detseg.interfaces import Pixels, Source, Task
from detseg.model import Predictor

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


class ImagePrediction(NamedTuple):
    """One image file and what was found in it."""

    path: Path
    image: Pixels
    prediction: Any


def predict_image(predictor: Predictor, task: Task[Any, Any, Any, Any], image: Pixels, *, image_id: int = 0) -> Any:
    """The prediction for one decoded image, uint8 [H, W, 3] RGB, in its own pixels.

    The predictor is used as it is; `Predictor.folded()` gives a faster one. It must be in evaluation mode.
    """
    device = predictor.scale.device
    height, width = image.shape[:2]
    source = Source(image_id, (height, width), predictor.resize.place((height, width)))
    # Height, width, channels in memory is what channels_last means: no copy is made.
    resized = torch.from_numpy(predictor.resize.apply(image)).permute(2, 0, 1)[None].to(device)
    with torch.inference_mode():
        finished = task.finish(predictor.head.decode(predictor(resized)))
        return task.restore(finished, (source,))[0]


def predict_files(
    predictor: Predictor, task: Task[Any, Any, Any, Any], paths: Sequence[Path]
) -> Iterator[ImagePrediction]:
    """Each file's prediction, in order; the image id is the position. ValueError names an unreadable file."""
    network = predictor.folded()
    for number, path in enumerate(paths):
        image = read_image(path)
        yield ImagePrediction(path, image, predict_image(network, task, image, image_id=number))


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and glob patterns mean, each once, in order.

    A folder means the images directly in it. ValueError where a pattern means none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            problem = f"the folder {pattern} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        elif path.exists() or not glob.has_magic(pattern):
            files, problem = [path], ""
            if not path.exists():
                raise FileNotFoundError(f"no image, folder or pattern {pattern}")
        else:
            matched = (Path(file) for file in sorted(glob.glob(pattern, recursive=True)))
            files = [file for file in matched if file.suffix.lower() in IMAGE_SUFFIXES]
            problem = f"no image matches {pattern}"
        if not files:
            raise ValueError(problem)
        found.update(dict.fromkeys(files))
    return list(found)
