"""Quantisation-aware training: what it computes, what it leaves, that it resumes, and what it refuses."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import StochasticDepth

from detseg.api import load as load_model
from detseg.checkpoint import Checkpoint, load
from detseg.config import Config
from detseg.config import load as load_config
from detseg.layers import ConvNormAct, Norm
from detseg.model import Predictor
from detseg.optim import QAT, Cosine, Steps
from detseg.quantization.packages import check_packages
from detseg.quantization.post_training import PostTraining
from detseg.quantization.pt2e import Simulated
from detseg.quantization.training import QuantisationAwareTraining
from detseg.structures import Classes, Size
from detseg.train import Result, fit
from detseg.weights.trained import load_trained, with_trained_settings
from tests import discovery, micro, tiny
from tests.conftest import ROOT
from tests.processes import start_several
from tests.test_fit import assert_same_state

OVERRIDES = ("schedule.epochs=4", "optimizer.lr=0.02", "ema.decay=0.9")
"""Twelve steps: of these 6 with free ranges, 9 with free statistics."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)


def trained(*overrides: str) -> str:
    config = load_config(Path("brightness.py"), ["schedule.epochs=10", "optimizer.lr=0.3", *overrides])
    return str(fit(config, Path("data"), out=Path("float")).run.best)


def qat(*overrides: str, weights: str | None, out: str = "run", resume: bool = False) -> Result:
    config = load_config(Path("brightness.py"), [*OVERRIDES, *overrides], qat=True)
    initialise = None
    if weights is not None:
        config = with_trained_settings(config, weights)
        initialise = partial(load_trained, source=weights, task=config.experiment.task)
    return fit(config, Path("data"), out=Path(out), resume=resume, initialise=initialise)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert_same_state(one, other)
    assert one.ranges is not None
    assert other.ranges is not None
    assert one.ranges.keys() == other.ranges.keys()
    assert all(torch.equal(one.ranges[name], other.ranges[name]) for name in one.ranges)


def test_a_run_leaves_an_ordinary_checkpoint_and_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained()
    result = qat(weights=weights)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{weights}: the network after" in said
    assert ("qat: epochs 4, learning rate 0.02; the ranges of activations stay from step 6 on, BatchNorm's statistics "
            "from step 9 on; validation tells the score of 8-bit integers") in said
    before, last = load(Path(weights)), load(result.run.last)
    assert last.model.keys() == before.model.keys()
    assert last.ema is not None
    assert last.ema.keys() == (before.ema or {}).keys()
    assert last.settings["qat.freeze_observers"] == 0.5
    assert "torchao" in last.versions
    assert "torchao" not in before.versions
    assert before.ranges is None
    assert last.ranges is not None
    assert set(last.ranges) == {"add", "backbone.block.act", "head.mean", "head.linear"}
    assert last.ranges["add"].tolist()[1] <= 2.01, "of images of 0 to 255 normalised"
    assert last.ranges["backbone.block.act"][0] == 0, "behind a ReLU"
    assert result.numbers["accuracy"] == 1.0
    model = load_model(result.run.path)  # the float network
    assert isinstance(model.network, Predictor)
    assert "was trained with qat; its network is computed in floating point here" in model.notes[0]
    assert not load_model(Path(weights).parent).notes


def test_validation_tells_the_score_of_integers() -> None:
    """Of eight bits few are left where a range is far too large."""
    result = qat(weights=trained())
    last, config = load(result.run.last), load_config(Path("brightness.py"))
    model = config.build_model(last.classes)
    model.load_state_dict(last.weights)
    simulated = Simulated(model)
    assert last.ranges is not None
    simulated.set_ranges(last.ranges)
    index = tiny.read(Path("data"), "val").relabel(last.classes)
    dataset = tiny.Pictures(index, model.resize, augment=None, seed=0)
    images = torch.stack([dataset.evaluation(item).image for item in range(7)])
    exact = model.ready().finished(images, config.experiment.task)
    near = simulated.finished(images, config.experiment.task)
    torch.testing.assert_close(near, exact, atol=0.05, rtol=0)
    assert not torch.equal(near, exact)
    simulated.set_ranges(last.ranges | dict.fromkeys(
        ("backbone.block.act", "head.mean"), torch.tensor([0.0, 1000.0])))
    assert simulated.finished(images, config.experiment.task).unique(dim=0).shape[0] == 1
    with pytest.raises(ValueError, match=r"the activation head\.linear has no trained range: the ranges are those of"):
        simulated.set_ranges({name: value for name, value in last.ranges.items() if name != "head.linear"})


@pytest.mark.parametrize("call", [pytest.param(2, marks=pytest.mark.slow), 7, pytest.param(10, marks=pytest.mark.slow)])
def test_ctrl_c_and_resume_is_exact(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything stays, with ranges that stay, with statistics that stay."""
    weights = trained()
    undisturbed = qat(weights=weights, out="undisturbed")
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", call)
    with pytest.raises(KeyboardInterrupt):
        qat(weights=weights)
    assert load(Path("run/last.pt")).step == call
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    resumed = qat(weights=None, resume=True)
    assert_same(load(resumed.run.last), load(undisturbed.run.last))
    assert_same(load(resumed.run.best), load(undisturbed.run.best))


def test_frozen_layers_keep_weights_and_statistics() -> None:
    weights = trained("model.batch_norm=true")
    before = load(Path(weights)).weights
    for number, stride in enumerate((0, 2)):
        result = qat(f"freeze.stride={stride}", weights=weights, out=f"run{number}")
        moved = {name for name, value in load(result.run.last).model.items() if not torch.equal(value, before[name])}
        backbone = {name for name in moved if name.startswith("backbone.")}
        assert moved - backbone
        assert bool(backbone) == (stride == 0), backbone


def test_ranges_and_statistics_stay_when_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = trained()
    states = []
    for call in (6, 9):
        monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
        monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", call)
        with pytest.raises(KeyboardInterrupt):
            qat(weights=weights, out=f"until{call}")
        states.append(load(Path(f"until{call}/last.pt")))
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    states.append(load(qat(weights=weights).run.last))
    ranges = [torch.stack(list((state.ranges or {}).values())) for state in states]
    means = [state.model["backbone.block.norm.running_mean"] for state in states]
    counts = [int(state.model["backbone.block.norm.num_batches_tracked"]) for state in states]
    assert torch.equal(ranges[0], ranges[1])
    assert torch.equal(ranges[1], ranges[2])
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert counts[1] - counts[0] == 3
    assert counts[2] == counts[1]


def test_parts_see_what_the_whole_sees() -> None:
    plain = ("model.batch_norm=false", "model.dropout=0", "ema=none")
    weights = trained(*plain[:2])
    whole, parts = (load(qat(*plain[2:], accumulate, weights=weights, out=accumulate).run.last)
                    for accumulate in ("accumulate=1", "accumulate=2"))
    for name, value in (whole.ranges or {}).items():
        torch.testing.assert_close((parts.ranges or {})[name], value, rtol=1e-3, atol=1e-3)
    for name, value in whole.model.items():
        torch.testing.assert_close(parts.model[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_several_processes_see_what_one_sees() -> None:
    plain = ["model.batch_norm=false", "model.dropout=0"]
    weights = trained(*plain)
    both = start_several(2, "train", ["brightness.py", "--data", "data", "--out", "two", "--qat", "--weights", weights,
                                      "--set", *OVERRIDES])
    assert [one.exit_code() for one in both] == [0, 0], both[0].said()
    assert [one.said().count("the network after") for one in both] == [1, 0], "one of them talks"
    two, one = load(Path("two/last.pt")), load(qat(weights=weights, out="one").run.last)
    assert two.numbers["accuracy"] == one.numbers["accuracy"]
    for name, value in (one.ranges or {}).items():
        torch.testing.assert_close((two.ranges or {})[name], value, rtol=0.02, atol=0.02)
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=0.02, atol=0.01)


class OtherNorm(Predictor):
    """Two convolutions with BatchNorm whose numbers are nobody's default, a residual with stochastic depth, dropout."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        norm = Norm(momentum=0.4, eps=0.5)
        trunk = tiny.Trunk(4, batch_norm=True)
        trunk.block = nn.Sequential(
            ConvNormAct(3, 4, kernel=3, stride=2, norm=norm, activation="relu6"), _Residual(norm))
        head = tiny.BrightnessHead(trunk.specs, num_classes=3, dropout=0.5, not_a_number=False)
        super().__init__(trunk, head, classes=tiny.CLASSES, resize=tiny.Stretch(), mean=(0.5,) * 3, std=(0.25,) * 3)


class _Residual(nn.Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.inner = ConvNormAct(4, 4, kernel=1, norm=norm, activation="none")
        self.drop = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.drop(self.inner(x))
        return x + inner


def pictures(number: int) -> Tensor:
    return torch.randint(0, 256, (number, 3, *tiny.SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_without_rounding_it_is_the_network() -> None:
    """With its epsilon and momentum (torchao's patterns bring PyTorch's), its dropout and its stochastic depth."""
    model = OtherNorm().train()
    reference, images = copy.deepcopy(model), pictures(6)
    network = QuantisationAwareTraining(model, QAT(), images=images).network
    network.fake_quantise(False)
    for _ in range(2):
        outputs = []
        for one in (network, reference):
            torch.manual_seed(3)
            outputs.append(one(images))
            one.zero_grad()
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-4)


def test_a_dead_channel_leaves_numbers() -> None:
    model, images = OtherNorm().train(), pictures(6)
    norm = model.get_submodule("backbone.block.0.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[1] = 0.0
    training = QuantisationAwareTraining(model, QAT(), images=images)
    training.calibrate([images])
    output = training.network(images)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_small_weights_keep_their_eight_bits() -> None:
    """The quantiser's own smallest scale, 2^-12, would leave one step."""
    model, images = OtherNorm().eval(), pictures(2)
    linear = model.get_submodule("head.linear")
    assert isinstance(linear, nn.Linear)
    linear.weight.data *= 1e-3
    training = QuantisationAwareTraining(model, QAT(), images=images)
    training.calibrate([images])
    fake: Any = training.evaluated(model).traced.weights["head.linear.weight"]
    torch.testing.assert_close(fake.scale, linear.weight.detach().abs().amax(1) / 127)


def test_a_relu6_is_rounded_by_what_comes_out_of_it() -> None:
    """0 to 6 and not what goes in, from which the same comes out."""
    model, images = OtherNorm(), pictures(6)
    norm = model.get_submodule("backbone.block.0.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data[0], norm.bias.data[1] = -30.0, 30.0
    training = QuantisationAwareTraining(model, QAT(), images=images)
    training.calibrate([images])
    assert training.ranges()["backbone.block.0.act"].tolist() == [0.0, 6.0]


@cache
def micro_network(head: str) -> Predictor:
    return micro.network(head)[0]


def _assert_one_rounding(network: Predictor, *, tolerance: float, size: Size = micro.SIZE) -> None:
    """Training with BatchNorm frozen, what is validated, and what is lowered to a file give the same; tolerance: of the
    mean, in shares of the largest. A value on the edge of a step may fall to either side."""
    model = copy.deepcopy(network)
    images = micro.inputs(micro.scenes(2, seed=1), size).round()
    training = QuantisationAwareTraining(model, QAT(), images=images.to(torch.uint8))
    training.calibrate([images.to(torch.uint8)] * 2)
    model.eval()
    with torch.no_grad():
        trained = training.network(images.to(torch.uint8))
        simulated = training.evaluated(model).traced.raw(images)
        exact = model.ready()(images)
        made = PostTraining(model, list(torch.split(images, 1)), trained=training.ranges()).quantized()
        flat = tree_leaves(made.module(images))
    pairs = list(zip(*(tree_leaves(one) for one in (trained, simulated, exact)), flat, strict=True))
    assert pairs
    for one, two, real, last in pairs:
        largest = float(real.abs().max())
        for other in (one, last):
            assert float((other - two).abs().mean()) < tolerance * largest
        assert 0 < float((two - real).abs().mean()) < 0.05 * largest


def test_training_validation_and_file_round_alike() -> None:
    _assert_one_rounding(micro_network("ssdlite"), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", [name for name in discovery.head_classes() if name != "ssdlite"])
def test_training_validation_and_file_round_alike_in_every_head(head: str) -> None:
    _assert_one_rounding(micro_network(head), tolerance=1e-2)


@pytest.mark.slow
def test_shared_convolutions_with_norms_of_their_own_round_alike() -> None:
    """TensorFlow's RetinaNet: one convolution for five maps with five BatchNorms, and a neck with BatchNorm."""
    config = discovery.small_config(ROOT / "configs" / "retinanet_v2_256.py")
    model = config.build_model(discovery.OWN)
    micro.use(model, model.resize.size)
    _assert_one_rounding(model, size=model.resize.size, tolerance=2e-2)


def test_ranges_are_means_of_batches_and_then_follow_slowly() -> None:
    model = OtherNorm()
    training = QuantisationAwareTraining(model, QAT(freeze_observers=0.5), images=pictures(2))
    training.calibrate([torch.full((2, 3, *tiny.SIZE), 100, dtype=torch.uint8),
                        torch.full((2, 3, *tiny.SIZE), 200, dtype=torch.uint8)])
    assert _pixels(training) == [150.0, 150.0]
    for number, expected in ((0, 150.5), (1, 150.5)):
        with training.step(number, 2):
            training.network(torch.full((2, 3, *tiny.SIZE), 200, dtype=torch.uint8))
        assert _pixels(training) == [expected, expected]


def _pixels(training: QuantisationAwareTraining) -> list[float]:
    """The range of the normalised images, in 0..255."""
    return [round(255 * (0.25 * end + 0.5), 3) for end in training.ranges()["add"].tolist()]


def test_qat_takes_less_unless_it_is_told_otherwise() -> None:
    config = load_config(Path("brightness.py"), ["schedule.epochs=40"], qat=True)
    entries = config.entries()
    assert entries["optimizer.lr"][:2] == (0.001, "--qat")
    assert entries["schedule.epochs"][:2] == (40, "command line")
    assert entries["qat.freeze_batch_norm"][:2] == (0.7, "default")
    assert "qat.calibration_batches" in config.describe()
    text = tiny.CONFIG.replace("batch_size=6,", "batch_size=6, qat=QAT(freeze_observers=0.2),", 1).replace(
        "EMA, SGD", "EMA, QAT, SGD")
    tiny.write_config(Path(), text=text)
    own = load_config(Path("brightness.py"), qat=True).settings()
    assert (own["optimizer.lr"], own["schedule.epochs"], own["qat.freeze_observers"]) == (0.1, 3, 0.2), "it is one"
    assert not any(name.startswith("qat") for name in load_config(Path("brightness.py"), ["qat=none"]).settings())


@pytest.mark.parametrize(("schedule", "shorter"), [
    (Cosine(epochs=600, warmup_steps=1000), Cosine(epochs=60, warmup_steps=100)),
    (Cosine(epochs=7), Cosine(epochs=1)),
    (Steps(epochs=26, milestones=(16, 22)), Steps(epochs=2, milestones=(1,))),
    (Steps(epochs=5, milestones=(3,)), Steps(epochs=1)),
])
def test_schedules_are_shortened(schedule: Cosine | Steps, shorter: Cosine | Steps) -> None:
    assert schedule.shortened(10) == shorter


@pytest.mark.parametrize(("overrides", "message"), [
    (["precision=bf16-mixed"], "qat and precision 'bf16-mixed' do not go together: bfloat16 has 8 significant bits"),
    (["sync_batch_norm=true"], "qat and sync_batch_norm do not go together; leave one out"),
    (["qat.freeze_observers=1.5"], "freeze_observers must be at least 0 and at most 1, got 1.5"),
    (["qat.calibration_batches=0"], "calibration_batches must be at least 1, got 0"),
])
def test_settings_that_cannot_be(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Path("brightness.py"), overrides, qat=True)


def test_qat_needs_a_trained_network_of_this_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"qat starts from a trained network; train without it first, and name"):
        qat(weights=None)
    weights = trained("model.channels=5")
    assert with_trained_settings(_config(), weights).settings()["model.channels"] == 5
    assert with_trained_settings(_config("model.channels=4"), weights).settings()["model.channels"] == 4
    with pytest.raises(ValueError, match=r"(?s)was trained with another config, .*backbone.block.conv: .*Conv2d\(3, 5"):
        _initialised(_config("model.channels=4"), weights)
    config = with_trained_settings(_config(), weights)
    other = replace(config, experiment=config.experiment.changed("task", _OtherTask()))
    with pytest.raises(ValueError, match=r"(?s)with --config-changed:\n  task: Brightness there, _OtherTask here"):
        _initialised(other, weights)
    assert "which was insisted on" in _initialised(other, weights, config_changed=True)
    assert "the network after" in _initialised(config, "float"), "a run folder does as well"
    model = config.build_model(Classes(names=("dim", "bright"), source_ids=(3, 5)))
    with pytest.raises(ValueError, match="knows other classes"):
        load_trained(model, weights, config.experiment.task)
    assert not Path("run").exists(), "what is refused leaves no folder"


class _OtherTask(tiny.Brightness):
    pass


def _config(*overrides: str) -> Config:
    return load_config(Path("brightness.py"), overrides, qat=True)


def _initialised(config: Config, weights: str, *, config_changed: bool = False) -> str:
    model = config.build_model(tiny.CLASSES)
    return load_trained(model, weights, config.experiment.task, config_changed=config_changed)


def test_a_backbone_alone_is_not_trained_enough() -> None:
    config = discovery.small_config(discovery.config_of_head("ssdlite"))
    predictor = config.build_model(discovery.OWN)
    published = torch_mobilenet(predictor)
    with pytest.raises(ValueError, match=r"holds only a part of this network: \d+ tensors would start anew, head\."):
        load_trained(predictor, published, config.experiment.task)


def torch_mobilenet(predictor: Predictor) -> str:
    """A file of a backbone of torchvision's make, as wide as the network's."""
    from torchvision.models import mobilenet_v2

    torch.save(mobilenet_v2(width_mult=0.35).state_dict(), "mobilenet_v2.pth")
    return "mobilenet_v2.pth"


def test_missing_packages_are_named() -> None:
    with pytest.raises(ValueError, match=r"quantisation needs no_such_package: pip install 'detseg\[executorch\]'"):
        check_packages(("torch", "no_such_package"), extra="executorch")


def test_what_the_graph_cannot_do_is_said() -> None:
    training = QuantisationAwareTraining(OtherNorm(), QAT(), images=pictures(2))
    with pytest.raises(ValueError, match="an objective that asks for features cannot be trained with qat"):
        training.network(pictures(2), with_features=True)
    with pytest.raises(ValueError, match="a training image of 8 x 8 pixels after one of 8 x 12: qat needs them of one"):
        training.network(pictures(2)[..., :8])
    with pytest.raises(ValueError, match=r"the run has ranges of other activations than this network: add, .*versions"):
        training.load_ranges({"to": torch.tensor([0.0, 255.0])})


def test_a_network_that_branches_on_values_is_refused() -> None:
    model = OtherNorm()
    model.backbone.get_submodule("block").append(_Branching())  # type: ignore[operator]
    with pytest.raises(ValueError, match="the network cannot be recorded for quantisation: "):
        QuantisationAwareTraining(model, QAT(), images=pictures(2))


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_run_of_qat_is_resumed_as_one() -> None:
    weights = trained()
    qat(weights=weights)
    with pytest.raises(ValueError, match=r"(?s)qat.freeze_observers: 0.5 in the run, absent now"):
        fit(load_config(Path("brightness.py"), OVERRIDES), Path("data"), out=Path("run"), resume=True)
