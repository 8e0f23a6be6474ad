"""What a config's network makes of images: its size and its anchors, for who looks at data."""

from __future__ import annotations

from detseg.config import Config
from detseg.data.check.network import NetworkView
from detseg.model import anchored_maps
from detseg.resize import Resize


def network_view(config: Config) -> NetworkView:
    """The resize of a config's network, untrained, and the anchors of its head if it has some."""
    model = config.build_model(config.experiment.classes)
    height, width = model.resize.size
    title = f"{width} x {height}{_about(model.resize)}, as {config.path.name} has it"
    anchored = anchored_maps(model)
    if anchored is None:
        return NetworkView(title, model.resize)
    anchors, maps = anchored
    return NetworkView(title, model.resize, anchors(maps, (height, width)).numpy())


def _about(resize: Resize) -> str:
    return "" if resize.fixed else " or so"
