"""Networks ready for inference say what they said in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detseg.inference import fold

from . import discovery
from .test_backbones import _randomise_statistics


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
        for tap, tensor in network(images).items():
            scale = float(expected[tap].abs().max())
            torch.testing.assert_close(tensor, expected[tap], rtol=1e-4, atol=1e-4 * scale)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not norms or "hybrid" in name, "attention has one in front of it, which has no convolution to go to"


def test_a_network_that_is_ready_leaves_the_trained_one_as_it_was() -> None:
    loaded = discovery.small_config(discovery.config_of_head("ssdlite"))
    model = loaded.build_model(loaded.experiment.classes)
    ready = model.ready()
    assert ready.ready() is ready
    assert not ready.training
    assert not [parameter for parameter in ready.parameters() if parameter.requires_grad]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
