"""Videos, cameras and streams as frames, and frames as a video, by OpenCV."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import urlsplit

import cv2

from detseg.atomic import atomic_folder
from detseg.structures import Pixels, Size

VideoSource: TypeAlias = int | str | os.PathLike[str]
"""A file, the number or the device (/dev/video0) of a camera, or the address of a stream (rtsp://, http://)."""

# FFmpeg tells on stderr what it dislikes, unless this was said before its first use.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_READ = ".3gp .avi .flv .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv"

VIDEO_SUFFIXES = frozenset(_READ.split())
"""How the names of videos end, in lower case."""

_RATES = (0.5, 1000.0)
_USUAL_RATE = 25.0
"""Frames a second, where a camera does not say how many it gives."""
_MISSING = 0.5
"""Seconds: files without an index tell their length no better."""


class VideoFrame(NamedTuple):
    """A frame of a video."""

    number: int
    """From 0."""
    time: float
    """Seconds from the first frame: by the file, or by the clock, when it was read from a camera or a stream."""
    image: Pixels


def is_live(source: str) -> bool:
    """Whether a name is that of a camera or a stream: 0, /dev/video0, rtsp://..., http://..."""
    if "://" in source:
        return True
    return source.startswith("/dev/video") or (source.isdecimal() and not Path(source).exists())


def is_video(name: str) -> bool:
    """Whether a file of this name is a video, as its suffix says."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def file_stem(source: str) -> str:
    """What files made of a source are called: of a stream without what is secret in its address."""
    if "://" in source:
        parts = urlsplit(source)
        source = os.path.splitext(f"{parts.hostname or ''}{parts.path}")[0].rstrip("/")
    elif source.isdecimal():
        return f"camera_{source}"
    else:
        source = Path(source).stem
    return re.sub(r"[^\w.-]+", "_", source).strip("_") or "stream"


def shown(source: str) -> str:
    """A source as people and files may see it: an address without its password and its query."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class Video:
    """A source of frames that is open. Use as a context, and iterate once.

    source: see `VideoSource`.

    FileNotFoundError where there is no such file or camera, OSError where a stream does not answer, ValueError for a
    file that is no video, was cut off before its index or has no frames.
    """

    def __init__(self, source: VideoSource) -> None:
        name = os.fspath(source) if isinstance(source, os.PathLike) else str(source)
        self.name, self._camera = shown(name), is_live(name) and "://" not in name
        if not is_live(name) and not os.path.isfile(name):
            raise FileNotFoundError(f"no video {name}")
        with _quiet():
            self._capture = cv2.VideoCapture(int(name) if self._camera and name.isdecimal() else name)
            opened = self._capture.isOpened()
            self._first = self._read()
        if self._first is None:
            self._capture.release()
            raise self._problem(name, opened=opened)
        self.size: Size = (self._first.shape[0], self._first.shape[1])
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate: float = rate if _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE
        """Frames a second."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count: int | None = int(count) if not self._camera and count > 0 else None
        """Frames, as the file says; None where nobody knows."""
        self.live = is_live(name) and self.count is None
        """Whether frames come when they are made, by the clock."""
        self.broken: str | None = None
        """Where it ended too early, once it has."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[VideoFrame]:
        started, number, image = time.monotonic(), 0, self._first
        self._first = None
        moment = 0.0
        while image is not None:
            if self.live:
                moment = time.monotonic() - started
            else:
                moment = max(moment, self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            yield VideoFrame(number, moment, image)
            number, image = number + 1, self._read()
        if self._camera:
            self.broken = f"the camera {self.name} gave no more pictures after {number}; these are kept"
        elif self.count is not None and number < self.count:
            length, end = self.count / self.rate, max(moment + 1 / self.rate, number / self.rate)
            if length - end > _MISSING:
                self.broken = (f"{self.name} breaks off after frame {number} of {self.count} ({end:.1f} of "
                               f"{length:.1f} s); what was read until there is kept")

    def _read(self) -> Pixels | None:
        there, image = self._capture.read()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if there else None

    def _problem(self, name: str, *, opened: bool) -> Exception:
        if "://" in name:
            return OSError(f"the stream {self.name} cannot be opened: nobody answers there, or with no video")
        if self._camera:
            camera = f"the camera {name} gives no pictures" if opened else f"there is no camera {name}"
            return FileNotFoundError(f"{camera}; it is not connected, or another program uses it")
        if opened:
            return ValueError(f"the video {name} has no frames that can be read")
        return ValueError(f"cannot read the video {name}: it is no video of a known kind, or it was cut off (the index "
                          "of an .mp4 or .mov stands at its end)")


@contextlib.contextmanager
def video_file(path: Path, *, rate: float) -> Iterator[Callable[[Pixels], None]]:
    """Gives a function that adds an RGB frame to a video; the file is there when the block ends well.

    The codec is MPEG-4's, which every OpenCV writes. It has even sides only: an odd frame repeats its last row or
    column. A frame of another size than the first is resized to it.

    OSError where it cannot be written.
    """
    assert path.suffix == ".mp4", f"{path}: other files need other codecs"
    with atomic_folder(path) as folder:
        writer: cv2.VideoWriter | None = None
        size = (0, 0)

        def add(image: Pixels) -> None:
            nonlocal writer, size
            if writer is None:
                size = (image.shape[0], image.shape[1])
                writer = cv2.VideoWriter(str(folder / path.name), cv2.VideoWriter.fourcc(*"mp4v"), rate,
                                         (size[1] + size[1] % 2, size[0] + size[0] % 2))
                if not writer.isOpened():
                    raise OSError(f"the video {path} was not written: OpenCV cannot write there {size[0]} x {size[1]} "
                                  f"pixels at {rate:g} frames a second")
            if image.shape[:2] != size:
                image = cv2.resize(image, (size[1], size[0]))
            even = cv2.copyMakeBorder(image, 0, size[0] % 2, 0, size[1] % 2, cv2.BORDER_REPLICATE)
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

        try:
            yield add
        finally:
            if writer is not None:
                writer.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV tells on stderr what it tries; what matters becomes an exception here."""
    logging = cv2.utils.logging
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)
