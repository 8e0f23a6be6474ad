"""Checkpoints: written whole or not at all, and read without running anything that is in the file.

A checkpoint holds tensors and plain values only, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detseg.files import whole_file
from detseg.interfaces import Classes
from detseg.settings import Value

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run between two steps: everything that the next step depends on, and what the weights mean.

    step: optimiser steps done, of `total_steps`. ema: the state of the AveragedModel, None without averaging.
    numbers: of the last validation, which came after `validated` steps (0: none yet). best: "step" and "value" of the
    best validation, empty before the first. settings: every value of the config by its dotted name.
    """

    step: int
    total_steps: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    validated: int
    numbers: dict[str, float]
    best: dict[str, float]
    classes: Classes
    settings: dict[str, Value]
    versions: dict[str, str]

    @property
    def weights(self) -> dict[str, Tensor]:
        """What to evaluate and ship: the averaged weights where there are any."""
        return inference_weights(vars(self))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint so that at any moment the file is the old one or the new one, whole.

    OSError (a full disk, a folder that cannot be written to) leaves the old file as it was.
    """
    classes = checkpoint.classes
    state = {"format": FORMAT, **vars(checkpoint), "classes": {
        "names": list(classes.names), "source_ids": list(classes.source_ids),
        "colours": [list(colour) for colour in classes.colours]}}
    # In memory first: torch's own writer turns a full disk into a RuntimeError about positions in a zip archive.
    content = io.BytesIO()
    torch.save(state, content)
    with whole_file(path, failure="the checkpoint was not written", sync=True) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU. ValueError where the file is missing, cut short or something else."""
    content = read_tensors(path)
    if not is_checkpoint(content):
        raise ValueError(f"{path} is no checkpoint of detseg; published weights are loaded with --weights")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} has checkpoint format {content['format']}, this version of detseg reads {FORMAT}")
    try:
        rest = {name: value for name, value in content.items() if name not in ("format", "classes")}
        return Checkpoint(classes=stored_classes(content), **rest)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is a damaged checkpoint: {error}") from error


def read_tensors(path: Path) -> Any:
    """What torch.save wrote, ours or not, onto the CPU and without running anything in it.

    ValueError where the file is missing, cut short, or wants to run code.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: it was not written to its end")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} cannot be read: it was cut short, or it is no checkpoint") from error


def is_checkpoint(content: Any) -> bool:
    """Whether what `read_tensors` gave was written by `save`."""
    return isinstance(content, dict) and {"format", "model", "ema", "classes"} <= content.keys()


def inference_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a checkpoint's content, what to evaluate and ship: the averaged weights where there are any."""
    averaged = content["ema"]
    if averaged is None:
        return dict(content["model"])
    return {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}


def stored_classes(content: Mapping[str, Any]) -> Classes:
    """The classes of a checkpoint's content."""
    listed = content["classes"]
    return Classes(names=tuple(listed["names"]), source_ids=tuple(listed["source_ids"]),
                   colours=tuple((red, green, blue) for red, green, blue in listed["colours"]))


def restore_model(model: nn.Module, state: Mapping[str, Tensor], *, what: str) -> None:
    """Loads weights, all of them or none. ValueError lists what does not fit; `what` names where they come from."""
    own = model.state_dict()
    shapes = [f"{name}: {_shape(state[name])} there, {_shape(own[name])} here"
              for name in own if name in state and state[name].shape != own[name].shape]
    differences = {"missing there": [name for name in own if name not in state],
                   "unknown here": [name for name in state if name not in own], "other shapes": shapes}
    if any(differences.values()):
        lists = "\n".join(_listed(title, names) for title, names in differences.items() if names)
        raise ValueError(f"{what} does not fit this model; it is of another architecture, width or number of classes. "
                         f"Use the config and the --set it was trained with (a run folder holds both).\n{lists}")
    model.load_state_dict(state)


def check_classes(here: Classes, there: Classes, *, what: str) -> None:
    """ValueError with the difference where `what` was trained on other classes than are asked for here."""
    difference = here.difference(there)
    if difference:
        raise ValueError(f"{what} knows other classes:\n{difference}")


def _refusal(path: Path, reason: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    if named is None:
        return f"{path} was refused: it is a pickle that could run code, or a damaged file. Nothing in it was run"
    return (f"{path} was refused: it asks for {named[1]} while it is read, which could run code. Nothing in it was "
            "run. A checkpoint of detseg holds tensors and plain values only")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(title: str, names: Sequence[str]) -> str:
    rest = [f"    and {len(names) - 10} more"] if len(names) > 10 else []
    return "\n".join([f"  {title}:", *(f"    {name}" for name in names[:10]), *rest])
