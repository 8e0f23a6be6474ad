"""timm's published weights by name: what comes with them, and what is refused and how. Nothing is downloaded."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import timm
import torch

from detseg import config
from detseg.model import Predictor
from detseg.structures import Classes
from detseg.weights.load import load_weights
from detseg.weights.timm import HUB

from .conftest import ROOT

SMALL = "timm/mobilenetv4_conv_small.e2400_r224_in1k"
V1 = "timm/mobilenetv1_100.ra4_e3600_r224_in1k"
CLASSES = Classes(names=("a", "b"), source_ids=(1, 2))


def _predictor(name: str = "ssdlite_v4_conv_small") -> Predictor:
    return config.load(ROOT / "configs" / f"{name}.py").build_model(CLASSES)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """timm makes new networks where it would download; those that it made."""
    create, made = timm.create_model, list[Any]()

    def create_offline(name: str, *, pretrained: bool) -> Any:
        assert pretrained
        made.append(create(name, pretrained=False))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", create_offline)
    return made


@pytest.mark.parametrize(("source", "config_name", "mean", "std"), [
    (SMALL, "ssdlite_v4_conv_small", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # timm's own pretrained_cfg of these weights says -1..1.
    (V1, "ssdlite_v1", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
])
def test_a_name_brings_its_normalisation(
    source: str, config_name: str, mean: tuple[float, ...], std: tuple[float, ...], offline: list[Any]
) -> None:
    predictor = _predictor(config_name)
    predictor.set_normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    report = load_weights(predictor, source)
    assert report.title == f"{source} (timm MobileNet)"
    assert report.renormalised == (mean[0] == 0.5)
    image = torch.tensor(mean).view(1, 3, 1, 1) * 255
    torch.testing.assert_close(image * predictor.scale + predictor.shift, torch.zeros(1, 3, 1, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        predictor.scale, 1 / (255 * torch.tensor(std).view(1, 3, 1, 1)), rtol=1e-6, atol=0)
    state = predictor.state_dict()
    assert torch.equal(state["backbone.stem.conv.weight"], offline[0].state_dict()["conv_stem.weight"])


@pytest.mark.parametrize(("source", "nearest"), [
    ("timm/mobilenetv4_conv_smal.e2400_r224_in1k", SMALL),
    ("timm/mobilenetv4_conv_small", SMALL),
    # With the same tensors as the plain one, and anti-aliasing in between.
    ("timm/mobilenetv4_conv_aa_large.e600_r384_in1k", "timm/mobilenetv4_conv_large.e600_r384_in1k"),
    ("timm/resnet50.a1_in1k", HUB),
])
def test_names_of_no_network_here(source: str, nearest: str) -> None:
    message = (f"{source}: timm publishes no such weights of a network that is one here; the nearest are ")
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as problem:
        load_weights(_predictor(), source)
    assert nearest in str(problem.value).partition("the nearest are ")[2]


def test_another_network_is_refused(offline: list[Any]) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(V1)}: this timm MobileNet file does not fit the network"):
        load_weights(_predictor(), V1)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, *, pretrained: bool) -> None:
        raise FileNotFoundError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", fail)
    message = (f"{SMALL}: could not be downloaded (no route to the hub). Fetch the file where there is a network and "
               "give its path: --weights FILE")
    with pytest.raises(ConnectionError, match=re.escape(message)):
        load_weights(_predictor(), SMALL)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = f"{SMALL}: such names need timm: pip install timm, or give the path of a file"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(_predictor(), SMALL)
