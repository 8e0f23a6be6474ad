"""Optimisers, schedules and averaging, against hand-computed numbers."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detseg.optim import EMA, SGD, AdamW, Cosine, Exponential, Freeze, OptimizerSettings, Poly, RMSprop, Schedule, Steps


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("settings", [SGD(0.1, weight_decay=0.3), RMSprop(0.1, weight_decay=0.3),
                                      AdamW(0.1, weight_decay=0.3)])
def test_every_parameter_is_in_exactly_one_group(settings: OptimizerSettings) -> None:
    model = network()
    model[2].bias.requires_grad_(False)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    for decay_norms in (True, False):
        optimizer = settings.changed("decay_norms", decay_norms).build(model)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == trainable
        decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        assert decayed == (trainable if decay_norms else {id(model[0].weight), id(model[2].weight)})
        assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.3, 0.0}


def test_a_model_without_weights_has_no_empty_group() -> None:
    assert len(SGD(0.1, decay_norms=False).build(nn.BatchNorm2d(3)).param_groups) == 1


def test_numbers_reach_torch() -> None:
    sgd = SGD(0.1, momentum=0.8, nesterov=True).build(network()).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"]) == (0.1, 0.8, True)
    rms = RMSprop(0.1, alpha=0.8, momentum=0.7, eps=0.5).build(network()).param_groups[0]
    assert (rms["lr"], rms["alpha"], rms["momentum"], rms["eps"]) == (0.1, 0.8, 0.7, 0.5)
    adam = AdamW(0.1, beta1=0.8, beta2=0.7, eps=0.5).build(network()).param_groups[0]
    assert (adam["lr"], adam["betas"], adam["eps"]) == (0.1, (0.8, 0.7), 0.5)


def test_rates_of_their_own_make_groups_of_their_own() -> None:
    model = network()
    slow = dict.fromkeys([*model[0].parameters(), *model[2].parameters()], 0.5)
    groups = SGD(0.1).build(model, slow).param_groups
    assert [(group["lr_factor"], len(group["params"])) for group in groups] == [(0.5, 4), (1.0, 2)]


def test_the_rate_of_mobilenet_v3_falls_by_a_hundredth_every_three_epochs() -> None:
    schedule = Exponential(epochs=10)
    assert [schedule.factor(2 * epoch, 20) for epoch in range(10)] == pytest.approx(
        [0.99 ** k for k in (0, 0, 0, 1, 1, 1, 2, 2, 2, 3)])


def test_noise_on_the_rate_is_an_epochs_own_and_the_same_in_every_run() -> None:
    plain = Cosine(epochs=100)
    noisy = plain.changed("noise", 0.5)
    found = [noisy.factor(step, 200) / plain.factor(step, 200) for step in range(199)]
    assert found[:84] == [1.0] * 84
    assert found[180:] == [1.0] * 19
    inside = found[84:180]
    assert all(0.5 < one < 1.5 for one in inside)
    assert inside[::2] == pytest.approx(inside[1::2])
    assert len({round(one, 6) for one in inside}) == 48
    assert found == [noisy.factor(step, 200) / plain.factor(step, 200) for step in range(199)]


def test_epsilon_is_the_root_of_tensorflows() -> None:
    assert RMSprop(0.1).eps == pytest.approx(math.sqrt(0.001), rel=1e-3)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: SGD(0.0), "lr must be above 0, got 0.0"),
    (lambda: SGD(float("nan")), "lr must be above 0, got nan"),
    (lambda: SGD(0.1, momentum=1.5), "momentum must be at least 0 and at most 1, got 1.5"),
    (lambda: SGD(0.1, weight_decay=-1), "weight_decay must be at least 0, got -1"),
    (lambda: SGD(0.1, momentum=0.0, nesterov=True), "nesterov needs a momentum above 0"),
    (lambda: RMSprop(0.1, eps=0.0), "eps must be above 0"),
    (lambda: RMSprop(0.1, alpha=2.0), "alpha must be"),
    (lambda: AdamW(0.1, beta2=-0.1), "beta2 must be"),
    (lambda: SGD(0.1, backbone_lr=0.0), "backbone_lr must be above 0, got 0.0"),
    (lambda: SGD(0.1, layer_decay=1.1), "layer_decay must be above 0 and at most 1, got 1.1"),
    (lambda: Cosine(9, noise=1.0), "noise must be at least 0 and below 1, got 1.0"),
    (lambda: Cosine(9, noise_span=(0.9, 0.4)), "noise_span is two rising shares of the epochs"),
    (lambda: Exponential(9, every=0), "every must be at least 1, got 0"),
    (lambda: Freeze(stride=-1), "stride must be at least 0, got -1"),
    (lambda: Cosine(0), "epochs must be at least 1, got 0"),
    (lambda: Cosine(1, warmup_steps=-1), "warmup_steps must be at least 0"),
    (lambda: Cosine(1, warmup_start=2.0), "warmup_start must be at least 0 and at most 1"),
    (lambda: Cosine(1, end=-0.1), "end must be"),
    (lambda: Steps(9, milestones=(5, 3)), r"milestones are rising epochs from 1 on, got \(5, 3\)"),
    (lambda: Steps(9, milestones=(3, 9)), "milestone 9 would never come: the run has 9 epochs"),
    (lambda: Steps(9, gamma=0.0), "gamma must be above 0 and at most 1"),
    (lambda: Poly(9, power=0.0), "power must be above 0"),
    (lambda: EMA(1.0), "decay must be at least 0 and below 1, got 1.0"),
])
def test_wrong_numbers(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_cosine_by_hand() -> None:
    schedule = Cosine(1, warmup_steps=4, warmup_start=0.2, end=0.1)
    assert [schedule.factor(step, 12) for step in (0, 1, 2, 4, 8)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 0.55])
    assert schedule.factor(11, 12) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)


def test_steps_by_hand() -> None:
    schedule = Steps(4, milestones=(2, 3), gamma=0.5)
    assert [schedule.factor(step, 12) for step in range(12)] == [1.0] * 6 + [0.5] * 3 + [0.25] * 3


def test_poly_by_hand() -> None:
    schedule = Poly(1, power=2.0)
    assert [schedule.factor(step, 4) for step in range(4)] == pytest.approx([1.0, 0.5625, 0.25, 0.0625])


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps is 50, but the run has only 40 steps: train longer, or shorten "
                                         r"it, for example --set schedule.warmup_steps=4"):
        Cosine(1, warmup_steps=50).factor(0, 40)


@given(st.integers(2, 1000), st.data())
def test_factors_lie_between_0_and_1_and_fall_after_the_warm_up(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    schedules: list[Schedule] = [Cosine(5, warmup_steps=warmup), Poly(5, warmup_steps=warmup),
                                 Steps(5, warmup_steps=warmup, milestones=(2, 4))]
    for schedule in schedules:
        factors = [schedule.factor(step, total) for step in range(total)]
        assert all(0 <= factor <= 1 for factor in factors)
        assert factors[:warmup] == sorted(factors[:warmup])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


class Counted(nn.Module):
    """A weight, a running statistic, a table of indices and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("table", torch.tensor([7, 100, 1001]))

    def put(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.get_buffer("mean").fill_(10 * value)


def test_averaging_with_a_ramp_by_hand() -> None:
    model = Counted()
    averaged = EMA(decay=0.25).build(model)
    expected = 1.0
    for n, value in enumerate((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)):
        model.put(value)
        averaged.update_parameters(model)
        decay = min(0.25, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
        assert averaged.module.get_parameter("weight").tolist() == pytest.approx([expected] * 2)
        assert averaged.module.get_buffer("mean").tolist() == pytest.approx([10 * expected] * 2)
    assert averaged.module.get_buffer("table").tolist() == [7, 100, 1001]
    assert (1 + 5) / (10 + 5) > 0.25, "the last step is past the ramp"


def test_averaging_without_a_ramp() -> None:
    model = Counted()
    averaged = EMA(decay=0.75, ramp=False).build(model)
    for value in (1.0, 2.0):
        model.put(value)
        averaged.update_parameters(model)
    assert averaged.module.get_parameter("weight").tolist() == [1.25, 1.25]
