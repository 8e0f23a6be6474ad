"""What gives a network's tensors their meaning, as plain text that can be compared.

The same tensors under another meaning are the worst silent error there is: another resize, other anchors, sigmoid where
it was trained with softmax. So a checkpoint carries a fingerprint: one line for the resize, the normalisation, the
classes, each number of the post-processing, and each module of the network with everything plain that it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from detseg.interfaces import Task
from detseg.model import Predictor

_PLAIN = (bool, int, float, str, type(None))


def fingerprint(predictor: Predictor, task: Task[Any, Any, Any, Any]) -> dict[str, str]:
    """The meaning of a network as its config builds it, by name; call it before anything changes its modules."""
    classes = predictor.classes
    mean, std = predictor.normalisation
    found = {
        "resize": repr(predictor.resize),
        "normalisation": f"mean {_rounded(mean)}, std {_rounded(std)}",
        "size_divisor": str(predictor.size_divisor),
        "classes": ", ".join(f"{source_id} {name}" for source_id, name in
                             zip(classes.source_ids, classes.names, strict=True)),
        "task": type(task).__name__,
    }
    numbers = {name: value for name, value in vars(task).items() if _is_plain(value)}
    found |= {f"postprocess.{name}": repr(value) for name, value in numbers.items()}
    return found | {path: _described(module) for path, module in predictor.named_modules() if path}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Where two fingerprints differ, a line each; empty where they agree."""
    names = [*here, *(name for name in there if name not in here)]
    return [f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in names if there.get(name) != here.get(name)]


def _described(module: nn.Module) -> str:
    """The kind of a module and everything plain that it holds; of torch's own what they print of themselves."""
    kind = type(module).__name__
    if type(module).__module__.startswith("torch."):
        return f"{kind}({module.extra_repr()})"
    held = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in held.items() if _is_plain(value))})"


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, (tuple, list)):
        return all(_is_plain(one) for one in value)
    return isinstance(value, _PLAIN) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _rounded(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
