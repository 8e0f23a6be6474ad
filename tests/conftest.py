"""What several test files need."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# What converters and torch import is a million objects that stay; looking through them for garbage took a sixth of the
# suite's time.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def _nobody_looks_for_garbage_in_what_stays() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images, annotations and weights; without it the test is skipped."""
    folder = Path(os.environ.get("DETSEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "coco_mini").is_dir():
        pytest.skip(f"real data not found in {folder}; set DETSEG_SHARED to the folder that has data/coco_mini")
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new current folder in which the names of `trained` lead there; `trained` is a fixture of the file
    whose tests take this one."""
    for path in trained.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
