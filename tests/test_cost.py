"""Cost: exact counts against torchvision's networks, timing on a clock that is set by hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import cv2
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from detseg.cost import count_macs, count_parameters, threads, time_alternating


class TorchvisionSSDLite(nn.Module):
    """The network of torchvision's detector, without its resize and its suppression."""

    def __init__(self) -> None:
        super().__init__()
        detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.head(list(self.backbone(images).values()))
        return found


def test_ssdlite_costs_what_its_paper_and_torchvision_say() -> None:
    network = TorchvisionSSDLite()
    assert count_macs(network, torch.zeros(1, 3, 320, 320)) == 583_171_904
    assert count_parameters(network) == 3_440_060


@pytest.mark.parametrize(("build", "macs"), [
    (mobilenet_v2, 300_774_272), (mobilenet_v3_large, 216_589_760), (mobilenet_v3_small, 56_510_400)])
def test_classifiers_cost_what_torchvision_says(build: Callable[..., nn.Module], macs: int) -> None:
    network = build(weights=None)
    assert count_macs(network, torch.zeros(1, 3, 224, 224)) == macs
    assert count_macs(network, torch.zeros(2, 3, 224, 224, dtype=torch.float32)) == 2 * macs


class Mixed(nn.Module):
    """Takes a dict of maps and a plain value."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.linear = nn.Linear(4, 5)
        self.linear_again = self.linear

    def forward(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        assert size == (12, 20)
        maps = self.depthwise(self.norm(features["c4"]))
        out: Tensor = self.linear_again(maps.flatten(2).transpose(1, 2))
        return out


def test_hand_computed_counts_of_a_module_that_is_left_as_it_was() -> None:
    module = Mixed().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    features = {"c4": torch.ones(2, 4, 6, 10)}
    assert count_macs(module, features, (12, 20)) == 2 * 6 * 10 * (4 * 9 + 4 * 5)
    assert count_parameters(module) == (4 + 4) + (4 * 9 + 4) + (4 * 5 + 5)
    assert module.training
    assert module.norm.training
    assert features["c4"].device.type == "cpu"
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_large_inputs_cost_no_time() -> None:
    start = time.perf_counter()
    count_macs(nn.Conv2d(512, 512, 3, padding=1), torch.empty(16, 512, 1024, 1024, device="meta"))
    assert time.perf_counter() - start < 2


class Clock:
    """Time that passes only when `spend` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.ns)
        monkeypatch.setattr(time, "perf_counter", lambda: self.ns / 1e9)

    def spend(self, ms: float) -> None:
        self.ns += round(ms * 1e6)


def test_functions_take_turns_and_their_statistics_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls: list[str] = []
    collected: set[bool] = set()

    def taking(name: str, *times_ms: float) -> Callable[[], None]:
        times = iter(times_ms)

        def call() -> None:
            calls.append(name)
            collected.add(gc.isenabled())
            clock.spend(next(times))

        return call

    got = time_alternating({"slow": taking("s", 99, 99, 10, 10, 10, 10, 20, 20, 20, 20),
                            "fast": taking("f", 99, 99, 4, 4, 5, 5, 5, 5, 30, 30)}, seconds=0.160, warmup=2, block=2)

    # The rounds take 28, 30, 50 and 100 ms, and then the 160 ms are over.
    assert "".join(calls) == "ssff" + "ssff" + "ffss" + "ssff" + "ffss"
    assert got["slow"] == pytest.approx((15, 10, 20, 1.0, 8))
    assert got["fast"] == pytest.approx((5, 4, 5 + 0.7 * 25, 0.45, 8))
    assert collected == {True, False}, "collecting in the warm-up only"
    assert gc.isenabled()


def test_there_are_three_rounds_at_least_and_gc_is_restored() -> None:
    calls: list[int] = []
    assert time_alternating({"only": lambda: calls.append(1)}, seconds=0, warmup=0)["only"].runs == 3
    assert len(calls) == 3
    gc.disable()
    try:
        time_alternating({"only": lambda: None}, seconds=0)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ZeroDivisionError):
        time_alternating({"broken": lambda: 1 / 0}, seconds=0, warmup=0)
    assert gc.isenabled()


def test_what_cannot_be_timed() -> None:
    with pytest.raises(ValueError, match="there is nothing to time: give at least one function"):
        time_alternating({}, seconds=1)
    for seconds, warmup, block in ((-1, 3, 1), (1, -3, 1), (1, 3, 0)):
        with pytest.raises(ValueError, match=f"or more and block 1 or more, got {seconds}, {warmup}, {block}"):
            time_alternating({"only": lambda: None}, seconds=seconds, warmup=warmup, block=block)


def test_threads_are_restored() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    with threads(2):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
        with threads(1):
            assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    with pytest.raises(KeyError), threads(before[0] + 1):
        raise KeyError
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    with pytest.raises(ValueError, match="threads must be 1 or more, got 0"), threads(0):
        pass
