"""Config files: reading, changing from the command line, and saying who set what."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg import settings
from detseg.config import Config, Experiment, load, resolve_classes
from detseg.data.coco import COCO_80, COCO_90
from detseg.optim import EMA, SGD, Cosine
from detseg.structures import Classes
from tests import tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny.write_config(tmp_path)


def experiment(**changes: Any) -> Experiment:
    given_: dict[str, Any] = {
        "task": tiny.Brightness(), "data": tiny.DATA, "model": tiny.model, "classes": tiny.CLASSES, "augment": None,
        "optimizer": SGD(0.1), "schedule": Cosine(3), "batch_size": 8}
    return Experiment(**given_ | changes)


def test_every_value_says_who_set_it(path: Path) -> None:
    entries = load(path, ["optimizer.lr=0.5", "model.dropout=0", "workers=none"]).entries()
    assert {name: (entries[name].value, entries[name].origin) for name in (
        "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "schedule.epochs", "schedule.end", "batch_size",
        "accumulate", "model.channels", "model.dropout", "workers", "precision", "ema.decay", "ema.ramp")} == {
            "optimizer.lr": (0.5, "command line"), "optimizer.weight_decay": (1e-4, "file"),
            "optimizer.momentum": (0.9, "default"), "schedule.epochs": (3, "file"), "schedule.end": (0.0, "default"),
            "batch_size": (6, "file"), "accumulate": (1, "default"), "model.channels": (4, "file"),
            "model.dropout": (0.0, "command line"), "workers": (None, "command line"),
            "precision": ("32-true", "default"), "ema.decay": (0.99, "file"), "ema.ramp": (True, "default")}


def test_show_prints_each_setting_on_a_line(path: Path) -> None:
    lines = [line.split() for line in load(path, ["clip_norm=none"]).describe().splitlines()]
    assert ["optimizer.lr", "0.1", "file"] in lines
    assert ["clip_norm", "none", "command", "line"] in lines
    assert ["ema.ramp", "true", "default"] in lines
    assert ["task", "Brightness", "file"] in lines
    assert ["augment", "noise", "file"] in lines
    assert ["data", "data/coco", "file"] in lines


def test_overrides_reach_the_experiment_and_the_model(path: Path) -> None:
    overrides = ["optimizer.nesterov=true", "model.channels=7", "batch_size=12", "ema=none", "schedule.epochs=9"]
    config = load(path, overrides)
    assert isinstance(config.experiment.optimizer, SGD)
    assert config.experiment.optimizer.nesterov is True
    assert config.experiment.schedule.epochs == 9
    assert config.experiment.ema is None
    assert config.experiment.batch_size == 12
    assert config.build_model(tiny.CLASSES).backbone.specs["c1"].channels == 7
    assert config.settings()["ema"] is None


def test_the_last_of_two_overrides_counts(path: Path) -> None:
    assert load(path, ["batch_size=12", "batch_size=18"]).experiment.batch_size == 18


def test_sample_changes_what_it_names_and_set_comes_after(path: Path) -> None:
    config = load(path, ["schedule.epochs=5"], sample=True)
    entries = config.entries()
    assert config.experiment.ema is None
    assert (entries["ema"].value, entries["ema"].origin) == (None, "--sample")
    assert (entries["schedule.epochs"].value, entries["schedule.epochs"].origin) == (5, "command line")
    assert entries["schedule.warmup_steps"] == (0, "default", entries["schedule.warmup_steps"].kinds)
    assert (entries["batch_size"].value, entries["batch_size"].origin) == (4, "--sample")
    assert (entries["model.channels"].value, entries["model.channels"].origin) == (5, "--sample")
    assert entries["optimizer.lr"].origin == "file"
    assert load(path, sample=True).entries()["schedule.epochs"].origin == "--sample"


@pytest.mark.parametrize(("override", "message"), [
    ("optimizer.lrr=1", r"no setting 'optimizer.lrr'; did you mean optimizer.lr\?\nthese can be set: accumulate"),
    ("model.chanels=1", r"did you mean model.channels\?"),
    ("nothing=1", r"no setting 'nothing'\nthese can be set"),
    ("optimizer=1", r"no setting 'optimizer'; did you mean"),
    ("sample.batch_size=1", r"no setting 'sample.batch_size'"),
    ("optimizer.lr=fast", r"optimizer.lr takes a number, got 'fast'"),
    ("optimizer.lr=nan", r"optimizer.lr takes a number, got 'nan'"),
    ("optimizer.lr=none", r"optimizer.lr takes a number, got 'none'"),
    ("batch_size=4.5", r"batch_size takes a whole number, got '4.5'"),
    ("batch_size=true", r"batch_size takes a whole number, got 'true'"),
    ("clip_norm=x", r"clip_norm takes a number or none, got 'x'"),
    ("optimizer.nesterov=1", r"optimizer.nesterov takes true or false, got '1'"),
    ("precision=16-mixed", r"precision takes one of 32-true, bf16-mixed, got '16-mixed'; did you mean bf16-mixed\?"),
    ("precision=none", r"precision takes one of 32-true, bf16-mixed, got 'none'"),
    ("eval_batch_size=0", r"eval_batch_size must be at least 1, got 0"),
    ("batch_size", r"--set takes name=value, got 'batch_size'"),
    ("optimizer.lr=-1", r"--set optimizer.lr=-1: lr must be above 0, got -1"),
    ("batch_size=0", r"batch_size must be at least 1, got 0"),
])
def test_wrong_overrides(path: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(path, [override])


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none())
def test_values_come_back_from_their_text(value: settings.Value) -> None:
    kinds = frozenset({type(value)})
    if value is None:
        kinds |= {int}
    assert settings.parse_value("x", str(value), kinds=kinds) == value


@pytest.mark.parametrize(("text", "message"), [
    ("experiment = (", r"brightness.py, line 1: '\(' was never closed: experiment = \("),
    ("\nimport no_such_module", r"brightness.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
    ("from detseg.optim import SGD\nSGD(lrr=1)", r"brightness.py, line 2: TypeError: .*unexpected .* 'lrr'"),
    ("from detseg.optim import SGD\nSGD(lr=-1)", r"brightness.py, line 2: ValueError: lr must be above 0, got -1"),
    ("x = 1", r"brightness.py: leaves no `experiment` behind; a config ends with"),
    ("experiment = 3", r"brightness.py: its `experiment` is 3; a config ends with"),
    (tiny.CONFIG.replace("channels: int = 4", "channels: int"), r"these have none: channels"),
    ("from __future__ import annotations\n" + tiny.CONFIG.replace("channels: int = 4", "channels: Nonsense = 4"),
     r"name 'Nonsense' is not defined"),
    (tiny.CONFIG.replace('{"channels"', '{"chanels"'), r"no setting 'model.chanels'; did you mean model.channels\?"),
])
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny.write_config(tmp_path, text=text), sample=True)


def test_a_missing_file_names_its_neighbour(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no config .*brigthness.py; did you mean .*brightness.py\?"):
        load(path.with_name("brigthness.py"))
    with pytest.raises(FileNotFoundError, match=r"there is no config .*nowhere/x.py$"):
        load(path.parent / "nowhere" / "x.py")


def test_a_changed_file_is_read_anew(path: Path) -> None:
    assert load(path).experiment.batch_size == 6
    path.write_text(tiny.CONFIG.replace("batch_size=6", "batch_size=8"))
    assert load(path).experiment.batch_size == 8
    assert sorted(other.name for other in path.parent.iterdir()) == ["brightness.py"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 8, "accumulate": 3}, "batch_size 8 cannot be computed in 3 equal parts"),
    ({"clip_norm": 0.0}, "clip_norm must be above 0 or None, got 0.0"),
    ({"workers": -1}, "workers must be at least 0, or None to choose, got -1"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"save_minutes": -1.0}, "save_minutes must be at least 0"),
    ({"precision": "16-mixed"}, "precision must be one of 32-true, bf16-mixed, got '16-mixed'"),
    ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
])
def test_experiments_check_their_numbers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_a_misspelt_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        experiment(batchsize=8)


def test_an_imported_model_has_default_settings(tmp_path: Path) -> None:
    text = tiny.CONFIG.replace("model=model,", "model=tiny.model,")
    entries = load(tiny.write_config(tmp_path, text=text)).entries()
    assert entries["model.channels"].origin == "default"


def test_settings_of_a_default_group_are_defaults() -> None:
    entries = settings.flatten(experiment(ema=EMA(decay=0.5)))
    assert (entries["ema.decay"].origin, entries["ema.ramp"].origin) == ("file", "default")
    assert entries["sample.batch_size"].origin == "default"


def test_a_checkpoint_brings_its_model_settings(path: Path) -> None:
    config = load(path)
    trained = config.as_trained(config.settings() | {"model.channels": 6})
    assert trained.build_model(tiny.CLASSES).backbone.specs["c1"].channels == 6
    assert trained.entries()["model.channels"].origin == "checkpoint"
    with pytest.raises(ValueError, match="is not the config of this checkpoint: its model takes channels, batch_norm, "
                                         "dropout, not_a_number, the checkpoint was trained with width"):
        config.as_trained({"model.width": 1.0})


def test_label_space() -> None:
    assert resolve_classes(COCO_90, COCO_80) is COCO_90
    own = Classes(names=("cell",), source_ids=(1,))
    assert resolve_classes(COCO_90, own) is own


def test_configs_compare_by_value(path: Path) -> None:
    assert isinstance(load(path), Config)
    assert load(path).settings() == load(path).settings()


def test_named_choices_can_be_set(path: Path) -> None:
    assert load(path, ["precision=bf16-mixed"]).experiment.precision == "bf16-mixed"
    text = tiny.CONFIG.replace(
        "channels: int = 4", 'kind: Literal["a", "b"] = "a", name: Annotated[str, Choices(NAMES)] = "one", '
        'title: str = "x", channels: int = 4')
    text = text.replace("from tests import tiny", "from typing import Annotated, Literal\n\n"
                        "from detseg.settings import Choices\nfrom tests import tiny\n\nNAMES = ('one', 'two')")
    path.write_text(text)
    settings_ = load(path, ["model.kind=b", "model.name=two"]).settings()
    assert (settings_["model.kind"], settings_["model.name"]) == ("b", "two")
    for wrong, message in (("model.kind=c", "takes one of a, b, got 'c'"), ("model.name=tow", "did you mean two?"),
                           ("model.title=y", "model.title is text or a list; --set changes numbers")):
        with pytest.raises(ValueError, match=re.escape(message)):
            load(path, [wrong])


def test_replacing_one_value_leaves_the_others_to_whoever_set_them() -> None:
    one = replace(SGD(lr=0.1), momentum=0.8)
    origins = {name: entry.origin for name, entry in settings.flatten(one).items()}
    assert origins == {"lr": "file", "momentum": "file"} | dict.fromkeys(
        ("weight_decay", "nesterov", "decay_norms", "backbone_lr", "layer_decay"), "default")
    assert settings.flatten(replace(experiment(), seed=3))["save_minutes"].origin == "default"
