"""Mobile detectors and segmenters: MobileNet backbones with named feature taps, under one head a file.

    model = detseg.load("runs/ssdlite_v3_large")
    found = model("photo.jpg")
    print(found.names, found.scores, found.boxes)

`__all__` is the public surface; everything else may move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detseg.api import BestClasses, Boxes, Frame, LabelMap, Model, load

__version__ = "0.1.0"

__all__ = ["BestClasses", "Boxes", "Frame", "LabelMap", "Model", "__version__", "load"]


def __getattr__(name: str) -> object:
    """What needs torch is imported at its first use."""
    if name in __all__:
        from detseg import api

        return getattr(api, name)
    raise AttributeError(f"module 'detseg' has no attribute {name!r}")
