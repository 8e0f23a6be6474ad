"""The loop: it learns, it resumes bit for bit from anywhere, and it says what is wrong."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from rich.console import Console

from detseg import train
from detseg.atomic import write_text
from detseg.checkpoint import Checkpoint, load
from detseg.config import head_loss
from detseg.config import load as load_config
from detseg.data.loading import collate_training
from detseg.evaluate import draw_examples, evaluate
from detseg.interfaces import Losses, SampleKey, Term, TrainingBatch, TrainingSample
from detseg.model import Predictor
from detseg.report.console import Reporter
from detseg.structures import Classes
from detseg.train import Result, fit
from detseg.training_step import TrainingStep
from detseg.weights.load import load_weights
from tests import tiny
from tests.processes import start, start_several

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)


def run(*overrides: str, out: str = "run", resume: bool = False, **others: Any) -> Result:
    return fit(load_config(Path("brightness.py"), overrides), Path("data"), out=Path(out), resume=resume, **others)


def log_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.run.log.read_text().splitlines()]


def timeless(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in ("seconds", "images_per_second")}
            for line in lines]


def assert_same_state(one: Checkpoint, other: Checkpoint) -> None:
    """Bit for bit, everything but the settings that do not matter."""
    assert one.step == other.step
    assert one.best == other.best
    assert one.validated == other.validated
    assert one.numbers["accuracy"] == other.numbers["accuracy"]
    for mine, theirs in ((one.model, other.model), (one.ema or {}, other.ema or {})):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for key, state in one.optimizer["state"].items():
        assert torch.equal(state["momentum_buffer"], other.optimizer["state"][key]["momentum_buffer"])


def test_a_run_learns_and_leaves_everything(capsys: pytest.CaptureFixture[str]) -> None:
    result = run("schedule.epochs=30", "optimizer.lr=0.3", "model.dropout=0", "log_every=10")
    assert result.numbers["accuracy"] == 1.0
    folder = result.run.path
    assert {path.name for path in folder.iterdir()} == {
        "brightness.py", "resolved.json", "log.jsonl", "last.pt", "best.pt", "predictions.jpg", "tensorboard"}
    assert (folder / "brightness.py").read_text() == tiny.CONFIG
    resolved = json.loads((folder / "resolved.json").read_text())
    assert resolved["settings"]["optimizer.lr"] == {"value": 0.3, "from": "command line"}
    assert resolved["versions"]["torch"] == torch.__version__.partition("+")[0]

    last, best = load(result.run.last), load(result.run.best)
    assert (last.step, last.total_steps, last.validated) == (90, 90, 90)
    assert (best.step, best.best) == (result.best["step"], result.best)
    assert last.classes == tiny.CLASSES
    lines = log_of(result)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(10, 91, 10))
    assert [line["step"] for line in lines if line["kind"] == "val"] == list(range(3, 91, 3))
    assert lines[-1] == lines[-1] | {"kind": "val", "epoch": 30.0, "accuracy": 1.0, "absent": None}
    assert lines[3].keys() >= {"lr", "loss", "loss/entropy", "loss/size", "gradient_norm", "images_per_second"}
    assert any((folder / "tensorboard").iterdir())

    picture = cv2.imread(str(result.run.picture))
    assert picture is not None
    assert picture.shape[1] == 1600
    said = capsys.readouterr().out
    assert "note on the training data: one picture is odd\nnote on the validation data: one" in said
    assert "20 images to train on, 7 to validate on, 2 classes; 90 steps (3 an epoch)" in said
    assert "epoch 30: accuracy 1.000 (best 1.000)" in said
    assert "predictions: run/predictions.jpg" in said
    words = said[said.index("validation after 90 steps"):].replace("│", " ").split()
    assert words[4:].index("accuracy") < words[4:].index("1.000") < words[4:].index("absent") < words[4:].index("-")
    assert "best: run/best.pt" in said


def test_best_is_the_first_of_equals_and_evaluates_alike() -> None:
    result = run("schedule.epochs=8", "optimizer.lr=0.3")
    values = {line["step"]: line["accuracy"] for line in log_of(result) if line["kind"] == "val"}
    assert result.best["value"] == max(values.values())
    assert result.best["step"] == min(step for step, value in values.items() if value == result.best["value"])
    best = load(result.run.best)
    config = load_config(Path("brightness.py"))
    model = config.build_model(best.classes)
    model.load_state_dict(best.weights)
    index = tiny.read(Path("data"), "val").relabel(best.classes)
    dataset = tiny.Pictures(index, model.resize, augment=None, seed=0)
    for batch_size in (1, 7):
        numbers, predictions = evaluate(
            model, config.experiment.task, dataset, metric=tiny.Accuracy(index), batch_size=batch_size, workers=0,
            keep_predictions=True)
        assert numbers["accuracy"] == result.best["value"]
        assert [prediction.image_id for prediction in predictions] == list(range(100, 107))


@pytest.mark.parametrize("call", [1, 2, 5, 6, 9])
def test_ctrl_c_saves_whole_steps_and_resume_is_exact(
    call: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run(out="undisturbed")
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", call)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert signal.getsignal(signal.SIGINT) is before
    assert load(Path("run/last.pt")).step == call, "the step in which Ctrl-C came is done to its end"
    assert f"stopped after step {call} of 9, which is saved. Go on with the same command and --out run --resume" in (
        " ".join(capsys.readouterr().out.split()))
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    resumed = run(resume=True)
    assert_same_state(load(undisturbed.run.last), load(resumed.run.last))
    assert_same_state(load(undisturbed.run.best), load(resumed.run.best))
    assert timeless(log_of(resumed)) == timeless(log_of(undisturbed))


def test_an_interrupted_validation_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run(out="undisturbed")
    original = evaluate

    def interrupted(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(train, "evaluate", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (load(Path("run/last.pt")).step, load(Path("run/last.pt")).validated) == (3, 0)
    resumed = run(resume=True)
    assert_same_state(load(undisturbed.run.last), load(resumed.run.last))
    assert timeless(log_of(resumed)) == timeless(log_of(undisturbed))


def test_killed_and_resumed_is_bit_identical() -> None:
    overrides = ["schedule.epochs=40", "validate_every=10"]
    started = start("train", ["brightness.py", "--data", "data", "--out", "run", "--set", *overrides, "save_minutes=0"])
    killed_at = started.kill_when_saved(Path("run/last.pt"), step=8)
    assert 8 <= killed_at < 120
    resumed, undisturbed = run(*overrides, resume=True), run(*overrides, out="undisturbed")
    assert_same_state(load(resumed.run.last), load(undisturbed.run.last))
    assert_same_state(load(resumed.run.best), load(undisturbed.run.best))
    assert timeless(log_of(resumed)) == timeless(log_of(undisturbed))


def test_several_processes_train_and_evaluate_like_one(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.batch_norm=false", "model.dropout=0", "schedule.epochs=6"]
    weights = str(run(*overrides[:2], out="before").run.last)
    both = start_several(2, "train", ["brightness.py", "--data", "data", "--out", "two", "--weights", weights,
                                      "--set", *overrides])
    assert [one.exit_code() for one in both] == [0, 0], both[0].said()
    assert [one.said().count("tensors loaded") for one in both] == [1, 0], "one of them talks"
    _assert_like_one(weights, overrides)
    arguments = ["two", "--per-class", "--json"]
    assert main("test", [*arguments, "one.json"], capsys)[0] == 0
    for number in (2, 3):
        several = start_several(number, "test", [*arguments, f"{number}.json"])
        assert [one.exit_code() for one in several] == [0] * number, several[0].said()
        assert Path(f"{number}.json").read_bytes() == Path("one.json").read_bytes(), "7 images are no multiple"


@pytest.mark.slow
def test_torchrun_trains_like_one_process() -> None:
    overrides = ["model.batch_norm=false", "model.dropout=0", "schedule.epochs=6"]
    weights = str(run(*overrides[:2], out="before").run.last)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "detseg", "train",
               "brightness.py", "--data", "data", "--out", "two", "--weights", weights, "--set", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    _assert_like_one(weights, overrides)


def _assert_like_one(weights: str, overrides: list[str]) -> None:
    one_run = run(*overrides, out="one", initialise=lambda model: str(load_weights(model, weights)))
    two, one = load(Path("two/last.pt")), load(one_run.run.last)
    assert (two.step, two.total_steps) == (one.step, one.total_steps)
    assert two.numbers["accuracy"] == one.numbers["accuracy"]
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=1e-4, atol=1e-5)


def test_lines_logged_after_the_checkpoint_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run()
    log = Path("run/log.jsonl")
    log.write_text(log.read_text() + '{"kind": "train", "step": 5}\n{"kind": "val", "step": 4}\n{"kind": "tra')
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    steps = [(line["kind"], line["step"]) for line in log_of(run(resume=True))]
    assert steps == [("train", 1), ("train", 2), ("train", 3), ("val", 3), ("train", 4), ("train", 5), ("train", 6),
                     ("val", 6), ("train", 7), ("train", 8), ("train", 9), ("val", 9)]


def test_a_finished_run_resumes_to_its_end() -> None:
    finished = run()
    finished.run.picture.unlink()
    again = run(resume=True)
    assert again.numbers["accuracy"] == finished.numbers["accuracy"]
    assert again.run.picture.exists()
    assert timeless(log_of(again)) == timeless(log_of(finished))


def test_the_training_data_know_how_long_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    training = tiny.Pictures.training

    def watched(self: tiny.Pictures, key: SampleKey) -> TrainingSample[tiny.Labels]:
        seen.add((key.epoch, self.num_epochs))
        return training(self, key)

    monkeypatch.setattr(tiny.Pictures, "training", watched)
    run("schedule.epochs=2")
    assert seen == {(0, 2), (1, 2)}


def test_workers_change_nothing() -> None:
    assert_same_state(load(run().run.last), load(run("workers=2", out="other").run.last))


def test_the_seed_changes_the_run() -> None:
    one, other = load(run().run.last), load(run("seed=1", out="other").run.last)
    assert not torch.equal(one.model["head.linear.weight"], other.model["head.linear.weight"])


def halved(model: Predictor) -> Predictor:
    """As fake quantisation would: a layer is replaced by one that holds it."""
    model.head.linear = torch.nn.Sequential(model.head.get_submodule("linear"), torch.nn.Dropout(0.1))
    model.head.class_layers = {"linear.0": 1}
    return model


def test_a_network_is_prepared_before_a_fresh_start_and_before_resume_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """And after weights are loaded, so that these fit."""
    weights = str(run(out="before").run.last)
    text = tiny.CONFIG.replace("    log_every=1,", "    log_every=1,\n    prepare=test_fit.halved,").replace(
        "from tests import tiny", "from tests import test_fit, tiny")
    tiny.write_config(Path(), text=text)

    def initialise(model: Predictor) -> str:
        return str(load_weights(model, weights))

    undisturbed = run(out="undisturbed", initialise=initialise)
    assert "head.linear.0.weight" in load(undisturbed.run.last).model
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run(initialise=initialise)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    assert_same_state(load(run(resume=True).run.last), load(undisturbed.run.last))


def taught(network: torch.nn.Module, model: Predictor, batch: TrainingBatch[Any], /) -> Losses:
    """Distillation in miniature: the head's own loss, and features as large as a teacher's."""
    logits, features = network(batch.images, with_features=True)
    distance = (features["c1"] - 1.0).square()
    count = torch.tensor(float(distance.numel()))
    return model.head.loss(logits, batch.targets, tiny.SIZE) | {"feature": Term(distance.sum(), count)}


def test_a_config_may_bring_its_own_objective() -> None:
    text = tiny.CONFIG.replace("    log_every=1,", "    log_every=1,\n    objective=test_fit.taught,").replace(
        "from tests import tiny", "from tests import test_fit, tiny")
    tiny.write_config(Path(), text=text)
    result = run("accumulate=2", "optimizer.lr=0.1", "schedule.epochs=12")
    learned = [line["loss/feature"] for line in log_of(result) if line["kind"] == "train"]
    assert learned[-1] < 0.8 * learned[0]
    assert "taught" in load_config(Path("brightness.py")).describe()


@pytest.mark.parametrize(("overrides", "seen"), [(["accumulate=2"], 3), (["accumulate=6"], 1), ([], None)])
def test_few_images_for_batch_norm_are_pointed_out(
    overrides: list[str], seen: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*overrides, "schedule.epochs=1")
    said = capsys.readouterr().out
    assert (f"note: BatchNorm sees {seen} image{'s' if seen == 3 else ''} at a time" in said) is (seen is not None)
    assert ("BatchNorm sees" in said) is (seen is not None)
    run(*overrides, "schedule.epochs=1", "model.batch_norm=false", out="without")
    assert "BatchNorm sees" not in capsys.readouterr().out


def test_mixed_precision_trains_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run("precision=bf16-mixed", out="undisturbed")
    assert load(undisturbed.run.last).model["head.linear.weight"].dtype == torch.float32
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run("precision=bf16-mixed")
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    resumed = run("precision=bf16-mixed", resume=True)
    assert_same_state(load(resumed.run.last), load(undisturbed.run.last))
    assert not torch.equal(load(run(out="full").run.last).model["head.linear.weight"],
                           load(resumed.run.last).model["head.linear.weight"])


def test_synchronised_batch_norm_changes_nothing_in_one_process() -> None:
    one = run("sync_batch_norm=true", "ema=none", out="one")
    assert_same_state(load(one.run.last), load(run("ema=none", out="other").run.last))


def test_synchronised_batch_norm_is_refused_on_several_cpus() -> None:
    both = start_several(2, "train", ["brightness.py", "--data", "data", "--set", "sync_batch_norm=true"])
    assert [one.exit_code() for one in both] == [2, 2]
    assert all("sync_batch_norm works on GPUs only" in one.said() for one in both)


def test_no_averaging_and_no_augmentation() -> None:
    text = tiny.CONFIG.replace("augment=tiny.noise", "augment=None")
    tiny.write_config(Path(), text=text)
    result = run("ema=none", "clip_norm=none")
    assert load(result.run.last).ema is None
    assert load(result.run.best).weights.keys() == load(result.run.best).model.keys()


def example_batch(model: Predictor) -> TrainingBatch[tiny.Labels]:
    dataset = tiny.Pictures(tiny.read(Path("data"), "train").relabel(tiny.CLASSES), model.resize, augment=9.0, seed=0)
    return collate_training([dataset.training(SampleKey(0, item)) for item in (0, 2, 4, 1, 6, 8, 10, 3)],
                            task=tiny.Brightness(), fill=model.resize.fill)


def gradients(*, parts: int, **changes: Any) -> tuple[dict[str, float], list[torch.Tensor]]:
    torch.manual_seed(0)
    model = tiny.model(tiny.CLASSES, batch_norm=False, dropout=0.0)
    experiment = replace(load_config(Path("brightness.py")).experiment, batch_size=8, accumulate=parts, **changes)
    step = TrainingStep(model, experiment, fabric=Fabric(accelerator="cpu", devices=1))
    losses = step.gradient(example_batch(model))
    return losses, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def two_counts(network: torch.nn.Module, model: Predictor, batch: TrainingBatch[Any], /) -> Losses:
    """The second term is normalised by a number that the network gives."""
    logits = network(batch.images)
    sure = Term(logits.square().sum(), (logits.detach().softmax(1) > 0.4).sum())
    return model.head.loss(logits, batch.targets, tiny.SIZE) | {"sure": sure}


@pytest.mark.parametrize("changes", [{}, {"objective": two_counts}])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_give_the_gradient_of_the_whole(parts: int, changes: dict[str, Any]) -> None:
    (whole_losses, whole), (part_losses, partly) = gradients(parts=1, **changes), gradients(parts=parts, **changes)
    assert whole_losses == pytest.approx(part_losses, rel=1e-6)
    assert len(whole) == len(partly) == 4
    for one, other in zip(whole, partly, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-6
    assert whole_losses["loss"] == pytest.approx(
        sum(value for name, value in whole_losses.items() if name.startswith("loss/")))


def test_each_term_is_divided_by_its_count() -> None:
    torch.manual_seed(0)
    model = tiny.model(tiny.CLASSES, batch_norm=False, dropout=0.0)
    losses = two_counts(model, model, example_batch(model))
    assert float(losses["entropy"].count) == 6 * 2 + 2
    assert 0 < float(losses["sure"].count) < 24
    torch.autograd.backward(sum((term.sum / term.count for term in losses.values()), torch.zeros(())))
    for parameter, gradient in zip(model.parameters(), gradients(parts=1, objective=two_counts)[1], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_counting_ahead_leaves_batch_norm_and_random_numbers_alone() -> None:
    """Where counts have to be known before the first gradient, the parts are looked at twice; nobody sees it."""
    left = []
    for objective in (head_loss, two_counts):
        torch.manual_seed(0)
        model = tiny.model(tiny.CLASSES, batch_norm=True, dropout=0.3)
        experiment = replace(
            load_config(Path("brightness.py")).experiment, batch_size=8, accumulate=4, objective=objective)
        step = TrainingStep(model, experiment, fabric=Fabric(accelerator="cpu", devices=1))
        torch.manual_seed(1)
        step.gradient(example_batch(model))
        left.append([*(value.clone() for name, value in model.state_dict().items() if "norm" in name), torch.rand(3)])
    assert len(left[0]) == 6
    for one, other in zip(*left, strict=True):
        assert torch.equal(one, other)


def test_a_loss_that_is_not_a_number_stops_before_the_weights_are_touched() -> None:
    message = (r"diverged at step 0, learning rate 0.0001: loss nan, loss/entropy nan, loss/size [\d.e-]+, "
               r"gradient_norm nan. run/last.pt is from before; train with a lower rate \(--set optimizer.lr=...\) or")
    with pytest.raises(FloatingPointError, match=message):
        run("model.not_a_number=true")
    assert all(bool(value.isfinite().all()) for value in load(Path("run/last.pt")).model.values())


def test_an_existing_run_is_refused_and_another_name_is_found() -> None:
    first = run()
    kept = first.run.last.read_bytes()
    with pytest.raises(ValueError, match="run holds a run already: go on with it with --resume, or choose another"):
        run()
    assert first.run.last.read_bytes() == kept
    config = load_config(Path("brightness.py"))
    found = [str(fit(config, Path("data")).run.path) for _ in range(2)]
    assert found == ["runs/brightness", "runs/brightness-2"]
    os.utime("runs/brightness/last.pt", (0, 0))
    assert fit(config, Path("data"), resume=True).run.path == Path("runs/brightness-2")


def test_resume_without_a_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="run holds no run to resume"):
        run(resume=True)
    with pytest.raises(ValueError, match="there is no run to resume in runs/brightness"):
        fit(load_config(Path("brightness.py")), Path("data"), resume=True)


def test_resume_with_other_settings_or_data_is_an_error() -> None:
    run()
    with pytest.raises(ValueError, match=r"was started with another config or other settings; .* insist with "
                                         r"--config-changed:\n  batch_size: 6 in the run, 5 now$"):
        run("batch_size=5", resume=True)
    Path("data/size.txt").write_text("30")
    with pytest.raises(ValueError, match="  steps: 9 in the run, with these data they are 15; resume with the data"):
        run(resume=True)
    Path("data/size.txt").write_text("20")
    run("workers=1", "log_every=2", "save_minutes=1", "eval_batch_size=2", resume=True)


def test_resume_with_another_config_is_refused_and_can_be_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    before = Path("run/last.pt").read_bytes()
    text = tiny.CONFIG.replace("    return tiny.model(", "    # a remark\n    return tiny.model(")
    tiny.write_config(Path(), text=text)
    config = load_config(Path("brightness.py"))
    changed = text.replace("lr=0.1, weight", "lr=0.1, momentum=0.8, weight")
    tiny.write_config(Path(), text=changed)
    with pytest.raises(ValueError, match="insist with --config-changed") as refused:
        run(resume=True)
    message = str(refused.value)
    assert "optimizer.momentum: 0.9 in the run, 0.8 now" in message
    assert "-    optimizer=SGD(lr=0.1, weight_decay=1e-4)," in message
    assert "+    optimizer=SGD(lr=0.1, momentum=0.8, weight_decay=1e-4)," in message
    assert Path("run/last.pt").read_bytes() == before

    insisted = run(resume=True, config_changed=True)
    (note,) = [line for line in log_of(insisted) if line["kind"] == "config"]
    assert note["step"] == 4
    assert "optimizer.momentum: 0.9 in the run, 0.8 now" in note["changes"]
    assert Path("run/brightness.py").read_text() == changed
    assert load(insisted.run.last).step == 9
    assert load(insisted.run.last).config_text == changed
    assert config.text == text, "a comment alone is another text and refuses nothing:"
    tiny.write_config(Path(), text=changed.replace("# a remark", "# another remark"))
    run(resume=True)


def test_a_run_of_an_older_version_goes_on_and_says_what_was_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run(out="undisturbed")
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    content = torch.load("run/last.pt", weights_only=True)
    for name in ("config_text", "fingerprint"):
        del content[name]
    for name in ("eval_batch_size", "sync_batch_norm"):
        del content["settings"][name]
    torch.save(content | {"format": 1}, "run/last.pt")
    resumed = run(resume=True)
    assert "run/last.pt was written by an older detseg and carries no fingerprint" in capsys.readouterr().out
    assert_same_state(load(resumed.run.last), load(undisturbed.run.last))


def test_data_with_other_classes_bring_them(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Classes(names=("night", "day"), source_ids=(1, 2))
    monkeypatch.setattr(tiny, "FILE_CLASSES", own)
    assert load(run().run.last).classes == own


def test_splits_with_different_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tiny.read

    def read(folder: Path, split: Any) -> tiny.Index:
        monkeypatch.setattr(tiny, "FILE_CLASSES", Classes(names=(split, "x"), source_ids=(1, 2)))
        return original(folder, split)

    monkeypatch.setattr(tiny, "DATA", replace(tiny.DATA, read=read))
    with pytest.raises(ValueError, match=r"in data, training and validation list different classes:\n  id 1: 'train'"):
        run()


def test_batches_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="20 training images do not fill one batch of 64"):
        run("batch_size=64")
    with pytest.raises(ValueError, match=r"schedule.warmup_steps is 2, but the run has only 1 steps"):
        run("schedule.epochs=1", "batch_size=20")
    assert not Path("run").exists()


def test_weights_are_put_into_a_new_model_only(capsys: pytest.CaptureFixture[str]) -> None:
    run(initialise=lambda model: f"loaded {len(model.classes)} [b]")
    assert "loaded 3 [b]\n" in capsys.readouterr().out
    run(initialise=lambda model: f"loaded {len(model.classes)} [b]", resume=True)
    assert "loaded" not in capsys.readouterr().out


def test_examples_are_the_original_images_with_predictions() -> None:
    model = tiny.model(tiny.CLASSES)
    dataset = tiny.Pictures(tiny.read(Path("data"), "val").relabel(tiny.CLASSES), model.resize, augment=None, seed=0)
    pictures = draw_examples(model, tiny.Brightness(), dataset, number=3, threshold=0.5)
    for item, picture in zip((0, 3, 6), pictures, strict=True):
        original = dataset.original(item)
        assert original.shape == (*tiny.ORIGINAL_SIZE, 3)
        assert np.array_equal(picture[4:], original[4:])
        assert tuple(picture[0, 0]) in tiny.CLASSES.colours
    assert len(draw_examples(model, tiny.Brightness(), dataset, number=12, threshold=0.5)) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="files are limited by the kernel")
def test_a_disk_that_takes_no_more_while_saving_loses_nothing() -> None:
    undisturbed = run("validate_every=3", out="undisturbed")
    later = run("schedule.epochs=1", out="later").run.last.stat().st_size
    with pytest.raises(FloatingPointError):
        run("model.not_a_number=true", out="first")
    size = (Path("first/last.pt").stat().st_size + later) // 2
    # The first checkpoint has no optimiser state and fits, the next does not.
    started = start("train", ["brightness.py", "--data", "data", "--out", "run", "--set", "validate_every=3"],
                    largest_file=size)
    assert started.exit_code() == 1, started.said()
    assert ("error: run/last.pt: the checkpoint was not written (File too large); the one from before is"
            in started.said())
    assert sorted(path.name for path in Path("run").glob(".*")) == []
    assert load(Path("run/last.pt")).step == 0
    assert_same_state(load(run("validate_every=3", resume=True).run.last), load(undisturbed.run.last))


def test_sigterm_saves_like_ctrl_c() -> None:
    overrides = ["schedule.epochs=40", "validate_every=10"]
    started = start("train", ["brightness.py", "--data", "data", "--out", "run", "--set", *overrides])
    deadline = time.monotonic() + 120
    log = Path("run/log.jsonl")
    while not log.exists() or log.read_text().count("train") < 3:
        assert started.process.is_alive(), f"the run ended before it could be stopped: {started.said()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.process.terminate()
    assert started.exit_code() == 130
    step = load(Path("run/last.pt")).step
    assert f"stopped after step {step} of 120, which is saved" in " ".join(started.said().split())
    assert step >= 3
    assert [line["step"] for line in map(json.loads, log.read_text().splitlines())][-1] in (step, step - 1)
    resumed, undisturbed = run(*overrides, resume=True), run(*overrides, out="undisturbed")
    assert_same_state(load(resumed.run.last), load(undisturbed.run.last))


def main(name: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """A tool's exit code, output and errors."""
    import importlib

    try:
        code = int(importlib.import_module(f"detseg.commands.{name}").main([*arguments]))
    except SystemExit as exit_:
        code = int(str(exit_.code))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = main("train", ["brightness.py", "--sample", "--out", "run"], capsys)
    assert code == 0
    assert Path("data/sample/size.txt").is_file()
    assert "10 steps (5 an epoch)" in out
    everything = ["--per-class", "--reference", "--json", "out/n.json", "--results", "out/r.json"]
    expected = {"accuracy": load(Path("run/best.pt")).best["value"], "absent": None, "accuracy/bright": 0.5,
                "reference": 1.0}
    for arguments in (["brightness.py", "run/best.pt", "--data", "data"], ["run"], ["run", "--data", "data"],
                      ["run", "--static", "--batch-size", "2"]):
        code, out, errors = main("test", [*arguments, *everything], capsys)
        assert code == 0, errors
        assert "run/best.pt, after" in out
        assert ("static" in out) is ("--static" in arguments)
        assert json.loads(Path("out/n.json").read_text()) == expected
        records = json.loads(Path("out/r.json").read_text())
        assert [record["image_id"] for record in records] == list(range(100, 107))


def test_show_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["brightness.py", "--show", "--set", "optimizer.lr=0.5", "--set", "batch_size=4"]
    code, out, _ = main("train", arguments, capsys)
    assert code == 0
    assert ["optimizer.lr", "0.5", "command", "line"] in [line.split() for line in out.splitlines()]
    assert ["batch_size", "4", "command", "line"] in [line.split() for line in out.splitlines()]
    assert not Path("runs").exists()


@pytest.mark.parametrize(("tool", "arguments", "code", "message"), [
    ("train", ["nowhere.py"], 2, "error: there is no config nowhere.py"),
    ("train", ["brightness.py", "--data", "elsewhere"], 2, "error: no train data in elsewhere: looked for size.txt"),
    ("train", ["brightness.py", "--set", "batchsize=1"], 2, "error: there is no setting 'batchsize'; did you mean"),
    ("train", ["brightness.py", "--data", "data", "--sample"], 2, "not allowed with argument"),
    ("train", ["brightness.py", "--data", "data", "--weights", "no.pth"], 2, "error: no.pth: no such weight file"),
    ("train", ["brightness.py", "--data", "data", "--out", "brightness.py/run"], 1, "error: brightness.py/run: Not a"),
    ("train", ["brightness.py", "--data", "data", "--set", "model.not_a_number=true"], 1, "error: training diverged"),
    ("test", ["brightness.py", "no.pt"], 2, "error: there is no checkpoint no.pt"),
    ("test", ["data"], 2, "error: data holds no run: it has neither best.pt nor last.pt"),
    ("test", ["nowhere"], 2, "error: nowhere is no run folder; name one, or a config and a checkpoint"),
    ("test", ["brightness.py", "brightness.py"], 2, "error: brightness.py"),
])
def test_what_a_user_does_wrong(
    tool: str, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, errors = main(tool, arguments, capsys)
    assert got == code
    assert message in errors
    assert "Traceback" not in errors


def test_a_checkpoint_of_other_classes_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(tiny, "FILE_CLASSES", Classes(names=("dark", "dim"), source_ids=(3, 5)))
    code, _, errors = main("test", ["brightness.py", "run/last.pt", "--data", "data"], capsys)
    assert code == 2
    assert "error: run/last.pt knows other classes:\n  id 5: 'dim' here, 'bright' there" in errors


def test_a_checkpoint_of_another_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    text = tiny.CONFIG.replace("channels=channels", "channels=channels + 1")
    tiny.write_config(Path(), text=text)
    command = ["brightness.py", "run/last.pt", "--data", "data"]
    code, _, errors = main("test", command, capsys)
    assert code == 2
    assert "run/last.pt was trained with another config" in errors
    code, _, errors = main("test", [*command, "--config-changed"], capsys)
    assert code == 2
    assert "run/last.pt does not fit this model" in errors
    assert "head.linear.weight: 3x4 there, 3x5 here" in errors


def test_files_of_commands_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "numbers.json"
    write_text(path, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"not written \(No space left on device\); the one .*numbers.json'"):
        write_text(path, "new")
    assert {other.name: other.read_text() for other in path.parent.iterdir()} == {"numbers.json": "old"}


def test_a_terminal_gets_a_bar_and_a_file_gets_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines, bar = io.StringIO(), io.StringIO()
    for console in (Console(file=lines, width=100), Console(file=bar, width=100, force_terminal=True)):
        with Reporter(console, 40, first=0, title="step", unit="images") as report:
            for step in range(1, 41):
                now[0] += 1
                report.advance(step, speed=12.34, status=f"loss {step}")
            report.busy("validating image 3")
            report.say("epoch 1")
        now[0] = 0.0
    assert lines.getvalue().splitlines() == [
        "step 1/40  12.3 images/s  0:00:39 left  loss 1", "step 16/40  12.3 images/s  0:00:24 left  loss 16",
        "step 31/40  12.3 images/s  0:00:09 left  loss 31", "step 40/40  12.3 images/s  0:00:00 left  loss 40",
        "epoch 1"]
    assert "40/40" in bar.getvalue()
    assert "validating image 3" in bar.getvalue()
    assert "left" not in bar.getvalue()


def test_speed_is_counted_where_it_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", iter(range(0, 1000, 10)).__next__)
    text = io.StringIO()
    with Reporter(Console(file=text, width=100), 60, first=0, title="image", unit="images") as report:
        report.advance(60)
    assert "image 60/60  6.0 images/s" in text.getvalue()
