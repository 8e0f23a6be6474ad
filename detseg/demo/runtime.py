"""ONNX Runtime for browsers: the npm package onnxruntime-web, of which the page needs three files."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from detseg.cache import cache_folder

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, as npm writes it into lock files."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The plain WebAssembly build: what runs it, and the program with and without threads."""

_PACKAGE = f"onnxruntime-web@{VERSION}"
_OTHERWISE = (f"Install Node.js, which brings npm, for a download of 33 MB; or unpack the npm package {_PACKAGE} "
              "yourself and name its folder with --runtime DIR")


def runtime_folder(given: Path | None = None) -> Path:
    """A folder with `FILES`: the given one, or the cache, which npm fills at the first use.

    Args:
        given: the package unpacked, or its folder dist; its version is not asked for.

    ValueError where the given folder has no such files or npm is missing, OSError where npm fails or its answer is not
    the package that was pinned.
    """
    if given is not None:
        for folder in (given, given / "dist", given / "package" / "dist"):
            if all((folder / name).is_file() for name in FILES):
                return folder
        raise ValueError(f"{given} is no unpacked npm package onnxruntime-web: neither it nor its folder dist holds "
                         f"{', '.join(FILES)}")
    cached = cache_folder(f"onnxruntime-web-{VERSION}")
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that it comes there by one move, whole.
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".unfinished-") as beside:
            unpacked = _unpacked(_packed(Path(beside)), Path(beside) / "files")
            if not cached.is_dir():  # another process may have been faster
                unpacked.replace(cached)
    return cached


def _packed(folder: Path) -> Path:
    """The package's archive, checked, in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"the page needs the npm package {_PACKAGE}, and there is no npm here. {_OTHERWISE}")
    done = subprocess.run([npm, "pack", _PACKAGE, "--pack-destination", str(folder)], cwd=folder, capture_output=True,
                          text=True, check=False)
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise OSError(f"npm could not fetch {_PACKAGE} ({'; '.join(lines[:3]) or 'it says nothing'}). {_OTHERWISE}")
    found = "sha512-" + base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise OSError(f"what npm fetched as {_PACKAGE} is not the package that was pinned: its checksum is {found}, "
                      f"not {INTEGRITY}. {_OTHERWISE}")
    return archives[0]


def _unpacked(archive: Path, folder: Path) -> Path:
    """`FILES` of the archive, in `folder`."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        for name in FILES:
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None, name
            (folder / name).write_bytes(content.read())
    return folder
