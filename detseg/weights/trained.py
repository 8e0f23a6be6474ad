"""The weights of a whole trained network, as it was trained: what quantisation-aware training starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from detseg import checkpoint as checkpoints
from detseg.checkpoint import Checkpoint
from detseg.config import Config
from detseg.fingerprint import differences, fingerprint
from detseg.interfaces import Task
from detseg.model import Predictor
from detseg.run_folder import trained_run
from detseg.settings import COMMAND_LINE
from detseg.weights.load import is_plain, load_weights, read_checkpoint


def with_trained_settings(config: Config, source: str) -> Config:
    """The config with the model settings of a checkpoint, but for those of the command line."""
    read = _checkpoint(source)
    if read is None:
        return config
    trained = config.as_trained(read.settings).model_settings
    asked = {name: entry for name, entry in config.model_settings.items() if entry.origin == COMMAND_LINE}
    return replace(config, model_settings=trained | asked)


def load_trained(
    predictor: Predictor, source: str, task: Task[Any, Any, Any, Any], *, config_changed: bool = False
) -> str:
    """Loads all weights of a network that was trained with this config, and says what it did.

    Args:
        predictor: the network, as its config builds it.
        source: a run folder or a checkpoint; or published weights of the whole network, as of `load_weights`.
        task: of its predictions.
        config_changed: although the config gives the tensors another meaning.

    ValueError where it is of other classes, where its tensors mean something else, or where a part is missing.
    """
    read = _checkpoint(source)
    if read is None:
        report = load_weights(predictor, source)
        if report.fresh:
            raise ValueError(f"{source} holds only a part of this network: {len(report.fresh)} tensors would start "
                             f"anew, {report.fresh[0]} is the first; train it without qat first, with --weights "
                             f"{source}")
        return str(report)
    checkpoints.check_classes(predictor.classes, read.classes, what=source)
    changes = [] if read.fingerprint is None else differences(read.fingerprint, fingerprint(predictor, task))
    if changes and not config_changed:
        raise ValueError("\n".join([
            f"{source} was trained with another config, under which its tensors mean something else. Name the config "
            "that it was trained with, or insist with --config-changed:", *(f"  {line}" for line in changes[:12])]))
    checkpoints.restore_model(predictor, read.weights, what=source)
    path = _path(source)
    lines = [f"{path}: the network after {read.step} steps"]
    if read.fingerprint is None:
        lines.append(checkpoints.not_compared(path))
    if changes:
        lines.append(f"note: {path} was trained with another config, which was insisted on")
    return "\n".join(lines)


def _path(source: str) -> Path:
    path = Path(source)
    return trained_run(path).weights if path.is_dir() else path


def _checkpoint(source: str) -> Checkpoint | None:
    """None for what is no checkpoint of ours."""
    path = _path(source)
    if not path.is_file() or is_plain(path):
        return None
    content = read_checkpoint(path)
    return checkpoints.parsed(content, path) if checkpoints.is_checkpoint(content) else None
