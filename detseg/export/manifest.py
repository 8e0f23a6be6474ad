"""What an exported file says about itself, and by which it is refused when something about it was changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

from detseg.choices import Contract, Precision
from detseg.export.contract import Input, OutputSpec, PixelLayout, PixelType, task_from
from detseg.interfaces import Task
from detseg.resize import CentreCrop, Letterbox, Resize, Stretch, TensorFlowStretch
from detseg.structures import Classes, Size

VERSION = 1
KEY = "detseg"
"""What the manifest is called where a format keeps texts by name."""

Rule: TypeAlias = Literal["stretch", "tensorflow_stretch", "letterbox", "centre_crop"]
"""How an image becomes the input, by the name of the rule."""

_RULES: dict[Rule, type[Stretch | TensorFlowStretch | Letterbox | CentreCrop]] = {
    "stretch": Stretch, "tensorflow_stretch": TensorFlowStretch, "letterbox": Letterbox, "centre_crop": CentreCrop}


class DamagedFileError(OSError):
    """An exported file that is not what it was when it was written."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is needed to use a file without its config.

    `digest` is a checksum against accidents and edits by hand. It is no signature: who wants to can compute a new one.
    """

    detseg: str
    """The version that wrote it."""
    format: str
    contract: Contract
    precision: Precision
    task: Mapping[str, Any]
    """Its kind and its numbers, thresholds among them."""
    classes: Classes
    input: Input
    resize: Rule
    """How an image becomes the input, bilinear; with antialias for "centre_crop", for the others without."""
    fill: tuple[int, int, int]
    """The colour of letterbox's bars."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of RGB in 0..1; the normalisation is inside the file."""
    outputs: tuple[OutputSpec, ...]
    """In their order; where a format has no bytes, it gives whole numbers of its own."""
    fingerprint: Mapping[str, str]
    """Of the network, see `detseg.fingerprint`."""
    checkpoint: Mapping[str, Any]
    """"name", "sha256" of the weights as they were loaded, "step" where it is known."""
    licence: str | None
    """Of the weights, where it is known."""
    created: str
    """A date, ISO 8601."""
    tools: Mapping[str, str]
    """Versions of the packages that made it."""
    decoding: str | None = None
    """Of a file that ends with "raw": the head's decoding as a program of torch.export, base64."""
    quantization: Mapping[str, Any] | None = None
    """Of an int8 file: the images it was calibrated on, and the layers that stayed in floating point."""
    parts: int | None = None
    """In which inverted bottlenecks are computed; None: they are whole."""
    thresholds: Mapping[str, float] | None = None
    """By class: the score from which detections are shown, where `detseg analyze` has found it."""
    crop_share: float | None = None
    """Of a "centre_crop", see `CentreCrop.share`."""
    content: str = ""
    """SHA-256 of the file without its manifest."""

    @property
    def resize_rule(self) -> Resize:
        """How an image becomes the input."""
        if self.crop_share is not None:
            return CentreCrop(self.input.size, self.crop_share, fill=self.fill)
        return _RULES[self.resize](self.input.size, fill=self.fill)

    def build_task(self) -> Task[Any, Any, Any, Any]:
        """What makes final predictions of dense ones."""
        return task_from(self.task)

    def to_json(self) -> str:
        """Readable text, with the digest of everything else in it."""
        values = dataclasses.asdict(self) | {"version": VERSION, "input": self.input._asdict()}
        values["input"] |= {"name": "images", "colour_order": "rgb", "range": [0, 255]}
        return json.dumps(values | {"digest": _digest(values)}, indent=1)

    @classmethod
    def from_json(cls, text: str, *, what: str) -> Self:
        """The way back. DamagedFileError where the text was edited or cut; `what` names the file. ValueError where a
        newer detseg wrote it."""
        try:
            values: dict[str, Any] = dict(json.loads(text))
            digest, version = values.pop("digest"), values.pop("version")
        except (ValueError, KeyError, TypeError):
            raise DamagedFileError(f"{what}: its manifest is damaged; export it again") from None
        if version != VERSION:
            raise ValueError(f"{what} has a manifest of version {version}, this detseg reads {VERSION}")
        if digest != _digest(values | {"version": version}):
            raise edited(what)
        return cls(**values | {
            "classes": Classes.from_plain(values["classes"]), "input": _input(values["input"]),
            "fill": tuple(values["fill"]), "mean": tuple(values["mean"]), "std": tuple(values["std"]),
            "outputs": tuple(OutputSpec(one["name"], tuple(one["shape"]), one["dtype"]) for one in values["outputs"])})


def no_manifest(path: Path) -> DamagedFileError:
    """What is wrong with a file that should have one."""
    return DamagedFileError(f"{path} has no manifest: it was cut short, or detseg did not write it")


def edited(what: object) -> DamagedFileError:
    """What is wrong with a file whose manifest is not the one that was written."""
    return DamagedFileError(f"{what}: its manifest was edited since it was written; export it again")


def fixed_resize(resize: Resize, size: Size | None) -> tuple[Rule, Resize]:
    """The rule by which any image becomes one of a file's only size, by name and as it is.

    A resize that gives images of many sizes becomes a letterbox: the same for images of the shape of `size`, which is
    4:3 unless it is chosen, and bars around others. ValueError for a resize of your own.
    """
    size = size or resize.size
    if isinstance(resize, Stretch):
        return "stretch", dataclasses.replace(resize, size=size)
    if isinstance(resize, TensorFlowStretch):
        return "tensorflow_stretch", dataclasses.replace(resize, size=size)
    if isinstance(resize, Letterbox):
        return "letterbox", dataclasses.replace(resize, size=size)
    if isinstance(resize, CentreCrop):
        return "centre_crop", dataclasses.replace(resize, size=size)
    if not resize.fixed:
        return "letterbox", Letterbox(size, fill=resize.fill)
    raise ValueError(f"a file cannot say how {type(resize).__name__} resizes images; export knows Stretch, "
                     "TensorFlowStretch, Letterbox, CentreCrop and KeepAspect")


def crop_share(resize: Resize) -> float | None:
    """`Manifest.crop_share` of a resize."""
    return resize.share if isinstance(resize, CentreCrop) else None


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _input(values: Mapping[str, Any]) -> Input:
    assert values["pixels"] in get_args(PixelType)
    assert values["layout"] in get_args(PixelLayout)
    height, width = values["size"]
    return Input((height, width), values["pixels"], values["layout"], values["dynamic_batch"])
