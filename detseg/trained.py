"""A trained network, from its config and a weight file: what evaluation, prediction and export start from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from detseg import checkpoint
from detseg.config import Config
from detseg.model import Predictor
from detseg.weights.load import load_weights


class Trained(NamedTuple):
    """A network with its weights on the CPU, the config with the model settings it has, and where it comes from."""

    predictor: Predictor
    config: Config
    title: str


def load_trained(config: Config, file: Path) -> Trained:
    """The network of a checkpoint of ours, with its classes and model settings, or the config's with published weights.

    ValueError where the file is unreadable or belongs to another network.
    """
    content = checkpoint.read_tensors(file)
    if checkpoint.is_checkpoint(content):
        read = checkpoint.load(file)
        config = config.as_trained(read.settings)
        predictor = config.build_model(read.classes)
        checkpoint.restore_model(predictor, read.weights, what=str(file))
        return Trained(predictor, config, f"{file}, after {read.step} steps")
    predictor = config.build_model(config.experiment.classes)
    report = load_weights(predictor, str(file))
    if report.fresh:
        raise ValueError(f"{file} holds only a part of the network: {len(report.fresh)} tensors are not in it, "
                         f"{report.fresh[0]} is the first; train it with --weights {file}")
    return Trained(predictor, config, report.title)
