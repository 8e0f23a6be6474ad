"""The benchmark: exact counts, what it writes, and that what it times does what it says. No time is judged."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from detseg import config
from detseg.benchmark import predictor as benchmark
from detseg.benchmark import synthetic
from detseg.benchmark.predictor import IMAGE_SIZE, Counts, Figures, Footprint, Setup, Times, counts, footprint
from detseg.benchmark.references import (
    REFERENCES,
    DetectionAgreement,
    LabelAgreement,
    Reference,
    compare_detections,
    compare_labels,
    reference_of,
)
from detseg.commands.benchmark import main
from detseg.config import Config
from detseg.cost import count_macs
from detseg.model import Predictor
from detseg.predict import predict_image
from detseg.structures import VOID, Classes, ImageDetections, ImageLabels
from detseg.training_step import TrainingStep

from . import processes  # noqa: F401  its server, which has imported torch, starts what trains
from .conftest import ROOT

CONFIGS = ROOT / "configs"
SMALL = str(CONFIGS / "ssdlite_v3_small.py")
LARGE = str(CONFIGS / "ssdlite_v3_large.py")
SIDE_KEYS = {*Counts._fields, *Times._fields, "train_images_per_s"}
KEYS = SIDE_KEYS | set(Footprint._fields) | {
    "config", "input_size", "image_size", "threads", "train_threads", "batch_size", "torch", "engine",
    "score_threshold", "score_shares"}
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))
FOUND = {
    "ssdlite_v3_large": "ssdlite320_mobilenet_v3_large",
    "ssdlite_v2_bccd": "SSD of its parts on mobilenet_v2",
    "fasterrcnn_v3_large_320_fpn": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_v3_large_fpn": "fasterrcnn_mobilenet_v3_large_fpn",
    "lraspp_v3_large_torchvision": "lraspp_mobilenet_v3_large",
    "deeplabv3_v3_large": "deeplabv3_mobilenet_v3_large",
    "fcn_v3_large": "FCN of its parts on mobilenet_v3_large",
}
"""The config of each of torchvision's models."""


def _small() -> tuple[Config, Predictor]:
    loaded = config.load(Path(SMALL), ["model.size=96"])
    torch.manual_seed(0)
    return loaded, loaded.build_model(loaded.experiment.classes)


@pytest.mark.parametrize(("name", "parameters", "macs"), [
    ("ssdlite_v3_large", 3_440_060, 583_171_904),
    ("ssdlite_v2", 4_337_013, 788_830_144),
    ("ssdlite_v3_small", 1_785_743, 162_303_424),
])
def test_counts_are_the_published_ones(name: str, parameters: int, macs: int) -> None:
    loaded = config.load(CONFIGS / f"{name}.py")
    assert counts(loaded.build_model(loaded.experiment.classes)) == Counts(parameters, macs)


@pytest.mark.parametrize(("name", "overrides", "macs", "tensorflow"), [
    ("ssdlite_v3_tensorflow", [], 0.5066, 0.5124), ("ssdlite_v3_tensorflow", ["model.variant=small"], 0.1623, 0.1651)])
def test_multiply_adds_in_the_convention_of_the_paper(
    name: str, overrides: list[str], macs: float, tensorflow: float
) -> None:
    """Table 6 of MobileNetV3's paper, "0.51" billions and "0.16"; by more digits as it was computed again."""
    loaded = config.load(CONFIGS / f"{name}.py", overrides)
    model = loaded.build_model(loaded.experiment.classes)
    assert counts(model).macs / 1e9 == pytest.approx(macs, abs=5e-5)
    assert footprint(model).tensorflow_macs / 1e9 == pytest.approx(tensorflow, abs=5e-4)


def test_the_memory_of_a_published_network_by_hand() -> None:
    """Of SSDLite on V2 the widest place is where the first 96 channels are halved: 160 x 160 to 80 x 80."""
    loaded = config.load(CONFIGS / "ssdlite_v2.py")
    model = loaded.build_model(loaded.experiment.classes)
    found = footprint(model)
    assert found.peak_activation_bytes_fp32 == 4 * 96 * (160 * 160 + 80 * 80) == 4 * found.peak_activation_bytes_int8
    # Each of BatchNorm's pairs becomes one bias, and the normalisation of images is six numbers more.
    norms = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert found.weight_bytes_fp32 == 4 * (4_337_013 - norms + 6)
    biases = norms + sum(module.bias.numel() for module in model.modules()
                         if isinstance(module, nn.Conv2d) and module.bias is not None)
    assert found.weight_bytes_int8 == 4_337_013 - norms + 6 + 3 * biases


def test_a_region_costs_its_fully_connected_layers() -> None:
    """The second stage of two: 256 x 7 x 7 features to 1024, to 1024, and to 91 scores and 364 numbers of boxes."""
    loaded = config.load(CONFIGS / "fasterrcnn_v3_large_320_fpn.py")
    of_network = counts(loaded.build_model(loaded.experiment.classes))
    assert of_network.region_macs == 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * (91 + 364) == 14_359_552
    times = Times(1.0, 2.0, 3.0, 4.0, 5.0)
    memory = Footprint(7_000, 13_690_000, 3_490_000, 8_190_000, 2_050_000)
    figures = Figures("a", (320, 426), Setup(), of_network, times, 0.05, (0.01, 0.1), None, memory)
    assert figures.as_json()["region_macs"] == 14_359_552
    with_regions, without = (_printed(each) for each in (
        figures, figures._replace(counts=of_network._replace(region_macs=None))))
    (line,) = [line for line in with_regions if "multiply-adds of a region" in line]
    assert line.split()[-2] == "14,359,552"
    assert not any("region" in line for line in without)
    told = [[cell.strip() for cell in line.split("│")[1:-1]] for line in without if line.startswith("│")]
    assert told[2:5] == [["multiply-adds, TensorFlow's count", "7,000"], ["weights, MB, fp32 / int8", "13.7 / 3.5"],
                         ["activations at most, MB, fp32 / int8", "8.2 / 2.0"]]


def _printed(figures: Figures) -> list[str]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(figures.table())
    return capture.get().splitlines()


def test_the_command_prints_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "figures.json"
    assert main([SMALL, "--seconds", "0", "--threads", "1", "--batch-size", "2", "--json", str(file),
                 "--set", "model.size=96", "model.width=0.5"]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS
    assert (written["config"], written["engine"]) == ("ssdlite_v3_small", "torch")
    assert (written["input_size"], written["image_size"]) == ([96, 96], list(IMAGE_SIZE))
    assert (written["threads"], written["train_threads"], written["batch_size"]) == (1, 1, 2)
    assert written["parameters"] < 1_785_743
    assert written["train_images_per_s"] == pytest.approx(2000 / written["train_step_ms"])
    assert all(written[name] > 0 for name in Times._fields)
    sure, unsure = written["score_shares"]
    assert (sure, unsure) == pytest.approx((0.01, 0.1), rel=0.1)
    printed = capsys.readouterr().out
    for text in (f"{written['parameters']:,}", f"{written['macs']:,}", f"{written['latency_ms']:,.1f}",
                 "prediction: torch, 1 thread, a decoded image of 640 x 480, input 96 x 96; "
                 f"{sure:.1%} of all scores are above {written['score_threshold']}, {unsure:.1%} where unsure",
                 "training: 1 thread, batch 2 at 96 x 96"):
        assert text in printed
    assert "torchvision" not in printed
    assert "region" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_measured(name: str) -> None:
    """All but its training in another process, which is the same everywhere."""
    path = CONFIGS / f"{name}.py"
    setup = Setup(seconds=0, threads=1, batch_size=2, size=(96, 128))
    loaded = config.load(path, ["model.size=96", "model.width=0.35"])
    model, task = benchmark.built(loaded, setup), loaded.experiment.task
    assert counts(model).macs > 0
    synthetic.enliven(model, (96, 128))
    image = synthetic.textures(1, (96, 128), seed=1)[0]
    if task.scored:
        synthetic.lower_scores(model, image, 0.01, threshold=task.score_threshold)
    use = benchmark._inference(model, None, loaded, image=image)["detseg"]
    use.network()
    found = use.predict_image(image)
    if task.scored:
        assert len(found.scores) > 0
        assert len(found.scores.unique()) > 0.9 * len(found.scores), "scores tie"
    else:
        assert found.labels.shape == (96, 128)
        assert len(np.unique(found.labels)) > 2, "one class is everywhere"
    assert benchmark._step("detseg", model, loaded, setup)() > 0


@pytest.mark.slow
def test_segmenters_have_no_unsure_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main([str(CONFIGS / "lraspp_v3_large_torchvision.py"), "--seconds", "0", "--batch-size", "2",
                 "--threads", "1", "--size", "64", "96", "--set", "model.width=0.35", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS
    assert (written["latency_unsure_ms"], written["score_shares"]) == (None, [])
    assert (written["input_size"], written["image_size"]) == ([64, 96], [64, 96])
    printed = capsys.readouterr().out
    assert "prediction: 1 thread, a decoded image of 96 x 64, not resized: --size 64 96\n" in printed
    assert "unsure" not in printed


@pytest.mark.slow
def test_torchvision_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert main([LARGE, "--against", "torchvision", "--seconds", "0", "--batch-size", "2", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written.keys() == KEYS | {"against"}
    assert (written["threads"], written["train_threads"]) == (1, torch.get_num_threads())
    against = written["against"]
    assert against.keys() == SIDE_KEYS | {"name", "ratios", "equal"}
    assert against["name"] == "torchvision ssdlite320_mobilenet_v3_large"
    assert against["ratios"].keys() == set(Times._fields)
    assert all((against[name], written[name]) == (value, value)
               for name, value in {"parameters": 3_440_060, "macs": 583_171_904}.items())
    equal = against["equal"]
    assert (equal["images"], equal["detections"]) == (8, 2 * 8 * 300)
    assert equal["unmatched"] <= 8
    assert equal["max_score_difference"] < 1e-4
    assert 0 < equal["loss_difference"] < 1e-4, "the training steps compute the same, and not with the same code"
    printed = capsys.readouterr().out
    assert "results equal: of 4800 detections on 8 images" in printed
    assert f"{against['ratios']['latency_ms']:.2f}" in printed


def _built(name: str, size: tuple[int, int] | None) -> tuple[Config, Predictor]:
    loaded = config.load(CONFIGS / f"{name}.py")
    model = benchmark.built(loaded, Setup(size=size))
    synthetic.enliven(model, (128, 176))
    return loaded, model


def _with_reference(
    name: str, size: tuple[int, int] | None, shapes: tuple[tuple[int, int], ...]
) -> tuple[Predictor, Reference, DetectionAgreement | LabelAgreement]:
    """Both predict images of these shapes."""
    loaded, model = _built(name, size)
    images = [synthetic.textures(1, shape, seed=1)[0] for shape in shapes]
    task = loaded.experiment.task
    if task.scored:
        synthetic.lower_scores(model, images[0], 0.01, threshold=task.score_threshold)
    title, reference = benchmark.reference_for(model, loaded, Setup(size=size))
    assert title == FOUND[name]
    ready = model.ready()
    return model, reference, reference.compared(lambda image: predict_image(ready, task, image), images)


@pytest.mark.parametrize(("name", "size", "shapes"), [
    ("lraspp_v3_large_torchvision", (96, 160), ((96, 160),)),
    pytest.param("lraspp_v3_large_torchvision", None, ((120, 160), (170, 120)), marks=pytest.mark.slow),
    ("deeplabv3_v3_large", (96, 160), ((96, 160),)),
    ("fcn_v3_large", (96, 160), ((96, 160),)),
])
def test_torchvisions_segmenters_say_the_same(
    name: str, size: tuple[int, int] | None, shapes: tuple[tuple[int, int], ...]
) -> None:
    _, _, agreement = _with_reference(name, size, shapes)
    assert isinstance(agreement, LabelAgreement)
    assert agreement.pixels == sum(height * width for height, width in shapes)
    assert agreement.classes > 5
    assert agreement.different <= 1 + 1e-4 * agreement.pixels


@pytest.mark.parametrize("size", [None, pytest.param((192, 256), marks=pytest.mark.slow)])
def test_torchvisions_faster_rcnn_says_the_same(size: tuple[int, int] | None) -> None:
    shapes = ((240, 320), (320, 213)) if size is None else (size,)
    model, reference, agreement = _with_reference("fasterrcnn_v3_large_320_fpn", size, shapes)
    assert isinstance(agreement, DetectionAgreement)
    assert agreement.detections > 2 * 10 * len(shapes), "dozens"
    assert agreement.unmatched <= 2
    assert str(agreement).startswith("results equal: of ")
    image = synthetic.textures(1, shapes[0], seed=1)[0]
    padded = [-(-side // 32) * 32 for side in model.resize.size]
    with torch.inference_mode():
        dense = model.decode(synthetic.inputs(model, [image]))
    assert int((dense.scores.amax(-1) > 0).sum()) > 100, "as many regions as the config proposes, or nearly"
    assert counts(model).macs == count_macs(reference.network, torch.zeros(1, 3, *padded))


@pytest.mark.parametrize("name", [
    pytest.param("deeplabv3_v3_large", marks=pytest.mark.slow), "fasterrcnn_v3_large_320_fpn",
    "lraspp_v3_large_torchvision"])
def test_the_training_steps_compute_the_same_loss(name: str) -> None:
    """Up to what chance does: dropout, and which anchors and regions are drawn."""
    setup = Setup(size=(128, 160), batch_size=2)
    loaded, model = _built(name, setup.size)
    steps = [benchmark._step(side, deepcopy(model), loaded, setup) for side in ("detseg", "torchvision")]
    losses = [step() for step in steps]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5 if name.startswith("lraspp") else 0.2)


def test_which_detections_agree() -> None:
    """By hand: a pair that matches, a pair whose scores differ, and one that is alone."""
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0], [3.0, 3.0, 9.0, 9.0], [0.0, 0.0, 5.0, 5.001]])
    ours = ImageDetections(0, boxes[:2], torch.tensor([0.5, 0.4]), torch.tensor([1, 2]))
    theirs = ImageDetections(0, boxes[[2, 1, 0]], torch.tensor([0.50005, 0.3, 0.2]), torch.tensor([1, 2, 3]))
    found = compare_detections([(ours, theirs)], longer_sides=[20])
    assert found[:3] == (1, 5, 3)
    assert found[3:] == pytest.approx((5e-5, 1e-3), rel=0.01)
    assert str(found).startswith("results NOT EQUAL: of 5 detections on 1 images 3 have no match")
    assert compare_detections([(ours, theirs)], longer_sides=[9]).unmatched == 5, "1e-4 of the longer side"
    assert str(compare_detections([(ours, ours)], longer_sides=[20])).startswith("results equal: of 4 detections")


def test_which_label_maps_agree() -> None:
    ours, theirs = (ImageLabels(0, np.array(labels, dtype=np.uint8))
                    for labels in ([[1, 1, 2], [3, 2, 2]], [[1, 1, 2], [3, 3, 3]]))
    assert compare_labels([(ours, theirs)]) == (1, 3, 6, 2)
    assert str(compare_labels([(ours, theirs)])) == (
        "results NOT EQUAL: of 6 pixels on 1 images, of 3 classes, 2 differ")
    assert str(compare_labels([(ours, ours)])).startswith("results equal: of 6 pixels")


def _reference_of(
    path: Path, *, size: tuple[int, int] | None = None, classes: Classes | None = None
) -> tuple[str, Reference]:
    """What is found for the network of a config file."""
    loaded = config.load(path)
    model = loaded.build_model(classes or loaded.experiment.classes)
    image = np.zeros((*(size or IMAGE_SIZE), 3), dtype=np.uint8)
    return reference_of(model, resize=model.resize, size=size, image=image)


@pytest.mark.parametrize("name", FOUND)
def test_the_reference_is_found_by_the_network(name: str, tmp_path: Path) -> None:
    """Whatever the file is called."""
    renamed = tmp_path / "my_own_network.py"
    renamed.write_bytes((CONFIGS / f"{name}.py").read_bytes())
    title, _ = _reference_of(renamed)
    assert title == FOUND[name]


def test_every_reference_is_one_of_the_configs() -> None:
    assert sorted(FOUND.values()) == sorted(each.title for each in REFERENCES)


def test_input_size_and_regions_tell_the_two_faster_rcnns_apart() -> None:
    """They have the same tensors; with one size for all images they differ in the number of regions."""
    smaller, larger = (_reference_of(CONFIGS / f"{name}.py", size=(192, 256))[1].model
                       for name in ("fasterrcnn_v3_large_320_fpn", "fasterrcnn_v3_large_fpn"))
    assert smaller.state_dict().keys() == larger.state_dict().keys()
    assert [model.rpn.post_nms_top_n() for model in (smaller, larger)] == [150, 1000]
    assert smaller.transform.fixed_size == larger.transform.fixed_size == (256, 192)


def test_the_reference_has_the_weights_of_ours() -> None:
    loaded = config.load(Path(LARGE))
    model = loaded.build_model(loaded.experiment.classes)
    _, reference = benchmark.reference_for(model, loaded, Setup())
    theirs, ours = reference.model.state_dict(), model.weights()
    assert reference.names.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], ours[own]) for name, own in reference.names.items())


def test_a_network_that_torchvision_has_not_or_not_so(capsys: pytest.CaptureFixture[str]) -> None:
    large = [LARGE, "--against", "torchvision", "--set"]
    commands = [[SMALL, "--against", "torchvision"],
                *([*large, change] for change in ("model.width=0.5", "model.size=256", "model.reduced_tail=false")),
                # Another input size is another architecture even where all images are given one.
                [LARGE, "--against", "torchvision", "--size", "320", "320", "--set", "model.size=256"]]
    commands.append([str(CONFIGS / "fasterrcnn_v3_large_320_fpn.py"), "--against", "torchvision", "--set",
                     "model.size=256"])
    for command in commands:
        assert main(command) == 2
        assert capsys.readouterr().err == (
            "error: torchvision has no such network to compare with. It has "
            f"{', '.join(each.title for each in REFERENCES)}, each with one width, one tail, one input size and one "
            "number of classes: leave out --set model.*\n")


def test_other_classes_are_another_network() -> None:
    with pytest.raises(ValueError, match="torchvision has no such network to compare with"):
        _reference_of(Path(LARGE), classes=Classes(names=("nut", "bolt"), source_ids=(1, 2)))


@pytest.mark.parametrize(("option", "message"), [
    (("--seconds", "-1"), "seconds must be at least 0, got -1.0"),
    (("--seconds", "nan"), "seconds must be at least 0, got nan"),
    (("--threads", "0"), "threads must be at least 1, got 0"),
    (("--size", "16", "640"), "size is (height, width) in pixels, each at least 32, got (16, 640)"),
    (("--batch-size", "1"), "batch_size must be at least 2, got 1: in training, BatchNorm needs two values"),
])
def test_options_that_make_no_sense(
    option: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([SMALL, *option]) == 2
    assert message in capsys.readouterr().err


def test_threads_of_training_are_all_unless_given() -> None:
    assert (Setup().latency_threads, Setup().train_threads) == (1, torch.get_num_threads())
    assert (Setup(threads=3).latency_threads, Setup(threads=3).train_threads) == (3, 3)


def test_batches_nobody_chose_shrink_with_large_images() -> None:
    sizes = {(320, 320): 16, (512, 512): 16, (520, 693): 8, (800, 1066): 4, (1024, 2048): 2, (2048, 4096): 2}
    assert {size: Setup().batch_of(size) for size in sizes} == sizes
    assert Setup(batch_size=5).batch_of((1024, 2048)) == 5


def test_what_is_timed_resembles_a_trained_network() -> None:
    loaded, model = _small()
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    synthetic.enliven(model, IMAGE_SIZE)
    assert not model.training
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta
    images = synthetic.textures(2, IMAGE_SIZE, seed=1)
    numbers = []
    for share in (0.01, 0.1):
        reached = synthetic.lower_scores(model, images[0], share, threshold=0.001)
        with torch.inference_mode():
            scores = model.decode(synthetic.inputs(model, images[:1])).scores
        assert float((scores > 0.001).double().mean()) == reached == pytest.approx(share, rel=0.1)
        found = [predict_image(model, loaded.experiment.task, image) for image in images]
        assert len(found[0].scores.unique()) > 0.9 * len(found[0].scores), "scores tie"
        assert not torch.equal(found[0].scores, found[1].scores), "activations vanish"
        numbers.append(len(found[0].scores))
    assert numbers == [100, 100], "as many as the config keeps"


def test_the_step_is_that_of_training_and_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `fit`'s step: with the experiment's optimiser and average, and the loss that the head's terms make."""
    made = list[TrainingStep]()

    class Noted(TrainingStep):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(benchmark, "TrainingStep", Noted)
    loaded, model = _small()
    batch = synthetic.batch(model, loaded.experiment.task, 3)
    assert [int((labels >= 0).sum()) for labels in batch.targets.labels] == [1, 2, 3]
    assert (batch.targets.boxes[..., 2:] >= batch.targets.boxes[..., :2]).all()
    _, trained = _small()
    terms = trained.train().head.loss(trained(batch.images), batch.targets, (96, 96))
    expected = sum(float((term.sum / term.count).detach()) for term in terms.values())
    step = benchmark._step("detseg", model, loaded, Setup(batch_size=3))
    before = [parameter.clone() for parameter in model.parameters()]
    assert step() == pytest.approx(expected, rel=1e-5)
    assert step() == pytest.approx(expected, rel=1e-5)
    assert all(map(torch.equal, before, model.parameters()))
    (timed,) = made
    assert timed.model is model
    assert timed.averaged is not None
    assert int(timed.averaged.n_averaged) == 2
    assert isinstance(timed.optimizer, type(loaded.experiment.optimizer.build(model)))


def test_the_step_has_the_precision_of_the_experiment() -> None:
    """A segmenter's: oneDNN sometimes gives no number as bfloat16 gradient of a depthwise convolution that makes a
    single cell, as SSDLite's last maps are."""
    loaded = config.load(CONFIGS / "lraspp_v3_small.py", ["model.size=128"])
    half = replace(loaded, experiment=loaded.experiment.changed("precision", "bf16-mixed"))
    losses = []
    for each in (loaded, half):
        torch.manual_seed(0)
        model = each.build_model(each.experiment.classes)
        losses.append(benchmark._step("detseg", model, each, Setup(batch_size=2))())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_training_process_that_ends_is_reported(tmp_path: Path) -> None:
    with (pytest.raises(OSError, match=r"the process that trains detseg ended.*a smaller --batch-size needs less"),
          benchmark._own_process("detseg", tmp_path / "absent.py", (), setup=Setup()) as step):
        step()


def test_synthetic_label_maps_have_classes_and_void() -> None:
    loaded = config.load(CONFIGS / "lraspp_v3_small.py", ["model.size=64"])
    model = loaded.build_model(loaded.experiment.classes)
    batch = synthetic.batch(model, loaded.experiment.task, 2)
    labels = batch.targets.labels
    assert labels.shape == (2, *model.resize.size)
    assert not torch.equal(labels[0], labels[1])
    assert VOID in labels
    assert int(labels[labels != VOID].max()) < len(model.classes)
