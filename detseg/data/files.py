"""The files of a data set's folder: its images by their kind, and files by the names that annotations have for them."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

from detseg.data.faults import Fault

_READ = (
    ".apng .avif .bmp .dds .dib .exr .gif .hdr .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pcx .pgm "
    ".png .pnm .ppm .psd .ras .sgi .sr .tga .tif .tiff .webp .xbm .xpm")
_NAMED_ONLY = ".arw .cr2 .cr3 .dng .heic .heif .hif .jxl .nef .orf .raf .rw2"

IMAGE_SUFFIXES = frozenset([*_READ.split(), *_NAMED_ONLY.split()])
"""How the names of pictures end, in lower case. Those of phones and cameras that are not read are among them: whoever
reads one is told what to do with it."""

_JUNK_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})

Way: TypeAlias = Literal["spelling", "place", "unicode", "case", "suffix"]

_WAYS: dict[Way, tuple[str, str]] = {  # of one file, and of several
    "spelling": ("listed with backslashes, blanks, ./ or %20 that the file does not have",) * 2,
    "place": ("found in another folder than it is listed in", "found in other folders than they are listed in"),
    "unicode": ("listed in another Unicode form than the file's name",) * 2,
    "case": ("listed in another case than the file's name",) * 2,
    "suffix": ("listed with another suffix than the file has",) * 2,
}


class ImageFiles(NamedTuple):
    """The images of a folder by their name without suffix, which is what label files share with them."""

    names: dict[str, str]
    """Stem (in recursive listings with its folders) to name, both relative to the folder, with forward slashes."""
    faults: tuple[Fault, ...]
    """Images that share a stem. None of them is in `names`: nobody knows which is meant."""


def is_image(name: str) -> bool:
    """Whether a file of this name is a picture, as its suffix says."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_files(folder: Path, *, recursive: bool = False) -> list[str]:
    """The names of all files in a folder, relative to it with forward slashes, sorted; also of its sub-folders if
    `recursive`. Hidden files and those that file managers leave are not among them. FileNotFoundError where the folder
    is not there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    return sorted(_walk(str(folder), "", recursive=recursive, above=()))


def sub_folders(folder: Path) -> list[str]:
    """The names of the folders directly in a folder, sorted, without hidden ones and those that file managers leave."""
    return sorted(path.name for path in folder.iterdir()
                  if path.is_dir() and not path.name.startswith(".") and path.name not in _JUNK_FOLDERS)


def has_images(folder: Path) -> bool:
    """Whether there is a picture in a folder, at any depth."""
    return any(is_image(name) for name in _walk(str(folder), "", recursive=True, above=()))


def list_images(folder: Path, *, recursive: bool = False) -> list[str]:
    """Of `list_files` those that are pictures."""
    return [name for name in list_files(folder, recursive=recursive) if is_image(name)]


def image_files(folder: Path, *, recursive: bool = False) -> ImageFiles:
    """The pictures of a folder by their stems. Whatever lies beside them (label files, lists) is passed over.

    Two pictures of one stem, such as a.jpg and a.png, are a fault. FileNotFoundError where the folder is not there.
    """
    by_stem: dict[str, list[str]] = defaultdict(list)
    for name in list_images(folder, recursive=recursive):
        by_stem[os.path.splitext(name)[0]].append(name)
    faults = tuple(Fault(str(folder / stem), f"there are several images of this name, {' and '.join(names)}; keep one")
                   for stem, names in by_stem.items() if len(names) > 1)
    return ImageFiles({stem: names[0] for stem, names in by_stem.items() if len(names) == 1}, faults)


def read_text(path: Path, *, guess: bool = False) -> str:
    """A text file in UTF-8, or in UTF-16 as Windows writes it, without its byte order mark.

    Other bytes are taken for Windows' Latin-1 if `guess`, for names that show by the files they find whether they are
    right; without, they are a ValueError that names the file and the way out.
    """
    content = path.read_bytes()
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content[1:2] == b"\0" or content[:1] == b"\0":
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as problem:
        if guess and encoding == "utf-8-sig":
            return content.decode("cp1252", errors="replace")
        raise ValueError(f"{path}: byte {problem.start} is no UTF-8 text; save the file as UTF-8") from None


class FileFinder:
    """Finds the files of a folder tree by the names that annotations have for them, which were written on other
    machines: with backslashes, in another case or Unicode form, under paths that exist elsewhere.

    The tree is listed once, when it is first asked for. FileNotFoundError then where the folder is not there.
    """

    def __init__(self, folder: Path, *, images_only: bool = False) -> None:
        self.folder, self.images_only = folder, images_only
        self._all: frozenset[str] | None = None
        self._by_base: dict[str, list[str]] | None = None
        self._by_stem: dict[str, list[str]] | None = None
        self._ways: dict[str, tuple[Way, str]] = {}

    def find(self, name: str) -> str | None:
        """The file that `name` means, relative to the folder with forward slashes.

        The file of exactly this name wins. Otherwise the file whose path agrees with the longest end of `name`,
        whatever the slashes, blanks around names, case and Unicode form; then a picture of the same name with another
        suffix. None where there is none, or several are as good as each other: `why_not` says which.
        """
        if name in self._listed():
            return name
        candidates, way = self._candidates(name)
        if len(candidates) != 1:
            return None
        (found,) = candidates
        if found.rpartition(".")[0] != name:  # VOC's lists name images without their suffix
            self._ways[name] = way, found
        return found

    def why_not(self, name: str) -> str:
        """Why `find` gives None: part of a message."""
        candidates, _ = self._candidates(name)
        if candidates:
            more = ", ..." if len(candidates) > 3 else ""
            return (f"{name!r} may be any of {', '.join(candidates[:3])}{more} in {self.folder}; name one by its path "
                    "from there")
        return f"there is no file {name!r} in {self.folder}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found under another name, counted: a line for each way, with an example."""
        by_way: dict[Way, list[tuple[str, str]]] = defaultdict(list)
        for name, (way, found) in self._ways.items():
            by_way[way].append((name, found))
        return tuple(f"{len(pairs)} file{'s' * (len(pairs) > 1)} {_WAYS[way][len(pairs) > 1]}, as {pairs[0][0]!r} for "
                     f"{pairs[0][1]}" for way, pairs in by_way.items())

    def _listed(self) -> frozenset[str]:
        if self._all is None:
            names = list_images if self.images_only else list_files
            self._all = frozenset(names(self.folder, recursive=True))
        return self._all

    def _candidates(self, name: str) -> tuple[list[str], Way]:
        """The files that are equally good, and by what they differ from the name."""
        if self._by_base is None or self._by_stem is None:
            self._by_base, self._by_stem = defaultdict(list), defaultdict(list)
            for file in sorted(self._listed()):
                base = folded(file.rpartition("/")[2])
                self._by_base[base].append(file)
                if is_image(base):
                    self._by_stem[os.path.splitext(base)[0]].append(file)
        parts = _parts(name)
        if not parts:
            return [], "spelling"
        base = folded(parts[-1])
        if same_base := self._by_base.get(base, []):
            found = _closest(parts, same_base)
            return found, _difference(parts, found[0])
        # A list may name images without their suffix, or with the one they had before they were converted.
        stem = os.path.splitext(base)[0] if is_image(base) else base
        others = self._by_stem.get(stem, [])
        return (_closest(parts, others) if others else []), "suffix"


def _walk(folder: str, inside: str, *, recursive: bool, above: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield inside + entry.name
            # A link to a folder above would lead round for ever.
            elif recursive and entry.is_dir() and entry.name not in _JUNK_FOLDERS and here not in above:
                yield from _walk(entry.path, f"{inside}{entry.name}/", recursive=True, above=(*above, here))


def folded(text: str) -> str:
    """Equal for names that differ in case or Unicode form alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _parts(name: str) -> list[str]:
    """The folders and the file of a path or address, without what says nothing here."""
    if "://" in name:
        name = urlsplit(name).path
    if "%" in name:
        name = unquote(name)
    parts = [part.strip() for part in name.replace("\\", "/").split("/")]
    return [part for part in parts if part not in ("", ".", "..")]


def _closest(parts: Sequence[str], files: Sequence[str]) -> list[str]:
    """Of files with an agreeing base name, those that agree best: in the longest end of the path; then those that end
    there, as the name does in this folder; then those that are written alike."""
    wanted = [folded(part) for part in parts[:-1]]

    def rank(file: str) -> tuple[int, bool, bool, bool]:
        above = file.split("/")[:-1]
        agreeing = 0
        for mine, theirs in zip(reversed(wanted), map(folded, reversed(above)), strict=False):
            if mine != theirs:
                break
            agreeing += 1
        alike = file.split("/")[-1 - agreeing :], list(parts[len(parts) - 1 - agreeing :])
        composed = [[unicodedata.normalize("NFC", part) for part in side] for side in alike]
        return agreeing, agreeing == len(above), alike[0] == alike[1], composed[0] == composed[1]

    ranks = [rank(file) for file in files]
    best = max(ranks)
    return [file for file, one in zip(files, ranks, strict=True) if one == best]


def _difference(parts: Sequence[str], file: str) -> Way:
    """By what a file's path differs from the name; of several ways the one that is most surprising."""
    have = PurePosixPath(file).parts
    common = min(len(have), len(parts))
    mine, theirs = list(parts[-common:]), list(have[-common:])
    if len(have) != len(parts) or [*map(folded, mine)] != [*map(folded, theirs)]:
        return "place"
    if mine == theirs:
        return "spelling"
    return "unicode" if [unicodedata.normalize("NFC", part) for part in mine] == [
        unicodedata.normalize("NFC", part) for part in theirs] else "case"
