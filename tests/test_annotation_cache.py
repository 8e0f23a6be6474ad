"""What was read of a large annotation file is kept, and only as long as the file is the same."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detseg.data import annotation_cache
from detseg.data.annotation_cache import Arrays, cached
from detseg.data.coco import CocoIndex
from detseg.data.coco_file import CocoFile, parse_coco
from detseg.data.coco_outlines import read_outlines

CONTENT: dict[str, Any] = {
    "images": [{"id": "x", "file_name": "größe\udcff.jpg", "height": 50, "width": 40}, {"id": 5}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": "x", "category_id": 9, "bbox": [1, 2, 3, 4.5], "segmentation": [[1, 2, 3, 4, 5.5, 6]]},
        {"id": 2, "image_id": "x", "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1,
         "segmentation": {"size": [50, 40], "counts": [1000, 1000]}},
        {"id": 3, "image_id": "x", "category_id": 3, "bbox": [1, 2, -3, 4], "segmentation": [[1, 2, 3]]},
    ],
}


class Reader:
    """Reads numbers, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> list[int]:
        self.calls += 1
        numbers: list[int] = json.loads(path.read_text())
        return numbers

    def cached(self, path: Path, kind: str = "numbers") -> list[int]:
        return cached(path, kind, read=self, to_arrays=lambda numbers: {"numbers": np.array(numbers)},
                      from_arrays=lambda arrays: arrays["numbers"].tolist())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotation_cache, "MIN_BYTES", 10)


def numbers(folder: Path, *values: int) -> Path:
    path = folder / "numbers.json"
    path.write_text(json.dumps(values))
    return path


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.npz"))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    assert [read.cached(path) for _ in range(3)] == [[100, 200, 300]] * 3
    assert read.calls == 1
    assert len(kept(tmp_path)) == 1
    assert read.cached(path, "other") == [100, 200, 300]
    assert (read.calls, len(kept(tmp_path))) == (2, 2)


def _longer(path: Path) -> None:
    numbers(path.parent, 1, 2, 3, 4)


def _same_size(path: Path) -> None:
    numbers(path.parent, 300, 200, 100)
    os.utime(path, ns=(0, 12345))


def _replaced(path: Path) -> None:
    other = path.with_name("other.json")
    other.write_text("[7, 8, 9, 10, 11, 12]")
    other.replace(path)


@pytest.mark.parametrize("change", [_longer, _same_size, _replaced])
def test_a_changed_file_is_read_anew(tmp_path: Path, change: Callable[[Path], None]) -> None:
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    read.cached(path)
    change(path)
    assert read.cached(path) == json.loads(path.read_text())
    assert read.calls == 2
    read.cached(path)
    assert (read.calls, len(kept(tmp_path))) == (2, 1)


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path) -> None:
    path = numbers(tmp_path, 100, 200, 300)

    def slow(path: Path) -> list[int]:
        _longer(path)
        return [1]

    cached(path, "numbers", read=slow, to_arrays=lambda _: {}, from_arrays=lambda _: [0])
    assert kept(tmp_path) == []


def test_another_version_of_the_readers_reads_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    read.cached(path)
    monkeypatch.setattr(annotation_cache, "_VERSION", -1)
    read.cached(path)
    assert read.calls == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "bytes", "other", "folder"])
def test_a_broken_cache_is_ignored(tmp_path: Path, damage: str) -> None:
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    read.cached(path)
    (place,) = kept(tmp_path)
    whole = place.read_bytes()
    if damage == "folder":
        place.unlink()
        place.mkdir()
    elif damage == "bytes":
        rng = random.Random(0)
        place.write_bytes(bytes(b ^ (rng.random() < 0.1) for b in whole))
    else:
        place.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"[1]"}[damage])
    assert read.cached(path) == [100, 200, 300]
    assert read.calls == 2


def test_every_single_damage_is_noticed(tmp_path: Path) -> None:
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    read.cached(path)
    (place,) = kept(tmp_path)
    whole = place.read_bytes()
    for at in range(0, len(whole), 7):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert read.cached(path) == [100, 200, 300], at


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    read, path = Reader(), numbers(tmp_path, 100, 200, 300)
    assert [read.cached(path) for _ in range(2)] == [[100, 200, 300]] * 2
    assert read.calls == 2


def test_small_files_are_not_kept(tmp_path: Path) -> None:
    read, path = Reader(), numbers(tmp_path, 1)
    read.cached(path)
    assert kept(tmp_path) == []


def test_a_missing_file_is_the_readers_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader().cached(tmp_path / "gone.json")


def same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
        assert value.dtype == other[name].dtype


def test_annotations_come_back_with_notes_and_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(CONTENT))
    file = parse_coco(path)
    assert (len(file.notes), len(file.faults), file.names) == (3, 2, ("größe\udcff.jpg",))
    again = CocoFile.from_arrays(file.to_arrays())
    same(again.to_arrays(), file.to_arrays())
    assert (again.classes, again.names, again.notes, again.faults) == (
        file.classes, file.names, file.notes, file.faults)

    first, outlines = CocoIndex.read(path, tmp_path / "images"), read_outlines(path)
    assert outlines.reasons.keys() == {2}
    for name in ("coco.parse_coco", "coco_outlines._parsed"):
        monkeypatch.setattr(f"detseg.data.{name}", lambda _: pytest.fail("read anew"))
    second, outlines_again = CocoIndex.read(path, tmp_path / "images"), read_outlines(path)
    assert second.boxes.coco_ground_truth() == first.boxes.coco_ground_truth()
    assert (second.boxes.notes, second.boxes.faults) == (first.boxes.notes, first.boxes.faults)
    same(outlines_again.to_arrays(), outlines.to_arrays())
    assert outlines_again.reasons == outlines.reasons
