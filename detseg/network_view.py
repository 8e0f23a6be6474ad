"""What a config's network makes of images: its size and its anchors, for who looks at data."""

from __future__ import annotations

import torch

from detseg.config import Config
from detseg.data.check.network import NetworkView
from detseg.ops.anchors import CachedAnchors
from detseg.resize import Resize


def network_view(config: Config) -> NetworkView:
    """The resize of a config's network, untrained, and the anchors of its head if it has some."""
    model = config.build_model(config.experiment.classes).eval()
    height, width = model.resize.size
    title = f"{width} x {height}{_about(model.resize)}, as {config.path.name} has it"
    known = [value for value in vars(model.head).values() if isinstance(value, CachedAnchors)]
    if not known:
        return NetworkView(title, model.resize)
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, height, width))
        # Every head with anchors keeps its logits map by map (AnchorRaw, RCNNRaw).
        anchors = known[0](raw.logits, (height, width))
    return NetworkView(title, model.resize, anchors.numpy())


def _about(resize: Resize) -> str:
    return "" if resize.fixed else " or so"
