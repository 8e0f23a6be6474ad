"""The records of a COCO annotation file, without more of it in memory at a time than is looked at.

Outlines are nine tenths of such a file, and a dictionary of Python takes many times the space of its text. So the file
is mapped and not read, one pass finds where each record lies, and records are decoded a block at a time into typed
structs that have no field for what nobody asks.
"""

from __future__ import annotations

import json
import mmap
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

Scalar: TypeAlias = int | float | str | bool | UnsetType | None
"""A number in any of the forms that exporters give it; UNSET where the record lacks it."""

Record: TypeAlias = dict[str, Any]
"""One image, annotation or category as the file has it."""

_BLOCK = 1 << 14
"""Records that are decoded at a time."""

_BOM = b"\xef\xbb\xbf"

_NOT_FINITE = re.compile(rb"(?<=[\[\s:,])(NaN|-?Infinity)(?=[\s,\]}])")

_StructT = TypeVar("_StructT", bound=Struct)


class ImageRecord(Struct, gc=False):
    """Of one image what is asked for. In a file's broken records a value may be of any type."""

    id: Scalar = UNSET
    file_name: Scalar = UNSET
    coco_url: Scalar = UNSET
    height: Scalar = UNSET
    width: Scalar = UNSET


class AnnotationRecord(Struct, gc=False):
    """Of one annotation what is asked for, likewise."""

    id: Scalar = UNSET
    image_id: Scalar = UNSET
    category_id: Scalar = UNSET
    bbox: tuple[float, float, float, float] | UnsetType | None = UNSET
    area: Scalar = UNSET
    iscrowd: Scalar = UNSET


class OutlineRecord(Struct, gc=False):
    """The outline of one annotation: polygons, or run lengths in either form."""

    segmentation: tuple[tuple[float, ...], ...] | Record | UnsetType | None = UNSET


class _Stored(NamedTuple):
    """One of a file's lists; None where it has none."""

    records: Sequence[Raw] | Sequence[Record] | None
    content: mmap.mmap | bytes
    """Where the records lie."""


class _File(Struct):
    images: list[Raw] | UnsetType = UNSET
    annotations: list[Raw] | UnsetType = UNSET
    categories: list[Raw] | UnsetType = UNSET


class Records(Generic[_StructT]):
    """The records of one list of a file: each whole, or all of them as structs of one type, block by block."""

    def __init__(self, stored: _Stored, struct: type[_StructT]) -> None:
        self._stored, self._content, self._struct = stored.records or [], stored.content, struct
        self._decoder, self._list_decoder = msgspec.json.Decoder(struct), msgspec.json.Decoder(list[struct])  # type: ignore[valid-type]

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, i: int) -> Record:
        """All of record i."""
        stored = self._stored[i]
        # Not by msgspec: it is stricter than Python, and a record is asked for because something is odd about it.
        try:
            record = json.loads(bytes(stored)) if isinstance(stored, Raw) else stored
        except UnicodeDecodeError as problem:
            text = bytes(stored)[:60] if isinstance(stored, Raw) else b""
            raise ValueError(f"byte {problem.start} of record {i + 1}, {text!r}..., is no UTF-8 text; save the file as "
                             "UTF-8") from None
        return record if isinstance(record, dict) else {}

    def blocks(self) -> Iterator[list[_StructT]]:
        """All records in order. What is of another type than the struct says is there as it is."""
        for start in range(0, len(self._stored), _BLOCK):
            block = self._stored[start : start + _BLOCK]
            try:
                if not isinstance(block[0], Raw):
                    raise msgspec.ValidationError
                yield self._list_decoder.decode(b"".join((b"[", b",".join(block), b"]")))  # type: ignore[arg-type]
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield [self._decoded(i) for i in range(start, start + len(block))]
            if isinstance(self._content, mmap.mmap) and sys.platform != "win32":
                # What was read of the file counts as this process's memory until it is given back.
                self._content.madvise(mmap.MADV_DONTNEED)

    def _decoded(self, i: int) -> _StructT:
        stored = self._stored[i]
        if isinstance(stored, Raw):
            try:
                return self._decoder.decode(stored)
            except (msgspec.DecodeError, UnicodeDecodeError):
                pass
        record = self[i]
        # Of the constructor's arguments the types are not checked.
        return self._struct(**{key: record[key] for key in self._struct.__struct_fields__ if key in record})


class AnnotationFile:
    """The three lists of an annotation file.

    Raises FileNotFoundError, or a ValueError that says what is wrong with a file of which nothing can be read.
    """

    def __init__(self, path: Path) -> None:
        lists = _lists(path)
        for key, stored in lists.items():
            if stored.records is None:
                raise ValueError(
                    f"has no list of {key!r}; detection needs COCO's instances_*.json or a file like it, "
                    "with 'images', 'annotations' and 'categories'"
                )
        self.images = Records(lists["images"], ImageRecord)
        self.annotations = Records(lists["annotations"], AnnotationRecord)
        self.outlines = Records(lists["annotations"], OutlineRecord)
        """The same records as `annotations`, with their outlines alone."""
        categories = Records(lists["categories"], Struct)
        self.categories = [categories[i] for i in range(len(categories))]


def _lists(path: Path) -> dict[str, _Stored]:
    keys = ("images", "annotations", "categories")
    with path.open("rb") as file:
        # An empty file cannot be mapped.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""
    try:
        found = _found(memoryview(content)[len(_BOM) if content[:3] == _BOM else 0 :])
    except (msgspec.DecodeError, UnicodeDecodeError):
        loaded = _loaded(bytes(content))
        return {key: _Stored(loaded[key] if isinstance(loaded.get(key), list) else None, b"") for key in keys}
    return {key: _Stored(None if (records := getattr(found, key)) is UNSET else records, content) for key in keys}


def _found(content: memoryview) -> _File:
    try:
        return msgspec.json.decode(content, type=_File)
    except msgspec.DecodeError:
        # Python writes NaN and Infinity, which JSON has not. As texts they are read, and found to be no numbers. Inside
        # a text the quotes break the JSON, and the slow reader reads it.
        quoted = _NOT_FINITE.sub(lambda match: b'"' + match[1] + b'"', content)
        return msgspec.json.decode(quoted, type=_File)


def _loaded(content: bytes) -> Record:
    """By Python's own reader: it reads NaN, other encodings of Unicode, and says where a file is broken."""
    try:
        text = content.decode(json.detect_encoding(content))
        loaded = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"broken JSON at line {problem.lineno}, column {problem.colno}: {problem.msg}. "
            "Was the download or the export cut short?"
        ) from None
    except UnicodeDecodeError as problem:
        raise ValueError(f"byte {problem.start} is no UTF-8 text; save the file as UTF-8") from None
    except RecursionError:
        raise ValueError("its lists lie too deep in each other to be annotations") from None
    return loaded if isinstance(loaded, dict) else {}
