"""What a config's network makes of images: its size and its anchors, for who looks at data."""

from __future__ import annotations

from detseg.config import Config, resolve_classes
from detseg.data.box_index import BoxIndex
from detseg.data.check.network import NetworkView
from detseg.model import anchored_maps
from detseg.resize import Resize


def network_view(config: Config, index: BoxIndex | None) -> NetworkView:
    """The resize of a config's network, untrained, and the anchors of its head if it has some; as they follow from the
    annotations where the config says so (`Experiment.from_data`). index: of the training data; None where there is
    none."""
    classes, has = config.experiment.classes, "has"
    if index is not None and len(index) and not config.experiment.task.label_maps:
        classes = resolve_classes(classes, index.classes)
        suited = config.suited(index.relabel(classes), classes)
        has, config = ("chooses" if suited.choices else "has"), suited
    model = config.build_model(classes)
    height, width = model.resize.size
    title = f"{width} x {height}{_about(model.resize)}, as {config.path.name} {has} it"
    anchored = anchored_maps(model)
    if anchored is None:
        return NetworkView(title, model.resize)
    anchors, maps = anchored
    return NetworkView(title, model.resize, anchors(maps, (height, width)).numpy())


def _about(resize: Resize) -> str:
    return "" if resize.fixed else " or so"
