"""Published weights: what loads, what is left over, what starts anew, and what is refused and how."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from detseg import checkpoint, config
from detseg.api import load_model
from detseg.data.coco import COCO_80, COCO_90
from detseg.model import Predictor
from detseg.structures import Classes
from detseg.weights.load import DOWNLOADS, load_weights

from .conftest import ROOT

State = dict[str, Tensor]

NORMALISATION = {"scale", "shift"}
"""Tensors of a predictor that no published file has: what kind of file it is tells them."""

CELLS = Classes(names=("platelet", "red", "white"), source_ids=(1, 2, 3))
# In the order of a user's file, with ids of its own.
PETS = Classes(names=("dog", "person", "cat"), source_ids=(5, 1, 2))


def _model(name: str, *overrides: str, classes: Classes = CELLS) -> Predictor:
    return config.load(ROOT / "configs" / f"{name}.py", overrides).build_model(classes)


def _random_state(network: nn.Module) -> State:
    """A state dict without two equal tensors, as a trained network has."""
    state: State = {}
    for key, value in network.state_dict().items():
        state[key] = torch.rand(value.shape) + 0.5 if value.is_floating_point() else torch.full_like(value, 7)
    return state


@pytest.fixture(scope="module")
def classifiers() -> dict[str, State]:
    """torchvision's classification networks with random weights."""
    names = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
    return {name: _random_state(torchvision.models.get_model(name, weights=None)) for name in names}


@pytest.fixture(scope="module")
def detector() -> State:
    """torchvision's SSDLite with random weights, for 91 outputs."""
    return _random_state(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], str]:
    """Writes what torch.save can write, and gives the path as the command line would."""
    def save(content: object, name: str = "weights.pth") -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save


Save = Callable[[object], str]


# ------------------------------------------------------------------------------------------ backbones


@pytest.mark.parametrize(("network", "name", "overrides", "last", "ours"), [
    ("mobilenet_v2", "ssdlite_v2", [], "features.18.0.weight", "blocks.17.conv.conv.weight"),
    ("mobilenet_v3_large", "ssdlite_v3_large", ["model.reduced_tail=false"], "features.16.0.weight",
     "blocks.15.conv.conv.weight"),
    ("mobilenet_v3_small", "ssdlite_v3_small", ["model.reduced_tail=false"], "features.12.0.weight",
     "blocks.11.conv.conv.weight"),
])
def test_classifiers_load_as_backbones(
    network: str, name: str, overrides: list[str], last: str, ours: str, classifiers: dict[str, State], saved: Save
) -> None:
    predictor, state = _model(name, *overrides), classifiers[network]
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    file = saved(state)
    report = load_weights(predictor, file)
    after = predictor.state_dict()
    assert report.title == f"{file} (torchvision MobileNet)"
    assert report.num_loaded == sum(key.startswith("backbone.") for key in after)
    assert report.num_loaded + len(report.left_over) == len(state)
    assert report.left_over
    assert all(key.startswith("classifier.") for key in report.left_over)
    assert set(report.fresh) == {key for key in after if key.startswith("head.")}
    assert torch.equal(after["backbone.stem.conv.weight"], state["features.0.0.weight"])
    assert torch.equal(after[f"backbone.{ours}"], state[last])
    # Every tensor of the file arrived somewhere, and the head is as it was.
    sums = sorted(float(value.double().sum()) for key, value in after.items() if key.startswith("backbone."))
    assert sums == sorted(float(value.double().sum()) for key, value in state.items() if "classifier" not in key)
    assert all(torch.equal(after[key], before[key]) for key in report.fresh)
    lines = str(report).splitlines()
    assert lines[0] == f"{file} (torchvision MobileNet): {report.num_loaded} tensors loaded"
    assert lines[1].startswith(f"  {len(report.left_over)} left over in the file: classifier.")
    assert lines[2].startswith(f"  {len(report.fresh)} not in the file, start anew: head.extras.0.0.conv.weight, ")
    assert lines[2].endswith(f"... and {len(report.fresh) - 6} more")


def test_what_lies_behind_the_last_tap_is_left_over(classifiers: dict[str, State], saved: Save) -> None:
    from detseg.backbones.mobilenet_v2 import mobilenet_v2

    predictor = _model("ssdlite_v2")
    predictor.backbone = mobilenet_v2(taps=("c4",))
    report = load_weights(predictor, saved(classifiers["mobilenet_v2"]))
    numbers = {int(found[1]) for key in report.left_over if (found := re.match(r"features\.(\d+)\.", key))}
    assert numbers == {14, 15, 16, 17, 18}


def _prefixed(state: State, *prefixes: str) -> State:
    for prefix in prefixes:
        state = {f"{prefix}.{key}": value for key, value in state.items()}
    return state


WRAPS: dict[str, Callable[[State], object]] = {
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state},
    "DDP": lambda state: _prefixed(state, "module"),
    "compiled": lambda state: _prefixed(state, "_orig_mod"),
    "DDP of a compiled one": lambda state: {"model": _prefixed(state, "_orig_mod", "module")},
    "compiled DDP": lambda state: {"model": _prefixed(state, "module", "_orig_mod")},
    "Lightning": lambda state: {"state_dict": _prefixed(state, "model"), "pytorch-lightning_version": "2.6"},
    "Lightning, compiled": lambda state: {"state_dict": _prefixed(state, "_orig_mod", "model")},
    "a compiled part": lambda state: {key.replace("features.", "features._orig_mod."): value
                                      for key, value in state.items()},
}


@pytest.mark.parametrize("how", WRAPS)
def test_a_training_scripts_checkpoint_loads(how: str, classifiers: dict[str, State], saved: Save) -> None:
    state = classifiers["mobilenet_v2"]
    predictor = _model("ssdlite_v2")
    report = load_weights(predictor, saved(WRAPS[how](state)))
    assert [key.rpartition("classifier.")[2] for key in report.left_over] == ["1.weight", "1.bias"]
    assert torch.equal(predictor.state_dict()["backbone.stem.conv.weight"], state["features.0.0.weight"])


@pytest.mark.parametrize(("key", "wrap"), [
    ("model_ema", lambda state: _prefixed(state, "module") | {"n_averaged": torch.tensor(9)}),
    ("model_ema", lambda state: state),
    ("state_dict_ema", lambda state: state),
    ("ema_state_dict", lambda state: _prefixed(state, "module") | {"steps": torch.tensor(9)}),
    ("ema", lambda state: {"module": state, "updates": 7}),
])
def test_averaged_weights_go_before_the_last_ones(
    key: str, wrap: Callable[[State], object], classifiers: dict[str, State], saved: Save
) -> None:
    averaged = {name: value + 1 if value.is_floating_point() else value
                for name, value in classifiers["mobilenet_v2"].items()}
    predictor = _model("ssdlite_v2")
    file = saved({"model": classifiers["mobilenet_v2"], key: wrap(averaged)})
    report = load_weights(predictor, file)
    assert report.title == f'{file} (torchvision MobileNet, its averaged weights, "{key}")'
    assert torch.equal(predictor.state_dict()["backbone.stem.conv.weight"], averaged["features.0.0.weight"])
    nothing = saved({"model": classifiers["mobilenet_v2"], key: None})
    assert load_weights(predictor, nothing).title == f"{nothing} (torchvision MobileNet)"


def test_the_arguments_of_a_training_script_are_left_out(classifiers: dict[str, State], saved: Save) -> None:
    """torchvision's and timm's keep their argparse.Namespace in every checkpoint; it is not built."""
    content = {"model": classifiers["mobilenet_v2"], "args": argparse.Namespace(lr=0.1, output=Path("runs/x")),
               "optimizer": {"state": {}}}
    assert len(load_weights(_model("ssdlite_v2"), saved(content)).left_over) == 2


def test_npz_files_load(classifiers: dict[str, State], tmp_path: Path) -> None:
    file = tmp_path / "v2.npz"
    np.savez_compressed(file, allow_pickle=False,
                        **{key: value.numpy() for key, value in classifiers["mobilenet_v2"].items()})
    assert len(load_weights(_model("ssdlite_v2"), str(file)).left_over) == 2


def test_half_precision_loads(classifiers: dict[str, State], tmp_path: Path) -> None:
    predictor, file = _model("ssdlite_v2"), tmp_path / "v2.safetensors"
    save_file({key: value.half() for key, value in classifiers["mobilenet_v2"].items()}, file)
    load_weights(predictor, str(file))
    found = predictor.state_dict()["backbone.stem.conv.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classifiers["mobilenet_v2"]["features.0.0.weight"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": _prefixed(state, "model")},
                                  lambda state: _prefixed(state, "_orig_mod", "module")])
def test_a_state_dict_of_ours_loads_with_its_normalisation(wrap: Callable[[State], object], saved: Save) -> None:
    trained = _model("ssdlite_v2", "model.width=0.35")
    trained.set_normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    predictor = _model("ssdlite_v2", "model.width=0.35")
    file = saved(wrap(trained.state_dict()))
    report = load_weights(predictor, file)
    assert str(report).splitlines()[0] == f"{file} (detseg state dict): {len(trained.state_dict())} tensors loaded"
    assert (report.left_over, report.fresh, report.renormalised) == ((), (), True)
    mine, theirs = predictor.state_dict(), trained.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert len(load_weights(_model("ssdlite_v2", "model.width=0.35", classes=COCO_80), file).other_classes) == 12


def test_safetensors_load(classifiers: dict[str, State], tmp_path: Path) -> None:
    predictor, file = _model("ssdlite_v2"), tmp_path / "v2.safetensors"
    save_file(classifiers["mobilenet_v2"], file)
    assert len(load_weights(predictor, str(file)).left_over) == 2


@pytest.mark.real
def test_the_real_backbone_loads(shared: Path) -> None:
    file = shared / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    predictor = _model("ssdlite_v2", classes=COCO_80)
    report = load_weights(predictor, str(file))
    assert report.left_over == ()
    assert all(key.startswith("head.") for key in report.fresh)
    assert report.num_loaded == sum(key.startswith("backbone.") for key in predictor.state_dict())
    predictor.eval()
    with torch.inference_mode():
        features = predictor.backbone((torch.rand(1, 3, 96, 160) - 0.45) / 0.225)
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "c4.expansion": (1, 576, 6, 10), "c5": (1, 1280, 3, 5)}
    assert all(0 < float(value.mean()) < 6 for value in features.values())


@pytest.mark.real
def test_torchvisions_own_file_gives_torchvisions_features(shared: Path) -> None:
    """Every tap to the bit, of images of an even and an odd size."""
    from detseg.backbones.mobilenet_v2 import mobilenet_v2

    file = shared / "weights" / "mobilenet_v2-b0353104.pth"
    theirs = torchvision.models.mobilenet_v2(weights=None)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    predictor = _model("ssdlite_v2", classes=COCO_80)
    taps = {"c1": 1, "c2": 3, "c3": 6, "c4": 13, "c5.bottleneck": 17, "c5": 18}
    predictor.backbone = mobilenet_v2(taps=(*taps, "c4.expansion"))
    report = load_weights(predictor, str(file))
    assert report.title == f"{file} (torchvision MobileNet)"
    assert report.left_over == ("classifier.1.weight", "classifier.1.bias")
    assert all(key.startswith("head.") for key in report.fresh)
    predictor.eval()
    theirs.eval()
    for size in ((96, 160), (101, 75)):
        x = (torch.rand(1, 3, *size) - 0.45) / 0.225
        with torch.inference_mode():
            found, wanted = predictor.backbone(x), x
            for number, layer in enumerate(theirs.features):
                if number == 14:
                    assert torch.equal(found["c4.expansion"], layer.conv[0](wanted))
                wanted = layer(wanted)
                for name in [name for name, last in taps.items() if last == number]:
                    assert torch.equal(found[name], wanted), name


@pytest.mark.parametrize(("network", "name", "overrides"), [
    ("mobilenet_v2", "ssdlite_v2", []), ("mobilenet_v3_large", "ssdlite_v3_large", ["model.reduced_tail=false"])])
def test_images_are_normalised_as_the_weights_expect(
    network: str, name: str, overrides: list[str], classifiers: dict[str, State], saved: Save
) -> None:
    """torchvision's classifiers know ImageNet's mean and std; its SSDLite, trained from scratch, has -1..1."""
    predictor = _model(name, *overrides)
    report = load_weights(predictor, saved(classifiers[network]))
    assert report.renormalised == (network == "mobilenet_v3_large")
    assert ("images are normalised with the mean and std that these" in str(report)) == report.renormalised
    image = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    normalised = image * predictor.scale + predictor.shift
    torch.testing.assert_close(normalised, torch.zeros(1, 3, 1, 1), rtol=0, atol=1e-5)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255 * predictor.scale
    torch.testing.assert_close(std, torch.ones(1, 3, 1, 1))


# ------------------------------------------------------------------------------------------ what does not fit


def _refused(predictor: Predictor, source: str, message: str) -> None:
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    with pytest.raises(ValueError, match=message) as problem:
        load_weights(predictor, source)
    assert source in str(problem.value)
    after = predictor.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before), "nothing may be loaded by half"


def test_a_full_tail_for_a_reduced_one(classifiers: dict[str, State], saved: Save) -> None:
    _refused(_model("ssdlite_v3_large"), saved(classifiers["mobilenet_v3_large"]),
             r"this torchvision MobileNet file does not fit the network; it is of another family, width or tail, or "
             r"made for other classes\.\n  \d+ have another shape: backbone\.blocks\.12\.project\.conv\.weight is "
             r"\[160, 672, 1, 1\], the network has \[80, 672, 1, 1\]; .*; \.\.\. and \d+ more$")


def test_another_family(classifiers: dict[str, State], saved: Save) -> None:
    _refused(_model("ssdlite_v3_large"), saved(classifiers["mobilenet_v2"]),
             r"another family, width or tail(.|\n)*tensors are missing: backbone\.(.|\n)*have another shape")


def test_another_width(saved: Save) -> None:
    narrow = torchvision.models.mobilenet_v2(width_mult=0.5)
    _refused(_model("ssdlite_v2"), saved(narrow.state_dict()),
             r" have another shape: backbone\.stem\.conv\.weight is \[16, 3, 3, 3\], the network has \[32, 3, 3, 3\]")


def test_a_file_that_lacks_tensors(classifiers: dict[str, State], saved: Save) -> None:
    state = {key: value for key, value in classifiers["mobilenet_v2"].items() if not key.startswith("features.5.")}
    _refused(_model("ssdlite_v2"), saved(state), r"18 tensors are missing: backbone\.blocks\.4\.expand\.conv\.weight, ")


@pytest.mark.parametrize(("content", "message"), [
    ({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
     r"not a known kind of weight file \(known: torchvision SSDLite, .*torchvision MobileNet, .*detseg checkpoint\); "
     r"its tensors begin with conv1\.weight, fc\.bias"),
    ({}, "not a known kind of weight file"),
    ([torch.zeros(1)], "holds no state dict"),
    ({"a": torch.zeros(1), "epoch": 3}, "holds no state dict"),
    ({0: torch.zeros(1), 1: torch.zeros(2)}, "holds no state dict"),
    (torch.zeros(3), "holds no state dict"),
])
def test_unknown_content(content: object, message: str, saved: Save) -> None:
    _refused(_model("ssdlite_v2", "model.width=0.35"), saved(content), message)


def test_truncated_files(classifiers: dict[str, State], saved: Save, tmp_path: Path) -> None:
    predictor = _model("ssdlite_v2", "model.width=0.35")
    whole = Path(saved(classifiers["mobilenet_v2"])).read_bytes()
    for length in (0, 5, 1000, len(whole) // 2, len(whole) - 3):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        _refused(predictor, str(tmp_path / "cut.pth"), "is empty|was cut short|was refused")
    save_file(classifiers["mobilenet_v2"], tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    no_json = b"\x08" + bytes(7) + b"no json!" + bytes(99)
    for damaged in (b"", whole[:5], whole[:1000], whole[:-1], b"\xff" * 64, no_json):
        (tmp_path / "cut.safetensors").write_bytes(damaged)
        _refused(predictor, str(tmp_path / "cut.safetensors"), "not a readable safetensors file")
    np.savez(tmp_path / "whole.npz", allow_pickle=False, a=np.ones(99))
    whole = (tmp_path / "whole.npz").read_bytes()
    for damaged in (b"", whole[:50], whole[:-30], b"\xff" * 64, pickle.dumps([1])):
        (tmp_path / "cut.npz").write_bytes(damaged)
        _refused(predictor, str(tmp_path / "cut.npz"), "not a readable npz file of numbers")


def test_an_npz_file_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    made = tmp_path / "made"
    np.savez(tmp_path / "x.npz", a=np.array([Mischief(made)], dtype=object))
    _refused(_model("ssdlite_v2", "model.width=0.35"), str(tmp_path / "x.npz"), "not a readable npz file of numbers")
    assert not made.exists()


class Mischief:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("bare", [True, False])
def test_a_pickle_that_wants_to_run_code(bare: bool, tmp_path: Path) -> None:
    file, made = tmp_path / "weights.pth", tmp_path / "made"
    content = {"features.0.0.weight": torch.zeros(1), "x": Mischief(made)}
    if bare:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    _refused(_model("ssdlite_v2", "model.width=0.35"), str(file),
             r"was refused: .* could run code(.|\n)*If you trust where it comes from, save its tensors alone, once: "
             r"torch\.save\(torch\.load\('weights\.pth', weights_only=False\)\[\.\.\.\], ")
    assert not made.exists()


# ------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(("source", "message"), [
    ("mobilenet_v3_larg", f"mobilenet_v3_larg: neither a file nor a known name ({', '.join(DOWNLOADS)}); did you mean "
                          "mobilenet_v3_large?"),
    ("zebra", "zebra: neither a file nor a known name"),
    ("mobilenet_v2.pth", "mobilenet_v2.pth: no such weight file"),
    ("nowhere/mobilenet_v2", "nowhere/mobilenet_v2: no such weight file"),
])
def test_neither_file_nor_name(source: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as problem:
        load_weights(_model("ssdlite_v2", "model.width=0.35"), source)
    assert ("did you mean" in str(problem.value)) == (source == "mobilenet_v3_larg")


@pytest.mark.parametrize("name", DOWNLOADS)
@pytest.mark.parametrize("failure", [
    URLError("no route to host"), TimeoutError("timed out"), RuntimeError('invalid hash value (expected "1")')])
def test_a_name_without_a_network(name: str, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **options: Any) -> State:
        assert options["weights_only"]
        raise failure

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    wanted = re.escape(f"{name}: could not download {url} ({failure}). Fetch the file where there is a network and "
                       "give its path: --weights FILE")
    with pytest.raises(ConnectionError, match=wanted):
        load_weights(_model("ssdlite_v2", "model.width=0.35"), name)


def test_a_name_with_a_network(classifiers: dict[str, State], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: classifiers["mobilenet_v2"])
    report = load_weights(_model("ssdlite_v2"), "mobilenet_v2")
    assert str(report).startswith("mobilenet_v2 (torchvision MobileNet): ")


# ------------------------------------------------------------------------------------------ detectors and classes


def _classify(state: State, k: int) -> Tensor:
    """Weight and bias of a torchvision file's k-th classifier: [6, 91, C + 1]."""
    name = f"head.classification_head.module_list.{k}.1"
    return torch.cat((state[f"{name}.weight"].flatten(1), state[f"{name}.bias"][:, None]), 1).reshape(6, 91, -1)


def _classify_ours(predictor: Predictor, k: int) -> Tensor:
    """The same of a predictor: [6, K + 1, C + 1]."""
    state, name = predictor.state_dict(), f"head.classify.{k}.1"
    rows = torch.cat((state[f"{name}.weight"].flatten(1), state[f"{name}.bias"][:, None]), 1)
    return rows.reshape(6, len(predictor.classes) + 1, -1)


def test_a_detector_loads_whole(detector: State, saved: Save) -> None:
    predictor = _model("ssdlite_v3_large", classes=COCO_90)
    report = load_weights(predictor, saved(detector))
    assert (report.left_over, report.fresh) == ((), ())
    assert report.num_loaded == len(detector) == len(predictor.state_dict().keys() - NORMALISATION)
    for k in range(6):
        assert torch.equal(_classify_ours(predictor, k), _classify(detector, k))


def test_a_detector_for_other_classes_keeps_all_but_the_class_layers(detector: State, saved: Save) -> None:
    predictor = _model("ssdlite_v3_large", classes=CELLS)
    before = {key: value.clone() for key, value in predictor.state_dict().items()}
    report = load_weights(predictor, saved(detector))
    class_layers = [f"head.classify.{k}.1.{leaf}" for k in range(6) for leaf in ("weight", "bias")]
    assert sorted(report.fresh) == sorted(class_layers)
    assert report.num_loaded == len(detector) - 12
    after = predictor.state_dict()
    for key in after.keys() - NORMALISATION:
        assert torch.equal(after[key], before[key]) == (key in class_layers), key
    assert torch.equal(after["head.locate.2.1.weight"],
                       detector["head.regression_head.module_list.2.1.weight"])
    assert sorted(report.other_classes) == sorted(class_layers)
    assert ("12 made for other classes in the file, start anew: head.classify.0.1.weight, head.classify.0.1.bias, "
            in str(report))
    assert "not in the file" not in str(report)


def test_one_unknown_class_lets_all_start_anew(detector: State, saved: Save) -> None:
    classes = Classes(names=("person", "unicorn"), source_ids=(1, 2))
    assert len(load_weights(_model("ssdlite_v3_large", classes=classes), saved(detector)).fresh) == 12


@pytest.mark.parametrize(("classes", "ids"), [(COCO_80, COCO_80.source_ids), (PETS, (18, 1, 17))])
def test_known_classes_take_their_rows(classes: Classes, ids: tuple[int, ...], detector: State, saved: Save) -> None:
    predictor = _model("ssdlite_v3_large", classes=classes)
    report = load_weights(predictor, saved(detector))
    assert report.fresh == ()
    for k in range(6):
        ours, theirs = _classify_ours(predictor, k), _classify(detector, k)
        assert torch.equal(ours[:, 0], theirs[:, 0]), "background"
        assert torch.equal(ours[:, 1:], theirs[:, list(ids)])


def test_one_row_by_hand(detector: State, saved: Save) -> None:
    """A stop sign has id 13 and is COCO's 12th class; of the third anchor of the second map."""
    predictor = _model("ssdlite_v3_large", classes=COCO_80)
    load_weights(predictor, saved(detector))
    assert COCO_80.names[11] == "stop sign"
    found = predictor.state_dict()["head.classify.1.1.bias"][2 * 81 + 12]
    assert float(found) == float(detector["head.classification_head.module_list.1.1.bias"][2 * 91 + 13])


def test_a_detector_of_ones_own_classes_fits_as_it_is_or_starts_anew_in_its_class_layers(saved: Save) -> None:
    """torchvision's network trained on three classes says nothing about their names."""
    state = _random_state(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4))
    report = load_weights(_model("ssdlite_v3_large", classes=CELLS), saved(state))
    assert (report.left_over, report.fresh) == ((), ())
    file = saved(state)
    predictor = _model("ssdlite_v3_large", classes=COCO_90)
    report = load_weights(predictor, file)
    assert len(report.fresh) == len(report.other_classes) == 12
    assert torch.equal(predictor.state_dict()["head.locate.2.1.weight"],
                       state["head.regression_head.module_list.2.1.weight"])
    message = (r"predicts other classes than the 90 that are asked for: name those that it predicts, in their order, "
               r"with --classes NAME \.\.\., or train it for these with --weights ")
    with pytest.raises(ValueError, match=message):
        load_model(ROOT / "configs" / "ssdlite_v3_large.py", Path(file))
    model = load_model(ROOT / "configs" / "ssdlite_v3_large.py", Path(file), classes=CELLS.names)
    assert (model.classes.names, model.classes.source_ids) == (CELLS.names, CELLS.source_ids)


def test_a_segmenter_for_other_classes_keeps_all_but_the_class_layers(saved: Save) -> None:
    state = _random_state(torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5))
    report = load_weights(_model("lraspp_v3_large_torchvision", classes=CELLS), saved(state))
    assert sorted(report.other_classes) == [f"head.{layer}.{leaf}" for layer in ("high", "low")
                                            for leaf in ("bias", "weight")]
    assert report.fresh == report.other_classes


def _save_checkpoint(predictor: Predictor, path: Path, *, averaged: bool) -> None:
    state = predictor.state_dict()
    ema = {f"module.{key}": value + 1 if value.is_floating_point() else value for key, value in state.items()}
    checkpoint.save(path, checkpoint.Checkpoint(
        step=5, total_steps=9, model=state, ema=ema | {"n_averaged": torch.tensor(3)} if averaged else None,
        optimizer={}, validated=0, numbers={}, best={}, classes=predictor.classes, settings={}, versions={}))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_of_ours_is_a_weight_file_too(averaged: bool, tmp_path: Path) -> None:
    trained, file = _model("ssdlite_v2", "model.width=0.35", classes=COCO_80), tmp_path / "best.pt"
    _save_checkpoint(trained, file, averaged=averaged)
    predictor = _model("ssdlite_v2", "model.width=0.35", classes=PETS)
    report = load_weights(predictor, str(file))
    first, *rest = str(report).splitlines()
    assert first == f"{file} (detseg checkpoint): {len(trained.state_dict())} tensors loaded"
    assert bool(rest) == report.renormalised == averaged, "here the average has another mean and std"
    mine, theirs = predictor.state_dict(), trained.state_dict()
    stem = "backbone.stem.conv.weight"
    assert torch.equal(mine[stem], theirs[stem] + int(averaged))
    anchors = 3  # of the first map; dog is 17th of COCO's 80, person the first, cat the 16th
    rows = theirs["head.classify.0.1.weight"].reshape(anchors, 81, -1)[:, [0, 17, 1, 16]] + int(averaged)
    assert torch.equal(mine["head.classify.0.1.weight"].reshape(anchors, 4, -1), rows)


def test_slots_that_no_data_uses_take_nobodys_rows(tmp_path: Path) -> None:
    """COCO's 90 slots from a network of 80 classes: filling the empty ones would predict some class twice."""
    trained, file = _model("ssdlite_v2", "model.width=0.35", classes=COCO_80), tmp_path / "best.pt"
    _save_checkpoint(trained, file, averaged=False)
    report = load_weights(_model("ssdlite_v2", "model.width=0.35", classes=COCO_90), str(file))
    assert all(key.startswith("head.classify.") for key in report.fresh)
    assert len(report.fresh) == 12


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    _save_checkpoint(_model("ssdlite_v2", "model.width=0.35"), file, averaged=False)
    _refused(_model("ssdlite_v3_small", "model.width=0.35"), str(file), "this detseg checkpoint file does not fit")


def test_a_backbone_is_no_trained_network(classifiers: dict[str, State], saved: Save) -> None:
    file = saved(classifiers["mobilenet_v2"])
    with pytest.raises(ValueError, match=r"holds only a part of the network: \d+ tensors are not in it, head\."):
        load_model(ROOT / "configs" / "ssdlite_v2.py", Path(file))
