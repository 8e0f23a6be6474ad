"""Atomic writes: the old file or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.atomic import atomic_write, records_file, write_records, write_text

FAILURE = "the thing was not written"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_folder_is_made_and_the_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for text in ("old", "new"):
        with atomic_write(path, failure=FAILURE) as unfinished:
            unfinished.write_text(text)
            assert path.parent == unfinished.parent
        assert contents(path.parent) == {"file": text}


def fail(problem: BaseException, path: Path) -> None:
    with atomic_write(path, failure=FAILURE) as unfinished:
        unfinished.write_text("ne")
        raise problem


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_block_that_fails_leaves_what_was_there(problem: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for before in ({}, {"file": "old"}):
        for name, text in before.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(type(problem)) as raised:
            fail(problem, path)
        assert contents(tmp_path) == before
        if isinstance(raised.value, OSError):
            kept = "; the one from before is still whole" if before else ""
            assert raised.value.strerror == f"the thing was not written (No space left on device){kept}"
            assert raised.value.filename == str(path)


def test_a_failure_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    problem = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "another" / "file"))
    with pytest.raises(FileNotFoundError) as raised:
        fail(problem, tmp_path / "file")
    assert raised.value is problem
    assert contents(tmp_path) == {}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (pytest.raises(NotADirectoryError, match=r"the thing was not written \(Not a directory\): '.*file/inside'"),
          atomic_write(tmp_path / "file" / "inside", failure=FAILURE) as unfinished):
        unfinished.write_text("new")


def test_sync_waits_for_the_whole_content_before_the_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "file", list[int]()

    def fsync(descriptor: int) -> None:
        assert not path.exists()
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path, failure=FAILURE, sync=True) as unfinished:
        unfinished.write_text("12345")
    assert sizes == [5]
    with atomic_write(path, failure=FAILURE) as unfinished:
        unfinished.write_text("123")
    assert sizes == [5]
    assert contents(tmp_path) == {"file": "123"}


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "notes.md"
    for text in ("one\n\ntwo: é\n", ""):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
        assert contents(path.parent) == {"notes.md": text}
    with pytest.raises(OSError, match=r"not written \(Not a directory\): '.*notes.md/x'"):
        write_text(path / "x", "text")


@given(records=st.lists(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text())))
def test_records_read_back(records: list[dict[str, float | str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "records.json"
    write_records(path, iter(records))
    assert json.loads(path.read_text("utf-8")) == records
    assert len(path.read_text("utf-8").splitlines()) == (len(records) + 2 if records else 1)


def test_records_that_json_cannot_hold_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    write_records(path, [{"score": 0.5}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(path, [{"score": 0.75}, {"score": math.nan}])
    assert json.loads(path.read_text()) == [{"score": 0.5}]
    assert len(contents(tmp_path)) == 1
    with pytest.raises(OSError, match=r"the results were not written \(Not a directory\): '.*records.json/x'"):
        write_records(path / "x", [])


def test_records_come_in_portions(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    with records_file(path) as add:
        add([])
        add([{"a": 1}, {"a": 2}])
        assert not path.exists()
        add([{"a": 3}])
    assert path.read_text() == '[\n{"a": 1},\n{"a": 2},\n{"a": 3}\n]\n'
    with pytest.raises(ValueError, match="not JSON compliant"), records_file(path) as add:
        add([{"a": 4}, {"a": math.inf}])
    assert json.loads(path.read_text()) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert len(contents(tmp_path)) == 1
