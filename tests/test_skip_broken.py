"""A run over broken data: refused with every place, saved where it is met, and with --skip-broken as good as clean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detseg.checkpoint import Checkpoint, load
from detseg.config import load as load_config
from detseg.train import Result, fit
from tests import tiny, tiny_segmenter
from tests.commands import run as command


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.generate(tmp_path / "data")
    tiny.write_config(tmp_path)


def run(*overrides: str, out: str = "run", **others: Any) -> Result:
    return fit(load_config(Path("brightness.py"), overrides), Path("data"), out=Path(out), **others)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.step == other.step and all(torch.equal(one.model[name], other.model[name]) for name in one.model)


def break_pictures(monkeypatch: pytest.MonkeyPatch, *items: int) -> None:
    monkeypatch.setattr(tiny.Pictures, "broken", frozenset(items))


def test_a_broken_image_stops_a_run_saved_and_it_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had been skipped from the start: what takes its place follows from (seed, epoch, item)."""
    break_pictures(monkeypatch, 1)
    whole = run(out="whole", skip_broken=True)
    skipped = whole.run.skipped.read_text().splitlines()
    assert [line.partition("\t")[2] for line in skipped] == ["an image\tcannot read the image 1.jpg: it is damaged"]
    step = int(skipped[0].partition("\t")[0].removeprefix("step "))

    with pytest.raises(OSError, match=rf"cannot read the image 1\.jpg: it is damaged\nstopped after step {step - 1} of "
                       r"9, which is saved\. Go on with the same command and --out run --resume when that is mended, "
                       r"or leave it out with --out run --resume --skip-broken$"):
        run()
    stopped = load(Path("run/last.pt"))
    assert stopped.step == step - 1
    resumed = run(resume=True, skip_broken=True)
    assert same(load(resumed.run.last), load(whole.run.last))
    assert resumed.run.skipped.read_text() == whole.run.skipped.read_text()


def test_mended_it_goes_on_as_if_nothing_had_been(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(out="whole")
    break_pictures(monkeypatch, 1)
    with pytest.raises(OSError, match="which is saved"):
        run()
    break_pictures(monkeypatch)
    assert same(load(run(resume=True).run.last), load(whole.run.last))


def test_a_command_over_a_broken_image_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_pictures(monkeypatch, 1)
    code, _, errors = command("train", "brightness.py", "--data", "data", "--out", "run", capsys=capsys)
    assert code == 1
    assert errors.startswith("error: cannot read the image 1.jpg: it is damaged\nstopped after step ")
    code, out, errors = command(
        "train", "brightness.py", "--data", "data", "--out", "run", "--resume", "--skip-broken", capsys=capsys)
    assert (code, errors) == (0, "")
    assert "left out: an image: cannot read the image 1.jpg: it is damaged\nrun/skipped.txt names all" in out


# ---------------------------------------------------------------------------------------------- one image a batch


ONE_VALUE = """
    trunk = tiny.Trunk(channels, batch_norm=batch_norm)
    head = tiny.BrightnessHead(trunk.specs, num_classes=len(classes), dropout=dropout, not_a_number=not_a_number)
    head.linear = torch.nn.Sequential(torch.nn.BatchNorm1d(channels), head.linear)
    return Predictor(trunk, head, classes=classes, resize=tiny.Stretch(), mean=(0.5,) * 3, std=(0.25,) * 3)
"""


def test_a_batch_norm_of_one_value_is_refused_before_there_is_a_folder() -> None:
    line = next(line for line in tiny.CONFIG.splitlines() if "return tiny.model(" in line)
    text = tiny.CONFIG.replace(line, ONE_VALUE).replace("from detseg", "import torch\n\nfrom detseg", 1)
    tiny.write_config(Path(), text=text)
    with pytest.raises(ValueError, match=r"a batch of one image \(batch_size 4 in 4 part\(s\) on 1 process\(es\)\) "
                       r"leaves a BatchNorm layer of this network a single value, .*; take --set batch_size of at "
                       r"least 8, or a smaller accumulate"):
        run("batch_size=4", "accumulate=4")
    assert not Path("run").exists()
    assert run("batch_size=4", "accumulate=2", "schedule.epochs=1", "schedule.warmup_steps=0").numbers


def test_a_batch_of_one_image_is_no_error_where_a_layer_sees_many_pixels() -> None:
    assert run("batch_size=1", "schedule.epochs=1").numbers


# ---------------------------------------------------------------------------------------------- files


def shades(folder: str, *overrides: str, **others: Any) -> Result:
    config = load_config(Path("shades.py"), ["schedule.epochs=1", "workers=0", *overrides])
    return fit(config, Path(folder), out=Path(f"run_{folder}"), **others)


def files(folder: str, *, broken: Sequence[int] = ()) -> None:
    """The data of tiny_segmenter, in which four training images are broken each in its own way, and a validation mask;
    or without these."""
    tiny_segmenter.generate(Path(folder))
    tiny_segmenter.write_config(Path())
    images, masks = (Path(folder, part, "train") for part in ("images", "masks"))
    if not broken:
        for i in (1, 4, 6, 9):
            (images / f"picture {i}.png").unlink()
            (masks / f"picture {i}.png").unlink()
        for part in ("images", "masks"):
            Path(folder, part, "val", "picture 2.png").unlink()
        return
    cut = images / "picture 1.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    (masks / "picture 4.png").unlink()
    Image.fromarray(np.full((40, 56), 77, np.uint8)).save(masks / "picture 6.png")
    (images / "picture 9.png").write_bytes(b"")
    Path(folder, "masks", "val", "picture 2.png").write_bytes(b"text")


def test_broken_files_are_refused_with_every_place_and_leave_no_folder() -> None:
    files("messy", broken=(1,))
    with pytest.raises(ValueError, match="the data in messy: 5 places are broken; mend them, or leave them out with "
                       "--skip-broken") as error:
        shades("messy")
    places = str(error.value).splitlines()[1:]
    assert [next(i for i in (1, 2, 4, 6, 9) if f"picture {i}." in place) for place in places] == [4, 1, 9, 6, 2]
    assert not Path("run_messy").exists()


def test_without_what_is_broken_it_trains_to_the_numbers_of_the_clean_part() -> None:
    files("messy", broken=(1,))
    files("clean")
    clean = shades("clean")
    messy = shades("messy", skip_broken=True)
    assert same(load(messy.run.last), load(clean.run.last))
    assert messy.numbers == clean.numbers
    rows = [line.split("\t") for line in messy.run.skipped.read_text().splitlines()]
    assert [row[0] for row in rows] == ["before the first step"] * 5
    assert not clean.run.skipped.exists()
    Path("messy/images/train/picture 0.png").write_bytes(b"broken since")
    resumed = shades("messy", resume=True, skip_broken=True)
    assert same(load(resumed.run.last), load(clean.run.last)), "what has broken since does not move the others"


def test_evaluation_goes_on_without_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    files("clean")
    clean = shades("clean")
    files("messy", broken=(1,))
    code, _, errors = command("test", "run_clean", "--data", "messy", capsys=capsys)
    assert code == 2
    assert "the val data in messy: 1 place is broken; mend them, or leave them out with --skip-broken" in errors
    code, out, errors = command(
        "test", "run_clean", "--data", "messy", "--skip-broken", "--json", "numbers.json", capsys=capsys)
    assert (code, errors) == (0, "")
    assert "left out: " in out
    assert Path("numbers.json").exists()
    assert clean.numbers
    for path in Path("messy/images/val").iterdir():
        path.write_bytes(b"")
    code, _, errors = command("test", "run_clean", "--data", "messy", "--skip-broken", capsys=capsys)
    assert code == 2
    assert errors.startswith("error: no image is left to evaluate on in messy: 5 places are broken")


def test_nothing_to_learn_is_refused_with_the_reason_and_leaves_no_folder() -> None:
    tiny_segmenter.generate(Path("data255"))
    tiny_segmenter.write_config(Path())
    for path in Path("data255/masks/train").iterdir():
        stored = np.array(Image.open(path))
        stored[stored == 9] = 255
        Image.fromarray(stored).save(path)
    with pytest.raises(ValueError, match=r"the training data in data255 teach nothing: every labelled pixel is dark, "
                       r"none is bright or purple, and .* are void\. If 255 is bright in these files, write `255 bri"):
        shades("data255")
    assert not Path("run_data255").exists()


def test_no_image_left_is_refused() -> None:
    files("messy", broken=(1,))
    for path in Path("messy/images/val").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no image is left to validate on in messy: 5 places are broken"):
        shades("messy", skip_broken=True)
