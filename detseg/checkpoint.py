"""Checkpoints: written atomically, and read without running anything that is in the file.

A checkpoint holds tensors and plain values only, so `torch.load(weights_only=True)` reads it. It knows what it is: it
carries the text of its config and a fingerprint of what gives the tensors their meaning.
"""

from __future__ import annotations

import ast
import difflib
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

from detseg.atomic import atomic_write
from detseg.fingerprint import differences
from detseg.settings import Value
from detseg.structures import Classes

FORMAT = 2
"""1 had neither config_text nor fingerprint, and other names in Faster R-CNN."""
_RENAMED = re.compile(r"^((?:module\.)?head\.)((?:hidden\.\d|score|box)\.(?:weight|bias))$")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run between two steps: everything that the next step depends on, and what the weights mean.

    """

    step: int
    """Optimiser steps done."""
    total_steps: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    """The state of the AveragedModel, None without averaging."""
    optimizer: dict[str, Any]
    validated: int
    """The steps after which `numbers` were measured; 0: not yet."""
    numbers: dict[str, float]
    """Of the last validation."""
    best: dict[str, float]
    """"step" and "value" of the best validation, empty before the first."""
    classes: Classes
    settings: dict[str, Value]
    """Every value of the config by its dotted name."""
    versions: dict[str, str]
    config_text: str | None = None
    """The config file's; None in files of older versions."""
    fingerprint: dict[str, str] | None = None
    """See `detseg.fingerprint`; None in files of older versions."""
    ranges: dict[str, Tensor] | None = None
    """Of a run with `qat`, by the name of the module whose output it is: [low, high] of an activation, the ends of its
    8-bit integers."""
    teacher: dict[str, str] | None = None
    """Of a run with `distill`: the teacher's fingerprint, and a digest of its weights."""
    adapters: dict[str, Tensor] | None = None
    """Of such a run: the weights of the convolutions that only the loss uses."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """What to evaluate and ship: the averaged weights where there are any."""
        return inference_weights(vars(self))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: at any moment the file is the old one or the new one.

    OSError (a full disk, a folder that cannot be written to) leaves the old file as it was.
    """
    state = {"format": FORMAT, **vars(checkpoint), "classes": checkpoint.classes.as_plain()}
    # In memory first: torch's own writer turns a full disk into a RuntimeError about positions in a zip archive.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path, failure="the checkpoint was not written", sync=True) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU. ValueError where the file is missing, cut short or something else."""
    return parsed(read_tensors(path), path)


def parsed(content: Any, path: Path) -> Checkpoint:
    """What `read_tensors` gave of a file as a checkpoint; errors as in `load`."""
    if not is_checkpoint(content):
        raise ValueError(f"{path} is no checkpoint of detseg; published weights are loaded with --weights")
    if content["format"] not in (1, FORMAT):
        raise ValueError(f"{path} has checkpoint format {content['format']}, this version of detseg reads 1 "
                         f"and {FORMAT}")
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
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} cannot be read: it was cut short, or it is no checkpoint") from error
    if is_checkpoint(content) and content["format"] == 1:
        for part in ("model", "ema"):
            if content[part] is not None:
                content[part] = {_RENAMED.sub(r"\1second_stage.\2", name): tensor
                                 for name, tensor in content[part].items()}
    return content


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
    return Classes.from_plain(content["classes"])


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


def config_differences(checkpoint: Checkpoint, text: str, fingerprint: Mapping[str, str]) -> list[str]:
    """Where a config is not the one that a checkpoint was trained with, a line each; empty where it is.

    Its fingerprint differs, by value; or its text, as a unified diff, comments, docstrings and layout aside. A
    checkpoint that carries neither has nothing to compare.
    """
    lines = [] if checkpoint.fingerprint is None else fingerprint_differences(checkpoint.fingerprint, fingerprint)
    if checkpoint.config_text is not None and code_of(checkpoint.config_text) != code_of(text):
        lines += difflib.unified_diff(
            checkpoint.config_text.splitlines(), text.splitlines(), "the config it was trained with", "the config here",
            lineterm="", n=1)
    return lines


def fingerprint_differences(there: Mapping[str, str], here: Mapping[str, str], *, of: str = "") -> list[str]:
    """Where two fingerprints differ, a line each, the first of them; `of` stands before their names."""
    lines = [f"  {of}{line}" for line in differences(there, here)]
    return lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], f"  and {len(lines) - _MOST_LINES} more"]


def not_compared(path: Path) -> str:
    """What to say of a checkpoint that carries nothing to compare a config with."""
    return (f"note: {path} was written by an older detseg and carries no fingerprint; whether the config still means "
            "the same was not compared")


_MOST_LINES = 12


def code_of(text: str) -> str:
    """A Python file without comments, docstrings and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not (
                isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))] or [ast.Pass()]
    return ast.unparse(tree)


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
