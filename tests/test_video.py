"""Videos by OpenCV, what is wrong with them, and items made ahead by a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.predict import find_sources, video_paths
from detseg.prefetch import prefetched
from detseg.structures import Pixels, Size
from detseg.video import Video, file_stem, is_live, is_video, shown, video_file


def noise(number: int, size: Size = (36, 50)) -> list[Pixels]:
    return list(np.random.default_rng(number).integers(0, 256, (number, *size, 3), dtype=np.uint8))


def write_lossless(path: Path, images: Sequence[Pixels], *, rate: float = 25.0) -> Path:
    """FFV1 keeps every bit."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), rate, images[0].shape[1::-1])
    assert writer.isOpened()
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def cut(path: Path, share: float) -> Path:
    """A file of the first part of another's bytes."""
    broken = path.with_name(f"cut{path.suffix}")
    broken.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return broken


def read(path: Path) -> list[Pixels]:
    with Video(path) as video:
        return [frame.image for frame in video]


def test_frames_come_as_they_were_written(tmp_path: Path) -> None:
    images = noise(7)
    with Video(write_lossless(tmp_path / "a.avi", images, rate=12.5)) as video:
        assert (video.size, video.rate, video.count, video.live) == ((36, 50), 12.5, 7, False)
        frames = list(video)
    assert [frame.number for frame in frames] == list(range(7))
    assert [frame.time for frame in frames] == pytest.approx([i / 12.5 for i in range(7)])
    assert all(np.array_equal(frame.image, image) for frame, image in zip(frames, images, strict=True))
    assert video.broken is None


def test_a_video_that_breaks_off_says_where(tmp_path: Path) -> None:
    whole = write_lossless(tmp_path / "a.mkv", noise(60))
    with Video(cut(whole, 0.5)) as video:
        frames = list(video)
    assert 20 < len(frames) < 40
    assert all(np.array_equal(frame.image, image) for frame, image in zip(frames, noise(60), strict=False))
    assert video.broken == (f"{tmp_path / 'cut.mkv'} breaks off after frame {len(frames)} of 60 "
                            f"({len(frames) / 25:.1f} of 2.4 s); what was read until there is kept")


@pytest.mark.parametrize(("source", "kind", "message"), [
    ("none.mp4", FileNotFoundError, "no video none.mp4"),
    ("folder.mp4", FileNotFoundError, "no video folder.mp4"),
    ("text.mp4", ValueError, r"cannot read the video text\.mp4: it is no video of a known kind, or it was cut off"),
    ("empty.avi", ValueError, r"cannot read the video empty\.avi"),
    ("cut.mp4", ValueError, r"it was cut off \(the index of an \.mp4 or \.mov stands at its end\)"),
    ("cut.mkv", ValueError, r"the video cut\.mkv has no frames that can be read"),
    (97, FileNotFoundError, "there is no camera 97; it is not connected, or another program uses it"),
    ("97", FileNotFoundError, "there is no camera 97"),
    ("/dev/video97", FileNotFoundError, "there is no camera /dev/video97"),
    ("http://me:secret@127.0.0.1:9/live?token=1", OSError,
     r"the stream http://127\.0\.0\.1:9/live cannot be opened: nobody answers there, or with no video"),
])
def test_what_cannot_be_opened(
    source: Any, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video" * 100)
    Path("empty.avi").touch()
    Path("folder.mp4").mkdir()
    with video_file(Path("a.mp4"), rate=25) as add:
        for image in noise(5):
            add(image)
    write_lossless(Path("b.mkv"), noise(5))
    cut(Path("a.mp4"), 0.8)
    cut(Path("b.mkv"), 0.03)
    with pytest.raises(kind, match=message):
        Video(source)
    assert capfd.readouterr().err == "", "what OpenCV and FFmpeg tell is in the message"


@pytest.mark.parametrize("size", [(36, 50), (35, 51)])
def test_a_video_is_written_at_its_rate_and_size(size: Size, tmp_path: Path) -> None:
    """MPEG-4 has even sides: an odd frame repeats its last row and column. Smooth frames keep their colours about."""
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3).astype(np.uint8)
    with video_file(tmp_path / "new" / "a.mp4", rate=29.97) as add:
        for image in (ramp, ramp[::-1], cv2.resize(ramp, (80, 60))):
            add(image)
        assert not (tmp_path / "new" / "a.mp4").exists(), "only whole videos have their name"
    with Video(tmp_path / "new" / "a.mp4") as video:
        assert video.rate == pytest.approx(29.97)
        frames = [frame.image for frame in video]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
    assert [image.shape for image in frames] == [(36, 50 + size[1] // 51 * 2, 3)] * 3
    for image, wanted in zip(frames, (ramp, ramp[::-1], ramp), strict=True):
        assert np.abs(image[: size[0], : size[1]].astype(int) - wanted).mean() < 8


def test_a_failure_leaves_no_video(tmp_path: Path) -> None:
    def fail() -> None:
        with video_file(tmp_path / "a.mp4", rate=25) as add:
            add(noise(1)[0])
            raise RuntimeError("stop")

    def too_wide() -> None:
        with video_file(tmp_path / "a.mp4", rate=25) as add:
            add(np.zeros((1, 70_000, 3), np.uint8))

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with pytest.raises(OSError, match=r"the video .*a\.mp4 was not written: OpenCV cannot write there 1 x 70000"):
        too_wide()
    assert list(tmp_path.iterdir()) == []


def test_names_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [is_live(name) for name in ("0", "/dev/video0", "rtsp://x/y", "a.mp4", "photos", "x.jpg")] == [
        True, True, True, False, False, False]
    Path("0").touch()
    assert not is_live("0"), "a file of this name"
    assert is_video("A.MP4")
    assert not is_video("a.jpg")
    assert [file_stem(name) for name in ("1", "/dev/video0", "d/my clip.mp4", "rtsp://me:pw@host:8/cam/1?key=2")] == [
        "camera_1", "video0", "my_clip", "host_cam_1"]
    assert shown("rtsp://me:pw@host:8/cam/1?key=2") == "rtsp://host:8/cam/1"


def test_images_and_videos_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.mp4", "c.avi", "d.txt"):
        Path(name).touch()
    assert find_sources(["*"]) == ([Path("a.jpg")], ["b.mp4", "c.avi"])
    assert find_sources(["*.mp4", "./b.mp4", "3", "rtsp://x"]) == ([], ["b.mp4", "3", "rtsp://x"])
    with pytest.raises(FileNotFoundError, match="no video e"):
        find_sources(["e.mp4"])
    with pytest.raises(ValueError, match=r"no image matches \*\.png"):
        find_sources(["*.png"])
    assert video_paths(["d/b.avi", "0"], Path("out")) == [Path("out/b.mp4"), Path("out/camera_0.mp4")]
    with pytest.raises(ValueError, match=r"b.mp4 and b.avi would both have the video out/b.mp4; predict them"):
        video_paths(["b.mp4", "b.avi"], Path("out"))
    with pytest.raises(ValueError, match=r"the video would replace the video .*b.mp4; choose another folder"):
        video_paths(["b.mp4"], Path())


@settings(max_examples=30, deadline=None)
@given(number=st.integers(0, 20), depth=st.integers(1, 5), fails=st.booleans())
def test_items_made_ahead_are_the_same(number: int, depth: int, fails: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(number)
        if fails:
            raise KeyError("broken")

    found = list[int]()
    try:
        for item in prefetched(items(), depth=depth):
            found.append(item)
    except KeyError:
        assert fails
    else:
        assert not fails
    assert found == list(range(number))


def test_a_thread_is_ahead_but_not_far_and_ends_with_its_reader() -> None:
    made, closed = list[int](), threading.Event()

    def items() -> Iterator[int]:
        try:
            for item in range(1000):
                made.append(item)
                yield item
        finally:
            closed.set()

    ahead = prefetched(items(), depth=3)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 5, "one is used, three wait, and one is in the thread's hands"
    ahead.close()
    assert closed.is_set()
    assert not any(thread.name == "prefetched" for thread in threading.enumerate())


def test_stages_overlap() -> None:
    """Three stages of 10 ms each for 20 items take little longer than one."""
    def slow(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.01)
            yield item

    started = time.perf_counter()
    assert list(slow(prefetched(slow(prefetched(slow(iter(range(20)))))))) == list(range(20))
    assert time.perf_counter() - started < 0.45, "one after the other they take 0.6 s"
