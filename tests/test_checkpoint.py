"""Checkpoints: whole or not there, and never a way to run code."""

import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detseg import checkpoint
from detseg.checkpoint import Checkpoint, check_classes, config_differences, load, restore_model, save
from detseg.structures import Classes
from tests import tiny


def make(model: nn.Module | None = None, *, step: int = 7) -> Checkpoint:
    model = model or nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.autograd.backward(next(model.parameters()).sum())
    optimizer.step()
    return Checkpoint(
        step=step, total_steps=30, model=model.state_dict(), ema=None, optimizer=optimizer.state_dict(), validated=5,
        numbers={"AP": 0.25, "APs": float("nan")}, best={"step": 5, "value": 0.25}, classes=tiny.CLASSES,
        settings={"batch_size": 8, "ema": None, "optimizer.nesterov": False, "precision": "32-true"},
        versions={"torch": "2"}, config_text="x = 1\n", fingerprint={"resize": "Stretch"})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = make()
    save(tmp_path / "last.pt", saved)
    back = load(tmp_path / "last.pt")
    assert torch.equal(back.model["weight"], saved.model["weight"])
    assert torch.equal(back.optimizer["state"][0]["momentum_buffer"], saved.optimizer["state"][0]["momentum_buffer"])
    assert back.numbers["AP"] == 0.25
    assert back.numbers["APs"] != back.numbers["APs"], "NaN stays NaN"
    for name in ("step", "total_steps", "ema", "validated", "best", "classes", "settings", "versions",
                 "config_text", "fingerprint"):
        assert getattr(back, name) == getattr(saved, name)
    assert files(tmp_path) == ["last.pt"]


def test_weights_are_the_averaged_ones_where_there_are_any() -> None:
    plain = make()
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2))
    ema = averaged.state_dict()
    assert torch.equal(plain.weights["weight"], plain.model["weight"])
    both = replace(plain, ema=ema)
    assert both.weights.keys() == plain.model.keys()
    assert torch.equal(both.weights["weight"], averaged.module.get_parameter("weight"))


def test_plain_torch_reads_it_safely(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", make())
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert content["format"] == checkpoint.FORMAT
    assert content["classes"]["names"] == ["dark", "unused", "bright"]


@contextmanager
def small_disk() -> Iterator[None]:
    """No file can grow beyond 1,000 bytes: the write fails in its middle, as on a full disk.

    No fixture: pytest reports between a test and its teardown, perhaps into a file that is already longer.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, make(step=7))
    message = r"the checkpoint was not written \(File too large\); the one from before is still whole: '.*last.pt'"
    with pytest.raises(OSError, match=message), small_disk():
        save(path, make(step=8))
    assert files(tmp_path) == ["last.pt"]
    assert load(path).step == 7


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save(path, make(step=7))

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, make(step=8))
    assert files(tmp_path) == ["last.pt"]
    assert load(path).step == 7


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the checkpoint was not written \(Not a directory\): '.*file/last.pt'"):
        save(tmp_path / "file" / "last.pt", make())


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must never run; kill $PPID",)


def test_what_is_no_checkpoint_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"there is no checkpoint .*x.pt"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty: it was not written to its end"):
        load(path)
    path.write_bytes(b"hello, this is no checkpoint")
    with pytest.raises(ValueError, match="was cut short, or it is no checkpoint"):
        load(path)
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of detseg; published weights are loaded with --weights"):
        load(path)


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, make())
    content = path.read_bytes()
    for length in (1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"last.pt (cannot be read: it was cut short|was refused)"):
            load(path)


@pytest.mark.parametrize("protocol", [None, 0, 2, 4])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, protocol: int | None) -> None:
    path = tmp_path / "evil.pt"
    if protocol is None:
        torch.save({"model": Hostile()}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(), protocol=protocol))
    named = "it asks for posix.system" if protocol in (None, 0, 2) else "it is a pickle that could run code"
    with pytest.raises(ValueError, match=rf"evil.pt was refused: {named}.*Nothing in it was run"):
        load(path)


def test_a_checkpoint_of_another_format_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, make())
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format": 99}, path)
    with pytest.raises(ValueError, match=r"has checkpoint format 99, this version of detseg reads 1 and 2$"):
        load(path)
    torch.save({name: value for name, value in content.items() if name != "step"}, path)
    with pytest.raises(ValueError, match=r"is a damaged checkpoint: .*step"):
        load(path)


def test_another_architecture_is_explained_and_nothing_is_loaded() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(14)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {f"{k + 1}.weight": torch.zeros(2, 2) for k in range(12)} | {"0.weight": torch.zeros(3, 2),
                                                                        "13.bias": torch.zeros(())}
    with pytest.raises(ValueError, match=r"best.pt does not fit this model; it is of another architecture") as raised:
        restore_model(model, state, what="best.pt")
    assert str(raised.value).splitlines()[1:] == [
        "  missing there:", "    13.weight", "  unknown here:", "    13.bias", "  other shapes:",
        "    0.weight: 3x2 there, 2x2 here"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_long_lists_are_cut() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(14)])
    with pytest.raises(ValueError, match=r"9.weight\n    and 4 more$"):
        restore_model(model, {}, what="x")


def test_a_fitting_state_is_loaded() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    restore_model(target, source.state_dict(), what="x")
    assert torch.equal(source.weight, target.weight)


def test_other_classes_are_shown() -> None:
    other = Classes(names=("dark", "gleaming"), source_ids=(3, 5))
    check_classes(tiny.FILE_CLASSES, tiny.CLASSES, what="best.pt")
    with pytest.raises(ValueError, match=r"best.pt knows other classes:\n  id 5: 'bright' here, 'gleaming' there"):
        check_classes(tiny.CLASSES, other, what="best.pt")


def test_files_of_the_first_format_are_read_and_their_names_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save(path, make())
    content = torch.load(path, weights_only=True)
    del content["config_text"], content["fingerprint"]
    content["model"] = {"head.hidden.2.weight": torch.ones(2), "head.score.bias": torch.ones(3), "head.conv.weight":
                        torch.ones(1), "backbone.score.bias": torch.ones(4)}
    content["ema"] = {"module.head.box.weight": torch.ones(2), "n_averaged": torch.tensor(3)}
    torch.save(content | {"format": 1}, path)
    read = load(path)
    assert (read.config_text, read.fingerprint) == (None, None)
    assert list(read.model) == ["head.second_stage.hidden.2.weight", "head.second_stage.score.bias", "head.conv.weight",
                                "backbone.score.bias"]
    assert read.weights.keys() == {"head.second_stage.box.weight"}


def test_what_differs_is_told_by_value_and_as_a_diff() -> None:
    saved = make()
    assert config_differences(saved, "x=1  # one", {"resize": "Stretch"}) == []
    assert config_differences(saved, "x = 1\n", {"resize": "Letterbox", "head": "SSD"}) == [
        "  resize: Stretch there, Letterbox here", "  head: absent there, SSD here"]
    assert config_differences(saved, "x = 2\n", {"resize": "Stretch"})[-2:] == ["-x = 1", "+x = 2"]
    many = {f"layer{k}": "new" for k in range(40)}
    lines = config_differences(saved, "x = 1\n", {"resize": "Stretch", **many})
    assert len(lines) == 13
    assert lines[-1] == "  and 28 more"
    assert config_differences(replace(saved, config_text=None, fingerprint=None), "y = 2", many) == []
