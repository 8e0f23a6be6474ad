"""Fused convolutions say what the folded network says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from detseg import config
from detseg.inference import can_fuse, fold, fuse
from detseg.layers import ConvNormAct, Norm

from . import discovery
from .test_backbones import _randomise_statistics

pytestmark = pytest.mark.skipif(not can_fuse(torch.device("cpu")), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("name", discovery.backbones())
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_every_backbone(name: str, padding: str) -> None:
    network = discovery.backbones()[name](width=0.5, padding=padding)
    _randomise_statistics(network)
    network.eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 97).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = {tap: tensor.clone() for tap, tensor in network(images).items()}
        fold(network)
        fuse(network, images)
        assert not any(type(module) is nn.Conv2d for module in network.modules())
        for tap, tensor in network(images).items():
            scale = float(expected[tap].abs().max())
            torch.testing.assert_close(tensor, expected[tap], rtol=1e-4, atol=1e-4 * scale)
        network(torch.randn(1, 3, 33, 64))  # other sizes than the first


@pytest.mark.parametrize("path", discovery.configs(), ids=lambda path: path.stem)
def test_every_config_is_ready_and_stays_trainable(path: Path) -> None:
    loaded = config.load(path, ["model.size=96"])
    model = loaded.build_model(loaded.experiment.classes)
    _randomise_statistics(model)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        ready, folded = model.ready()(images), model.folded()(images)
    for mine, other in zip(tree_leaves(ready), tree_leaves(folded), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_networks_that_are_not_folded_keep_their_norm() -> None:
    block = nn.Sequential(ConvNormAct(3, 8, kernel=3, norm=Norm(momentum=0.1, eps=1e-5), activation="relu6"))
    fuse(block, torch.zeros(1, 3, 8, 8))
    assert isinstance(block[0].conv, nn.Conv2d)


def test_fully_connected_layers_for_any_number_of_rows() -> None:
    network = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5, bias=False))
    rows = [torch.randn(3, 20), torch.randn(2, 70, 20), torch.randn(1, 1, 20)]
    with torch.inference_mode():
        expected = [network(x) for x in rows]
        fuse(network, rows[0])
        assert not any(type(module) is nn.Linear for module in network.modules())
        for x, wanted in zip(rows, expected, strict=True):
            torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-5)
