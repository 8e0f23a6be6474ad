"""Where what can be made or fetched again is kept between calls."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """detseg's folder of this name under $XDG_CACHE_HOME, which is ~/.cache unless it is set; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detseg" / name
