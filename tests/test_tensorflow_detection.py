"""SSDLite of TensorFlow's object detection API: names and layouts by files made here, and a real network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detseg import api, config
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.images import read_image
from detseg.data.layouts import read_boxes
from detseg.interfaces import SampleKey
from detseg.layers import ConvNormAct, SqueezeExcite
from detseg.model import Predictor
from detseg.ops.anchors import AnchorRaw
from detseg.structures import Classes
from detseg.weights.load import load_weights
from heads.ssdlite import SSDLite

from .commands import run
from .conftest import ROOT

V2 = ROOT / "configs" / "ssdlite_v2_tensorflow.py"
PEDESTRIAN = "ssdlite_mnv2_pedestrian_tf"
CASES = (("v1", ("model.width=0.5",)), ("v2", ("model.width=0.5",)), ("v3", ("model.width=0.5",)),
         ("v3", ("model.width=0.5", "model.variant=small")))
CELLS = Classes(names=("platelet", "red", "white"), source_ids=(1, 2, 3))


def _model(name: str, *settings: str, classes: Classes = CELLS) -> Predictor:
    return config.load(ROOT / "configs" / f"ssdlite_{name}_tensorflow.py", settings).build_model(classes).eval()


def _randomised(predictor: Predictor) -> Predictor:
    """With statistics and biases, as after training."""
    for module in predictor.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return predictor


def _scope(name: str, predictor: Predictor, version: str) -> str:
    """TensorFlow's scope of one of our layers, as its feature extractors and predictors write them."""
    backbone, last = f"FeatureExtractor/MobilenetV{version}", {"1": "Conv2d_13_pointwise", "2": "layer_19"}
    first, _, rest = name.partition(".")
    if first == "head":
        kind, number, part = rest.split(".")
        if kind != "extras":
            box = {"locate": "BoxEncodingPredictor", "classify": "ClassPredictor"}[kind]
            return f"BoxPredictor_{number}/{box}{'_depthwise' if part == '0' else ''}"
        made = predictor.get_submodule(name)
        assert isinstance(made, ConvNormAct)
        num_blocks = len(list(predictor.backbone.get_submodule("blocks").children()))
        last_tap = last.get(version, f"layer_{num_blocks + 1}")
        wide = predictor.get_submodule(f"head.extras.{number}.2")
        assert isinstance(wide, ConvNormAct)
        if part == "0":
            return f"{backbone}/{last_tap}_1_Conv2d_{int(number) + 2}_1x1_{made.out_channels}"
        return (f"{backbone}/{last_tap}_2_Conv2d_{int(number) + 2}_3x3_s2_{wide.out_channels}"
                f"{'_depthwise' if part == '1' else ''}")
    if rest == "stem":
        return f"{backbone}/{'Conv2d_0' if version == '1' else 'Conv'}"
    _, number, part = rest.split(".")
    if version == "1":
        return f"{backbone}/Conv2d_{int(number) + 1}_{'depthwise' if part == 'depthwise' else 'pointwise'}"
    if part == "conv":
        return f"{backbone}/Conv_1"
    block = "expanded_conv" + ("" if number == "0" else f"_{number}")
    return f"{backbone}/{block}/{part}"


def _kernel(conv: nn.Conv2d) -> tuple[str, Tensor]:
    if conv.groups > 1:
        return "depthwise_weights", conv.weight.detach().permute(2, 3, 0, 1).contiguous()
    return "weights", conv.weight.detach().permute(2, 3, 1, 0).contiguous()


def _in_tensorflows_form(predictor: Predictor, version: str) -> dict[str, Tensor]:
    """The variables of TensorFlow's network that computes the same."""
    state: dict[str, Tensor] = {}
    for name, module in predictor.named_modules():
        if isinstance(module, ConvNormAct):
            scope = _scope(name, predictor, version)
            assert isinstance(module.conv, nn.Conv2d)
            assert isinstance(module.norm, nn.BatchNorm2d)
            kind, kernel = _kernel(module.conv)
            state[f"{scope}/{kind}"] = kernel
            for theirs, ours in (("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"),
                                 ("moving_variance", "running_var")):
                state[f"{scope}/BatchNorm/{theirs}"] = module.norm.state_dict()[ours]
        elif isinstance(module, SqueezeExcite):
            block = _scope(name, predictor, version).removesuffix("/squeeze")
            for theirs, conv in (("Conv", module.reduce), ("Conv_1", module.expand)):
                assert conv.bias is not None
                state[f"{block}/squeeze_excite/{theirs}/weights"] = _kernel(conv)[1]
                state[f"{block}/squeeze_excite/{theirs}/biases"] = conv.bias.detach()
        elif isinstance(module, nn.Conv2d) and re.match(r"head\.(locate|classify)\.\d\.1$", name):
            scope = _scope(name, predictor, version)
            assert module.bias is not None
            kernel, biases = _kernel(module)[1], module.bias.detach()
            if ".locate." in name:  # y before x
                turn = torch.arange(len(biases)).view(-1, 4)[:, [1, 0, 3, 2]].flatten()
                kernel, biases = kernel[..., turn].contiguous(), biases[turn]
            state[f"{scope}/weights"], state[f"{scope}/biases"] = kernel, biases
    return state


@pytest.fixture(scope="module")
def narrow() -> tuple[Predictor, dict[str, Tensor]]:
    torch.manual_seed(1)
    predictor = _randomised(_model("v2", "model.width=0.5"))
    return predictor, _in_tensorflows_form(predictor, "2")


def _save(state: dict[str, Tensor], path: Path) -> str:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        save_file(state, path)
    return str(path)


def _outputs(predictor: Predictor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        raw: AnchorRaw = predictor(torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(3)) * 255)
        return raw.rows(predictor.head.num_outputs)


# ------------------------------------------------------------------------------------------ names and layouts


@pytest.mark.parametrize(("name", "settings"), CASES, ids=["v1", "v2", "v3-large", "v3-small"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_network_comes_back_from_its_variables(
    name: str, settings: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    original = _randomised(_model(name, *settings))
    file = _save(_in_tensorflows_form(original, name[1]), tmp_path / f"model{suffix}")
    loaded = _model(name, *settings)
    report = load_weights(loaded, file)
    assert report.left_over == report.fresh == ()
    assert str(report) == f"{file} (TensorFlow SSDLite): {len(loaded.weights())} tensors loaded"
    for wanted, found in zip(_outputs(original), _outputs(loaded), strict=True):
        assert torch.equal(wanted, found)
        assert float(wanted.std()) > 0.01, "outputs that do not depend on the image prove nothing"


@pytest.mark.real
def test_the_published_file_has_the_names_assumed_here(shared: Path) -> None:
    published = load_file(shared / "weights" / f"{PEDESTRIAN}.safetensors")
    here = _in_tensorflows_form(_model("v2", classes=Classes(("person",), (1,))), "2")
    assert {key: tuple(tensor.shape) for key, tensor in published.items()} == {
        key: tuple(tensor.shape) for key, tensor in here.items()}


def test_what_a_checkpoint_has_besides(narrow: tuple[Predictor, dict[str, Tensor]], tmp_path: Path) -> None:
    """Averages are taken, whatever is no variable of the network is left over and named."""
    original, state = narrow
    stem = "FeatureExtractor/MobilenetV2/Conv/weights"
    more = dict(state) | {
        "global_step": torch.zeros(1), f"{stem}/Momentum": torch.zeros(3),
        stem: torch.zeros_like(state[stem]), f"{stem}/ExponentialMovingAverage": state[stem]}
    loaded = _model("v2", "model.width=0.5")
    report = load_weights(loaded, _save(more, tmp_path / "model.npz"))
    assert sorted(report.left_over) == [f"{stem}/Momentum", "global_step"]
    assert torch.equal(loaded.state_dict()["backbone.stem.conv.weight"],
                       original.state_dict()["backbone.stem.conv.weight"])


def test_a_norm_without_gamma_has_ones(narrow: tuple[Predictor, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = narrow
    loaded = _randomised(_model("v2", "model.width=0.5"))
    bare = {key: tensor for key, tensor in state.items() if not key.endswith("/gamma")}
    assert load_weights(loaded, _save(bare, tmp_path / "model.npz")).fresh == ()
    assert all(bool((module.weight == 1).all()) for module in loaded.modules() if isinstance(module, nn.BatchNorm2d))


def test_the_order_of_a_boxs_numbers_by_hand() -> None:
    from detseg.weights.tensorflow_detection import ssdlite_tensors

    key = "BoxPredictor_0/BoxEncodingPredictor/biases"
    found = ssdlite_tensors({key: torch.arange(8.0)}, _model("v2", "model.width=0.5"))
    assert found["head.locate.0.1.bias"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


# ------------------------------------------------------------------------------------------ classes


def test_coco_s_90_classes_give_rows_to_those_that_are_asked_for(tmp_path: Path) -> None:
    original = _randomised(_model("v2", "model.width=0.5", classes=COCO_90))
    file = _save(_in_tensorflows_form(original, "2"), tmp_path / "coco.npz")
    loaded = _model("v2", "model.width=0.5", classes=Classes(("dog", "person"), (7, 8)))
    assert load_weights(loaded, file).fresh == ()
    theirs = original.state_dict()["head.classify.1.1.bias"].view(6, 91)
    assert torch.equal(loaded.state_dict()["head.classify.1.1.bias"].view(6, 3), theirs[:, [0, 18, 1]])


def test_other_classes_start_anew(narrow: tuple[Predictor, dict[str, Tensor]], tmp_path: Path) -> None:
    _, state = narrow
    file = _save(state, tmp_path / "cells.npz")
    loaded = _model("v2", "model.width=0.5", classes=Classes(("cat", "dog"), (1, 2)))
    report = load_weights(loaded, file)
    assert report.fresh == report.other_classes == tuple(
        f"head.classify.{k}.1.{leaf}" for k in range(6) for leaf in ("weight", "bias"))
    assert "  12 made for other classes in the file, start anew: head.classify.0.1.weight, " in str(report)
    message = re.escape(f"{file} predicts other classes than the 90 that are asked for: name those that it predicts, "
                        f"in their order, with --classes NAME ..., or train it for these with --weights {file}")
    with pytest.raises(ValueError, match=message):
        api.load(V2, file, settings=["model.width=0.5"])
    model = api.load(V2, file, settings=["model.width=0.5"], classes=["person", "cat", "dog"])
    assert model.classes.source_ids == (1, 17, 18), "COCO's own ids, where all names are COCO's"
    model = api.load(V2, file, settings=["model.width=0.5"], classes=["platelet", "red", "dog"])
    assert (model.classes.names, model.classes.source_ids) == (("platelet", "red", "dog"), (1, 2, 3))


# ------------------------------------------------------------------------------------------ another meaning


@pytest.mark.parametrize(("name", "needs"), [
    ("ssdlite_v2", 'padding="same" in the backbone and the head, TensorFlowAnchors, class_loss="sigmoid" or "focal", '
                   "BatchNorm's epsilon 0.001"),
    ("ssdlite_v2_openmmlab", 'padding="same" in the backbone and the head, TensorFlowAnchors, class_loss="sigmoid" or '
                             '"focal"'),
])
def test_a_network_of_another_wiring_is_refused(
    name: str, needs: str, narrow: tuple[Predictor, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = _save(narrow[1], tmp_path / "model.npz")
    other = config.load(ROOT / "configs" / f"{name}.py", ["model.width=0.5"]).build_model(CELLS)
    message = f"mean something else in this network: they need {needs}. configs/ssdlite_v2_tensorflow.py has all of it"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(other, file)


def test_padding_of_the_head_alone_is_looked_at_too(
    narrow: tuple[Predictor, dict[str, Tensor]], tmp_path: Path
) -> None:
    file, other = _save(narrow[1], tmp_path / "model.npz"), _model("v2", "model.width=0.5")
    assert isinstance(other.head, SSDLite)
    other.head = SSDLite(other.backbone.specs, 3, anchors=other.head.anchors, class_loss="sigmoid", width=0.5)
    with pytest.raises(ValueError, match=r'they need padding="same" in the backbone and the head\. configs'):
        load_weights(other, file)


@pytest.mark.parametrize("suffix", [".pb", ".index", ".meta", ".tflite", ".h5", ".keras", ".data-00000-of-00001"])
def test_tensorflows_own_files_are_told_the_way(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").write_bytes(b"\x0a\x0b")
    with pytest.raises(ValueError, match=r"TensorFlow's own files are not read here; docs/tensorflow_weights\.md has"):
        load_weights(_model("v2", "model.width=0.5"), str(tmp_path / f"model{suffix}"))
    assert (ROOT / "docs" / "tensorflow_weights.md").is_file()


# ------------------------------------------------------------------------------------------ the published network


@pytest.fixture(scope="module")
def pedestrian(shared: Path) -> api.Model:
    return api.load(V2, shared / "weights" / f"{PEDESTRIAN}.safetensors", classes=["person"])


@pytest.mark.real
def test_the_published_network_computes_what_tensorflow_computes(pedestrian: api.Model, shared: Path) -> None:
    reference = load_file(shared / "weights" / f"{PEDESTRIAN}_reference.safetensors")
    names = sorted({name.partition("/")[0] for name in reference if "/" in name})
    assert len(names) == 3
    assert isinstance(pedestrian.loaded, Predictor)
    network, head = pedestrian.loaded, pedestrian.loaded.head
    assert isinstance(head, SSDLite)
    for name in names:
        given = reference[f"{name}/input_nhwc"]
        resized = network.resize.apply(read_image(shared / "data" / "coco_mini" / "val2017" / name))
        assert float(np.abs(resized * np.float32(0.007843138) - 1 - given.numpy()).max()) <= 1e-6
        with torch.inference_mode():
            raw: AnchorRaw = network((given.permute(2, 0, 1)[None] + 1) * 127.5)
            logits, deltas = raw.rows(2)
        for found, wanted in ((logits[0], reference[f"{name}/raw_logits"]),
                              (deltas[0][:, [1, 0, 3, 2]], reference[f"{name}/raw_boxes"])):
            assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
        wanted_boxes = reference[f"{name}/detections_yxyx"][:, [1, 0, 3, 2]]
        found = pedestrian(shared / "data" / "coco_mini" / "val2017" / name)
        image = read_image(shared / "data" / "coco_mini" / "val2017" / name)
        sure = found.scores > 0.3
        sides = torch.tensor([image.shape[1], image.shape[0]] * 2)
        torch.testing.assert_close(found.scores[sure], reference[f"{name}/detection_scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.boxes[sure] / sides, wanted_boxes.clamp(0, 1), rtol=0, atol=1e-4)
    anchors = head.anchors([(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)], (300, 300), device=torch.device("cpu"))
    theirs = reference["anchors_yxyx_or_cycxhw"][:, [1, 0, 3, 2]]
    assert float((anchors / 300 - theirs).abs().max()) <= 1e-5


@pytest.mark.real
@pytest.mark.slow
def test_the_published_network_finds_people_as_well_as_in_tensorflow(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, numbers = shared / "weights" / f"{PEDESTRIAN}.safetensors", tmp_path / "numbers.json"
    command = ("test", str(V2), str(weights), "--classes", "person", "--data", str(shared / "data" / "coco_mini"))
    code, _, errors = run(*command, capsys=capsys)
    assert code == 2
    assert "id 2: 'bicycle' here, 'absent' there" in errors
    assert "To evaluate on those that both have, use --common-classes" in errors
    code, out, errors = run(*command, "--common-classes", "--json", str(numbers), capsys=capsys)
    assert (code, errors) == (0, "")
    assert "note: evaluated on 1 class that the network and the data both have: person" in out
    assert "note: left out of the classes of the data (79): bicycle, car, " in out
    assert ", parking meter and 67 more\n" in out
    found = json.loads(numbers.read_text())
    assert found["AP"] == pytest.approx(0.2301, abs=0.005)
    assert found["AP50"] == pytest.approx(0.4281, abs=0.005)


@pytest.mark.real
def test_the_published_network_learns_other_classes(shared: Path) -> None:
    """A few steps on blood cells: the loss falls, of the new class layers and of the boxes."""
    settings = config.load(V2, ["model.size=160"])
    index = read_boxes(shared / "data" / "bccd", "train")
    network = settings.build_model(index.classes)
    report = load_weights(network, str(shared / "weights" / f"{PEDESTRIAN}.safetensors"))
    assert len(report.other_classes) == 12
    samples = DetectionDataset(index, network.resize)
    task, size = settings.experiment.task, network.resize.size
    batch = [samples.training(SampleKey(0, k)) for k in range(4)]
    images = torch.stack([sample.image for sample in batch])
    targets = task.collate_targets([sample.targets for sample in batch], size)
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9)
    history = []
    for _ in range(10):
        losses = network.head.loss(network(images), targets, size)
        terms = [term.sum / term.count for term in losses.values()]
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(terms).sum())
        optimizer.step()
        history.append([float(term.detach()) for term in terms])
    assert all(last < 0.7 * first for first, last in zip(history[0], history[-1], strict=True)), history
