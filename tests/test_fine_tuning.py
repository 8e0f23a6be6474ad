"""What of a backbone learns how fast: frozen layers, rates of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.backbones.mobilenet_v3 import mobilenet_v3_small
from detseg.backbones.taps import tapped
from detseg.config import Experiment
from detseg.config import load as load_config
from detseg.data.loading import collate_training
from detseg.fine_tuning import freeze, learning_rates, ordered_layers
from detseg.interfaces import Backbone, SampleKey
from detseg.model import Predictor
from detseg.optim import SGD, Freeze
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.training_step import TrainingStep
from heads.lraspp import LRASPP

from . import tiny


def _model() -> Predictor:
    backbone = mobilenet_v2(width=0.1, taps=("c3.depthwise", "c5.bottleneck"))
    return Predictor(backbone, LRASPP(backbone.specs, 3), classes=Classes(("a", "b", "c"), (1, 2, 3)),
                     resize=Stretch((64, 96)), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _somebody_elses() -> Backbone:
    """Lists in lists, as in timm, and a layer that images do not pass in the order of the file."""
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.blocks(self.stem(x)))
            return found

    return tapped(Own(), {"c3": "last"}, size=(64, 64))


@pytest.mark.parametrize(("build", "strides"), [
    (lambda: mobilenet_v2(width=0.1), [2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32, 32, 32]),
    (lambda: mobilenet_v3_small(width=0.2, output_stride=16, taps=("c5",)), [2, 4, 8, 8, *[16] * 9]),
    (_somebody_elses, [2, 4, 4, 8]),
])
def test_layers_come_in_the_order_that_images_pass_them(build: Callable[[], Backbone], strides: list[int]) -> None:
    backbone = build()
    modes = [module.training for module in backbone.modules()]
    layers = ordered_layers(backbone, torch.zeros(1, 3, 64, 64))
    assert [layer.stride for layer in layers] == strides
    assert {id(p) for layer in layers for p in layer.module.parameters()} == {id(p) for p in backbone.parameters()}
    assert [module.training for module in backbone.modules()] == modes


def test_frozen_layers_end_with_the_stride() -> None:
    model = _model()
    norms = freeze(model, Freeze(stride=4))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters()
                      if name.startswith(("backbone.stem.", *(f"backbone.blocks.{k}." for k in range(3))))}
    assert len(norms) == 1 + 2 + 3 + 3
    assert freeze(_model(), Freeze()) == []
    every = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert freeze(model, Freeze(norms=True)) == every
    with pytest.raises(ValueError, match=r"stride=1 freezes nothing: the backbone's layers have strides 2, 4, 8"):
        freeze(model, Freeze(stride=1))


def test_rates_fall_towards_the_image() -> None:
    model = _model()
    assert learning_rates(model, SGD(0.1)) == {}
    assert set(learning_rates(model, SGD(0.1, backbone_lr=0.2)).values()) == {0.2}
    factors = learning_rates(model, SGD(0.1, backbone_lr=0.5, layer_decay=0.9))
    assert factors.keys() == set(model.backbone.parameters())
    blocks = list(model.backbone.children())
    assert isinstance(blocks[1], nn.ModuleList)
    assert factors[next(blocks[1][-1].parameters())] == pytest.approx(0.5 * 0.9)
    assert factors[next(blocks[0].parameters())] == pytest.approx(0.5 * 0.9 ** (len(blocks[1]) + 1))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    tiny.begin_in(tmp_path, monkeypatch)
    plain = load_config(Path("brightness.py")).experiment
    return replace(plain, optimizer=SGD(0.1, momentum=0.0), clip_norm=None, ema=None)


def _moved(experiment: Experiment) -> dict[str, Tensor]:
    """How far one step moves each number of the network."""
    torch.manual_seed(0)
    model = tiny.model(tiny.CLASSES, batch_norm=True, dropout=0.0)
    dataset = tiny.Pictures(tiny.read(Path("data"), "train").relabel(tiny.CLASSES), model.resize, augment=9.0, seed=0)
    batch = collate_training([dataset.training(SampleKey(0, item)) for item in range(6)], task=tiny.Brightness(),
                             fill=model.resize.fill)
    step = TrainingStep(model.train(), experiment, fabric=Fabric(accelerator="cpu", devices=1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(batch, number=5, total_steps=10)
    return {key: value - before[key] for key, value in model.state_dict().items()}


def test_a_step_moves_the_backbone_at_its_rate(experiment: Experiment) -> None:
    plain = _moved(experiment)
    slow = _moved(replace(experiment, optimizer=SGD(0.1, momentum=0.0, backbone_lr=0.5)))
    learned = [key for key in plain if key.endswith(("weight", "bias"))]
    assert learned
    for key in learned:
        wanted = plain[key] * (0.5 if key.startswith("backbone.") else 1.0)
        torch.testing.assert_close(slow[key], wanted, rtol=1e-3, atol=1e-7)


def test_a_step_leaves_what_is_frozen_as_it_is(experiment: Experiment) -> None:
    frozen = _moved(replace(experiment, freeze=Freeze(stride=2)))
    statistics = _moved(replace(experiment, freeze=Freeze(norms=True)))
    assert not any(moved.any() for key, moved in frozen.items() if key.startswith("backbone."))
    assert all(moved.any() for key, moved in frozen.items() if key.startswith("head."))
    for key, moved in statistics.items():
        assert moved.any() == (("running" not in key and "num_batches" not in key)
                               if key.startswith("backbone.") else key.startswith("head.")), key
