"""Prediction: a trained network, image files in, boxes or label maps in original pixels out."""

from __future__ import annotations

import glob
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from detseg.data.files import is_image, list_files, list_images
from detseg.data.images import read_image
from detseg.interfaces import Source, Task
from detseg.model import Predictor
from detseg.prefetch import prefetched
from detseg.resize import Resize
from detseg.structures import Classes, Pixels
from detseg.video import VideoFrame, file_stem, is_live, is_video

PredictionT = TypeVar("PredictionT")

_AHEAD = 2
"""Images that wait between reading, the network and drawing."""


class Network(Protocol):
    """What predicts: a `Predictor`, or an exported file in its runtime."""

    @property
    def classes(self) -> Classes:
        """What it predicts."""

    @property
    def resize(self) -> Resize:
        """How an image becomes its input."""

    @property
    def device(self) -> torch.device:
        """Where images are to be brought."""

    @property
    def form(self) -> str:
        """What was done to it for inference."""

    def ready(self) -> Self:
        """It, or a copy of it, made ready for inference."""

    def decode(self, images: Tensor, /, *, static: bool = False) -> Any:
        """float [B, 3, H, W] RGB, 0..255, to dense predictions in the pixels of `images`; `static` as in `Head.decode`.
        ValueError where it gives final ones alone."""

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], /, *, static: bool = False) -> Any:
        """float [B, 3, H, W] RGB, 0..255, to final predictions in network pixels; `static` as in `Head.decode`."""


class Recomputed(ABC):
    """A network that is ready, whose layers something else computes than torch's own; decoding, a second stage and
    suppression are those of the predictor it was made of.

    predictor: ready for inference.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def classes(self) -> Classes:
        """What it predicts."""
        return self.predictor.classes

    @property
    def resize(self) -> Resize:
        """How an image becomes its input."""
        return self.predictor.resize

    @property
    def device(self) -> torch.device:
        """Where images are to be brought."""
        return self.predictor.device

    @property
    @abstractmethod
    def form(self) -> str:
        """What it is, for people."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Any:
        """float [B, 3, H, W] RGB, 0..255, to the head's raw predictions."""

    def ready(self) -> Self:
        """It is."""
        return self

    def decode(self, images: Tensor, *, static: bool = False) -> Any:
        """The same to dense predictions; `static` as in `Head.decode`."""
        return self.predictor.head.decode(self(images), (images.shape[2], images.shape[3]), static=static)

    def finished(self, images: Tensor, task: Task[Any, Any, Any, Any], *, static: bool = False) -> Any:
        """The same to final predictions of the task; `static` as in `Head.decode`."""
        return task.postprocess(self.decode(images, static=static), static=static)


class FramePrediction(NamedTuple):
    """A frame of a video and what was found in it, or in the last one before it that was predicted."""

    number: int
    """From 0."""
    time: float
    """Seconds from the first frame."""
    image: Pixels
    prediction: Any
    predicted: bool
    """Whether it was found in this very frame."""


class ImagePrediction(NamedTuple):
    """One image file and what was found in it."""

    image_id: int
    path: Path
    image: Pixels
    prediction: Any


@torch.inference_mode()
def predict_batch(
    network: Network, task: Task[Any, Any, Any, PredictionT], images: Tensor, sources: Sequence[Source], *,
    static: bool = False,
) -> list[PredictionT]:
    """The predictions of images of the network's size, in original pixels and on the CPU: the one way to predict.

    Args:
        network: in evaluation mode; `ready()` gives a fast one.
        task: what is particular to its predictions.
        images: float [B, 3, H, W] RGB, 0..255, as `Predictor.resize` gives them.
        sources: where each comes from.
        static: in the form that is exported: what a phone will say.
    """
    images = images.to(network.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
    finished = network.finished(images, task, static=static)
    return task.to_original(tree_map_only(Tensor, Tensor.cpu, finished), sources)


def predict_image(network: Network, task: Task[Any, Any, Any, PredictionT], image: Pixels, *, image_id: int = 0,
                  static: bool = False) -> PredictionT:
    """The prediction for one decoded image, uint8 [H, W, 3] RGB, in its own pixels; see `predict_batch`."""
    resized, source = network_input(network.resize, image, image_id=image_id)
    return predict_batch(network, task, resized, (source,), static=static)[0]


def network_input(resize: Resize, image: Pixels, *, image_id: int = 0) -> tuple[Tensor, Source]:
    """A decoded image as a batch of one, float [1, 3, H, W], and where it lies in it."""
    size = (image.shape[0], image.shape[1])
    # Height, width, channels in memory is what channels_last means: no copy is made.
    resized = torch.from_numpy(resize.apply(image)).permute(2, 0, 1)[None]
    return resized, Source(image_id, size, resize.place(size))


def predict_files(
    network: Network,
    task: Task[Any, Any, Any, Any],
    paths: Sequence[Path],
    *,
    unreadable: Callable[[Exception], None] | None = None,
) -> Iterator[ImagePrediction]:
    """Each file's prediction, in order; the image id is the position. `network` as in `predict_batch`.

    A file that cannot be read is left out, and `unreadable` gets the ValueError or OSError that names it; without
    `unreadable` it is raised.
    """
    images = prefetched(_read(paths, unreadable), depth=_AHEAD)
    yield from prefetched(
        (ImagePrediction(image_id, path, image, predict_image(network, task, image, image_id=image_id))
         for image_id, path, image in images), depth=_AHEAD)


def predict_frames(
    network: Network, task: Task[Any, Any, Any, Any], frames: Iterable[VideoFrame], *, every: int = 1,
    first_id: int = 0,
) -> Generator[FramePrediction, None, None]:
    """Each frame of a video with a prediction, in order. Decoding, the network and whatever is done with the frames
    overlap.

    Args:
        network, task: as in `predict_batch`.
        frames: of a `Video`.
        every: so many frames apart are predicted; those between have the prediction of the last one.
        first_id: the image id of the first frame; that of others follows from their number.
    """
    def predicted() -> Iterator[FramePrediction]:
        prediction = None
        for number, moment, image in prefetched(iter(frames), depth=_AHEAD):
            now = number % every == 0
            if now:
                prediction = predict_image(network, task, image, image_id=first_id + number)
            yield FramePrediction(number, moment, image, prediction, now)

    return prefetched(predicted(), depth=_AHEAD)


def _read(
    paths: Sequence[Path], unreadable: Callable[[Exception], None] | None
) -> Iterator[tuple[int, Path, Pixels]]:
    for image_id, path in enumerate(paths):
        try:
            yield image_id, path, read_image(path)
        except (OSError, ValueError) as problem:
            if unreadable is None:
                raise
            unreadable(problem)


def find_sources(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files that paths, folders and glob patterns mean, as `find_images` finds them, and the videos, cameras
    and streams among them. FileNotFoundError for a video that is not there."""
    of_images, videos = list[str](), dict[str, str]()
    for pattern in patterns:
        if is_live(pattern):
            videos.setdefault(pattern, pattern)
            continue
        found = [pattern] if os.path.exists(pattern) or not glob.has_magic(pattern) else sorted(
            glob.glob(pattern, recursive=True))
        clips = [name for name in found if is_video(name) and not os.path.isdir(name)]
        for name in clips:
            if not os.path.exists(name):
                raise FileNotFoundError(f"no video {name}")
            videos.setdefault(os.path.abspath(name), name)
        if not clips or any(is_image(name) for name in found):
            of_images.append(pattern)
    return find_images(of_images), list(videos.values())


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and glob patterns mean, each once, in order.

    A folder means the images directly in it. ValueError where a pattern means none, FileNotFoundError for a path of
    nothing.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = [path / name for name in list_images(path)]
            others = counted_suffixes(passed_over([pattern])) or "nothing"
            problem = f"the folder {pattern} has no images directly in it ({others} else); name the folder they lie in"
        elif path.exists() or not glob.has_magic(pattern):
            files, problem = [path], ""
            if not path.exists():
                raise FileNotFoundError(f"no image, folder or pattern {pattern}")
        else:
            matched = (Path(file) for file in sorted(glob.glob(pattern, recursive=True)))
            files = [file for file in matched if is_image(file.name)]
            problem = f"no image matches {pattern}"
        if not files:
            raise ValueError(problem)
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def passed_over(patterns: Sequence[str]) -> list[Path]:
    """The files directly in the folders among `patterns` that `find_images` takes for no pictures, by their names."""
    folders = [Path(pattern) for pattern in patterns if Path(pattern).is_dir()]
    return [folder / name for folder in folders for name in list_files(folder) if not is_image(name)]


def counted_suffixes(paths: Sequence[Path]) -> str:
    """How many there are of each kind, by their suffixes, as "2 .txt, 1 .json"."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


def picture_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """Where in `folder` the annotated picture of each image goes: to a file of the same name.

    Where two images share a name, all keep the folders that tell them apart. A format that cannot be written becomes
    PNG. ValueError where a picture would replace one of the images.
    """
    pictures = [folder / (name if cv2.haveImageWriter(name.name) else f"{name}.png") for name in _distinct(images)]
    _check_free(pictures, images, what="picture")
    return pictures


def image_stems(images: Sequence[Path]) -> list[Path]:
    """What files made of the images are called, without a suffix, in folders as `picture_paths` makes them."""
    return _distinct([image.with_suffix("") if is_image(image.name) else image for image in images])


def label_paths(
    images: Sequence[Path], folder: Path, *, suffix: str = ".png", what: str = "label map"
) -> list[Path]:
    """Where in `folder` the label map of each image goes: to a PNG file of the same name, in folders as `picture_paths`
    makes them. Cityscapes' evaluation finds those of its images by these names. Other files are named likewise.

    ValueError where one would replace one of the images or another one's.
    """
    files = [folder / f"{stem}{suffix}" for stem in image_stems(images)]
    _check_distinct(files, images, what=what)
    _check_free(files, images, what=what)
    return files


def video_paths(videos: Sequence[str], folder: Path) -> list[Path]:
    """Where in `folder` the annotated video of each video, camera or stream goes: to an .mp4 file of its name.
    ValueError where it would replace one of the videos or another one's."""
    files = [folder / f"{file_stem(video)}.mp4" for video in videos]
    sources = [Path(video) for video in videos]
    _check_distinct(files, sources, what="video")
    _check_free(files, sources, what="video")
    return files


def _distinct(images: Sequence[Path]) -> list[Path]:
    """The names of the images, with the folders that tell them apart where two share one."""
    originals = [Path(os.path.abspath(image)) for image in images]
    names = [Path(image.name) for image in originals]
    # Compared as a file system does that takes A.jpg and a.jpg for the same.
    if len({str(name).casefold() for name in names}) == len(names):
        return names
    above = os.path.commonpath([image.parent for image in originals])
    return [image.relative_to(above) for image in originals]


def _check_distinct(files: Sequence[Path], images: Sequence[Path], *, what: str) -> None:
    sources: dict[str, Path] = {}
    for file, image in zip(files, images, strict=True):
        other = sources.setdefault(str(file).casefold(), image)
        if other is not image:
            raise ValueError(f"{other} and {image} would both have the {what} {file}; predict them one by one")


def _check_free(files: Sequence[Path], images: Sequence[Path], *, what: str) -> None:
    if taken := {image.resolve() for image in images} & {file.resolve() for file in files}:
        kind = "video" if what == "video" else "image"
        raise ValueError(f"the {what} would replace the {kind} {min(taken)}; choose another folder for the {what}s")
