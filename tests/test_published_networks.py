"""Published weights in the commands: settings that they need, classes that no file names, data with other classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from detseg import api, config
from detseg.checkpoint import Checkpoint, save
from detseg.data.coco import read_coco
from detseg.data.masks import class_file, read_masks, write_classes
from detseg.export.manifest import fixed_resize
from detseg.fingerprint import fingerprint
from detseg.model import Predictor
from detseg.resize import Rounded, Stretch, TensorFlowStretch
from detseg.structures import VOID, Classes

from .commands import run
from .conftest import ROOT

CONFIG = ROOT / "configs" / "ssdlite_v2_tensorflow.py"
SMALL = ("model.width=0.35", "model.size=64")
NETWORK = Classes(("truck", "person", "cat"), (1, 2, 3))
"""What the weights here predict."""
DATA = ((5, "person"), (9, "dog"), (2, "truck"))
BOXES = ((9, 4), (5, 0), (2, 1))
"""The category of each annotation, and its image."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a small network, as anybody saves one."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_file(config.load(CONFIG, SMALL).build_model(NETWORK).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images in COCO's layout, with one class that the network does not know and two that it does."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "val2017").mkdir()
    (folder / "annotations").mkdir()
    for k in range(5):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / f"{k}.png")
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 40, "width": 60} for k in range(5)],
        "categories": [{"id": number, "name": name} for number, name in DATA],
        "annotations": [{"id": k + 1, "image_id": image, "category_id": category, "bbox": [k, 2, 20, 30], "area": 600,
                         "iscrowd": 0} for k, (category, image) in enumerate(BOXES)]}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


# ------------------------------------------------------------------------------------------ classes in common


def test_boxes_of_common_classes_by_name(data: Path) -> None:
    index = read_coco(data / "annotations" / "instances_val2017.json", data / "val2017")
    common = index.common(NETWORK)
    assert common.classes == NETWORK
    assert len(common) == len(index) == 5
    assert common.annotation_ids.tolist() == [2, 3], "the dog is left out, its image stays"
    assert [NETWORK.names[label] for label in common.labels] == ["person", "truck"]
    assert common.offsets.tolist() == [0, 1, 2, 2, 2, 2]
    assert common.path(4) == index.path(4)
    truth = common.coco_ground_truth()
    assert [one["category_id"] for one in truth["annotations"]] == [2, 1]


def test_slots_that_no_data_uses_have_no_name_in_common() -> None:
    one, other = Classes(("unused 1", "cat"), (1, 2)), Classes(("cat", "unused 1"), (7, 8))
    assert one.common(other) == ("cat",)
    assert one.common(Classes(("unused 1",), (1,))) == ()


def test_label_maps_of_common_classes_by_name(tmp_path: Path) -> None:
    for folder in ("images/val", "masks/val"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(tmp_path / "images" / "val" / "a.png")
    Image.fromarray(np.array([[3, 4, 5, 3]], np.uint8)).save(tmp_path / "masks" / "val" / "a.png")
    write_classes(class_file(tmp_path), Classes(("person", "dog", "truck"), (3, 4, 5)))
    index = read_masks(tmp_path, "val")
    common = index.common(NETWORK)
    assert common.classes == NETWORK
    assert common.labels(0, (1, 4)).tolist() == [[1, VOID, 0, 1]]
    assert (len(common), common.path(0), common.origin(0)) == (1, index.path(0), index.origin(0))
    assert common.image(0).shape == (1, 4, 3)
    turned = common.relabel(Classes(("person", "truck"), (1, 2)))
    assert turned.labels(0, (1, 4)).tolist() == [[0, VOID, 1, 0]]


def test_evaluation_on_what_both_have(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("test", str(CONFIG), str(weights), "--data", str(data), "--set", *SMALL, "--classes", *NETWORK.names)
    code, _, errors = run(*command, capsys=capsys)
    assert code == 2
    assert f"{weights} knows other classes:" in errors
    assert errors.endswith("\nTo evaluate on those that both have, use --common-classes\n")
    code, out, errors = run(*command, "--common-classes", "--per-class", "--json", str(tmp_path / "n.json"),
                            capsys=capsys)
    assert (code, errors) == (0, "")
    assert "note: evaluated on 2 classes that the network and the data both have: truck, person\n" in out
    assert "note: left out of the classes of the data (1): dog\n" in out
    assert "note: left out of the classes of the network (1): cat\n" in out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["AP/person"] is not None
    assert numbers["AP/cat"] is None


def test_nothing_in_common_is_an_error(weights: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("test", str(CONFIG), str(weights), "--data", str(data), "--set", *SMALL, "--classes", "a", "b", "c")
    code, _, errors = run(*command, capsys=capsys)
    assert code == 2
    assert "--common-classes" not in errors, "it would not help"
    code, _, errors = run(*command, "--common-classes", capsys=capsys)
    assert code == 2
    assert f"{weights} and the data have no class in common: it knows a, b, c, the data truck, person, dog" in errors


# ------------------------------------------------------------------------------------------ settings and classes


def test_prediction_takes_settings_and_classes(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("predict", str(CONFIG), str(weights), str(data / "val2017" / "0.png"), "--out", str(tmp_path / "out"))
    code, out, errors = run(*command, "--set", *SMALL, "--classes", *NETWORK.names, capsys=capsys)
    assert (code, errors) == (0, "")
    assert "(detseg state dict)" in out
    categories = json.loads((tmp_path / "out" / "images.json").read_text())["categories"]
    assert categories == [{"id": 8, "name": "truck"}, {"id": 1, "name": "person"}, {"id": 17, "name": "cat"}]
    assert {one["category_id"] for one in json.loads((tmp_path / "out" / "predictions.json").read_text())} <= {1, 8, 17}


@pytest.mark.slow
def test_export_takes_settings_and_classes(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.pt2"
    code, out, errors = run(
        "export", str(CONFIG), str(weights), "--format", "pt2", "--contract", "raw", "--out", str(file), "--images",
        str(data / "val2017" / "*.png"), "--set", *SMALL, "--classes", *NETWORK.names, capsys=capsys)
    assert (code, errors) == (0, ""), out
    artefact = api.load(file)
    assert artefact.classes.names == NETWORK.names
    assert artefact.loaded.resize == Rounded(TensorFlowStretch((64, 64))), "the file knows its resize"


def test_settings_reach_published_weights(weights: Path) -> None:
    model = api.load(CONFIG, weights, settings=SMALL, classes=NETWORK.names)
    assert model.loaded.resize.size == (64, 64)
    with pytest.raises(ValueError, match=r"there is no setting 'model\.widht'; did you mean model\.width"):
        api.load(CONFIG, weights, settings=["model.widht=0.35"])


@pytest.mark.parametrize(("settings", "classes", "message"), [
    (["optimizer.lr=1"], [], r"--set optimizer\.lr=1: of a trained network only the settings model\.\* matter"),
    (["model.width=0.5"], [], r"was trained with model\.width=0\.35, which it knows; under model\.width=0\.5 its "
                              r"tensors would mean something else\. Leave out --set"),
    ([], ["cat", "dog"], "knows its classes, truck, person, cat; leave out --classes"),
])
def test_a_checkpoint_knows_its_settings(
    settings: list[str], classes: list[str], message: str, tmp_path: Path
) -> None:
    small = config.load(CONFIG, SMALL)
    predictor, path = small.build_model(NETWORK), tmp_path / "best.pt"
    save(path, Checkpoint(
        step=1, total_steps=1, model=predictor.state_dict(), ema=None, optimizer={}, validated=0, numbers={}, best={},
        classes=NETWORK, settings=small.settings(), versions={}, config_text=small.text,
        fingerprint=fingerprint(predictor, small.experiment.task)))
    loaded = api.load(CONFIG, path, settings=["model.width=0.35"], classes=NETWORK.names).loaded
    assert isinstance(loaded, Predictor), "what it knows may be said"
    with pytest.raises(ValueError, match=message):
        api.load(CONFIG, path, settings=settings, classes=classes)


@pytest.mark.parametrize(("settings", "classes"), [(["model.width=1"], []), ([], ["cat"])])
def test_an_exported_file_knows_everything(settings: list[str], classes: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an exported file, which knows its network and classes; leave out --set"):
        api.load(tmp_path / "x.onnx", settings=settings, classes=classes)


def test_a_file_says_the_resize_by_name() -> None:
    assert fixed_resize(TensorFlowStretch((300, 300)), None) == ("tensorflow_stretch", TensorFlowStretch((300, 300)))
    assert fixed_resize(TensorFlowStretch((300, 300)), (96, 64)) == (
        "tensorflow_stretch", TensorFlowStretch((96, 64)))
    with pytest.raises(ValueError, match="a file cannot say how Rounded resizes images; export knows Stretch, "
                                         "TensorFlowStretch, Letterbox, CentreCrop and KeepAspect"):
        fixed_resize(Rounded(Stretch((8, 8))), None)
