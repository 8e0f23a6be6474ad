"""The classifier: its head and loss, a run of it from the command line, and what other networks take from one."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import mobilenet_v3_large as torchvision_v3_large

import detseg
from detseg import config
from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.benchmark import synthetic
from detseg.checkpoint import load
from detseg.config import Config
from detseg.data.sample import CATEGORIES, generate_class_sample
from detseg.demo.page import open_for_page
from detseg.export.app_code import app_code
from detseg.export.contract import outputs_of, task_from, task_values
from detseg.export.convert import ParityError, check, export
from detseg.export.convert import Source as ExportSource
from detseg.export.formats import format_named
from detseg.export.manifest import fixed_resize
from detseg.export.parity import TOLERANCES, Agreement, agree
from detseg.interfaces import FeatureSpec, Source
from detseg.model import Predictor
from detseg.ops.losses import classification_losses
from detseg.optim import Cosine
from detseg.recipes import BOXES, CLASSES, LABELS, usual_data
from detseg.report.pictures import draw
from detseg.report.results import records, summary
from detseg.resize import CentreCrop, Placement
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes, ClassScores, ClassTargets, ImageClasses, TopClasses
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation
from detseg.train import fit
from detseg.weights.load import load_weights
from heads.classifier import Classifier

from . import micro
from .commands import run
from .conftest import ROOT

CONFIG = ROOT / "configs" / "classify_v3_large.py"
SMALL = ("model.width=0.35", "model.size=48", "model.hidden=24", "batch_size=4", "workers=0", "log_every=1",
         "validate_every=1")
PETS = Classes(("cat", "dog", "eel"), (3, 4, 9))


def small_config(*overrides: str) -> Config:
    small = config.load(CONFIG, [*SMALL, *overrides], sample=True)
    return replace(small, experiment=small.experiment.changed("schedule", Cosine(epochs=2, warmup_steps=1)))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_class_sample(tmp_path_factory.mktemp("sample") / "data", num_train=10, num_val=5)


@pytest.fixture(scope="module")
def trained(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with the reduced tail of detectors, whose weights are not as they began."""
    out = tmp_path_factory.mktemp("runs") / "classify"
    fit(small_config("model.reduced_tail=detection"), sample, out=out)
    return out


# ------------------------------------------------------------------------------------------ the head and its loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_is_torchs_with_label_smoothing(smoothing: float) -> None:
    logits, labels = 3 * torch.randn(6, 4, dtype=torch.float32), torch.tensor([0, 3, -1, 1, 2, -1])
    known = labels >= 0
    (term,) = classification_losses(logits, labels, label_smoothing=smoothing).values()
    assert int(term.count) == 4
    torch.testing.assert_close(
        term.sum / term.count, F.cross_entropy(logits[known], labels[known], label_smoothing=smoothing))


def test_label_smoothing_by_hand() -> None:
    """Of four classes with probabilities 1/2, 1/4, 1/8 and 1/8; the wanted ones are 0.7, 0.1, 0.1 and 0.1."""
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    losses = classification_losses(logits, torch.tensor([0]), label_smoothing=0.4)
    bits = 0.7 * 1 + 0.1 * 2 + 0.1 * 3 + 0.1 * 3
    assert losses.keys() == {"class"}
    assert losses["class"].sum.item() == pytest.approx(bits * np.log(2), rel=1e-6)


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_classes": 1}, "a classifier tells at least two classes apart, got 1"),
    ({"hidden": -1}, "hidden is a number of channels, or 0 for no such layer, got -1"),
    ({"label_smoothing": 1.0}, "label_smoothing is a share of the probability, at least 0 and below 1, got 1.0"),
])
def test_heads_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Classifier({"c5": FeatureSpec(8, 32)}, **({"num_classes": 3} | changes))


def test_a_head_without_a_hidden_layer_reads_the_last_map() -> None:
    head = Classifier({"c4": FeatureSpec(5, 16), "c5": FeatureSpec(8, 32)}, 3).eval()
    assert [name for name, _ in head.named_parameters()] == ["classify.weight", "classify.bias"]
    map_ = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(head({"c4": torch.randn(2, 5, 6, 10), "c5": map_}).logits,
                               head.classify(map_.mean((2, 3))))


def test_on_any_backbone() -> None:
    backbone = mobilenet_v2(width=0.35, taps=("c5",))
    model = Predictor(backbone, Classifier(backbone.specs, 3), classes=PETS, resize=CentreCrop((64, 96)),
                      mean=IMAGENET_MEAN, std=IMAGENET_STD).eval()
    with torch.inference_mode():
        finished = model.finished(torch.rand(2, 3, 64, 96) * 255, Classification(top=2))
    assert finished.labels.shape == finished.scores.shape == (2, 2)
    assert bool((finished.scores[:, 0] >= finished.scores[:, 1]).all())


def test_the_network_is_torchvisions(tmp_path: Path) -> None:
    """On its weights, used as trained: BatchNorm's statistics are those of images."""
    torch.manual_seed(0)
    theirs = torchvision_v3_large()
    theirs.classifier[3].weight.data.mul_(20)
    images = torch.from_numpy(np.stack(synthetic.textures(4, (96, 128), seed=1))).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (images / 255 - mean) / std
    synthetic.calibrate(theirs, [normalised])
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    loaded = config.load(CONFIG)
    model = loaded.build_model(loaded.experiment.classes).eval()
    assert sum(one.numel() for one in model.parameters()) == sum(one.numel() for one in theirs.parameters())
    report = load_weights(model, str(tmp_path / "theirs.pth"))
    assert report.renormalised
    assert not report.fresh
    assert not report.left_over
    with torch.inference_mode():
        wanted, found = theirs(normalised), model(images).logits
    assert float(wanted.std()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    whole = detseg.load(CONFIG, tmp_path / "theirs.pth")  # as detseg test takes published weights
    assert whole(synthetic.textures(1, (90, 130), seed=1)[0]).names[0] in loaded.experiment.classes.names


def test_a_published_classifier_of_other_layers_or_classes_gives_what_fits(tmp_path: Path) -> None:
    torch.save(torchvision_v3_large(num_classes=1000).state_dict(), tmp_path / "theirs.pth")
    source = str(tmp_path / "theirs.pth")
    other_classes = load_weights(config.load(CONFIG).build_model(PETS), source)
    assert other_classes.fresh == other_classes.other_classes == ("head.classify.weight", "head.classify.bias")
    assert not other_classes.left_over
    for changed in ("model.hidden=0", "model.hidden=100"):
        report = load_weights(config.load(CONFIG, [changed]).build_model(PETS), source)
        assert all(name.startswith("head.") for name in report.fresh)
        assert len(report.fresh) == (2 if changed == "model.hidden=0" else 4)
        assert report.left_over == ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight",
                                    "classifier.3.bias")


# ------------------------------------------------------------------------------------------ the task


def test_the_task() -> None:
    task = Classification(top=2)
    assert not task.scored
    assert not task.label_maps
    assert task.score_threshold == 0
    with pytest.raises(ValueError, match="top is the number of classes that are told of an image, at least 1, got 0"):
        Classification(top=0)
    batch = task.collate_targets([ClassTargets(torch.tensor(label)) for label in (2, 0, -1)], (4, 6))
    assert batch.labels.tolist() == [2, 0, -1]
    scores = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    finished = task.postprocess(ClassScores(scores))
    assert finished.labels.tolist() == [[1, 2], [0, 2]]
    sources = [Source(k, (30, 40), Placement(1, 1, 0, 0)) for k in (7, 9)]
    first, second = task.to_original(finished, sources)
    assert (first.image_id, second.image_id, second.labels.tolist()) == (7, 9, [0, 2])
    torch.testing.assert_close(first.scores, torch.tensor([0.6, 0.3]))
    assert Classification(top=9).postprocess(ClassScores(scores)).labels.shape == (2, 3)
    assert task_from(task_values(task)) == task
    assert outputs_of(task).kind == "classification"
    assert fixed_resize(CentreCrop((20, 30), 0.9), (40, 50)) == ("centre_crop", CentreCrop((40, 50), 0.9))
    assert [usual_data(one) for one in (task, Detection(), Segmentation())] == [CLASSES, BOXES, LABELS]


def test_predictions_as_values_words_and_pictures() -> None:
    found = ImageClasses(5, torch.tensor([0.75, 0.2, 0.05]), torch.tensor([1, 2, 0]))
    assert records(found, PETS) == [{"image_id": 5, "category_id": 4, "score": 0.75},
                                    {"image_id": 5, "category_id": 9, "score": pytest.approx(0.2)},
                                    {"image_id": 5, "category_id": 3, "score": pytest.approx(0.05)}]
    assert len(records(found, replace(PETS, names=("cat", "unused", "eel")))) == 2
    assert summary(found, PETS, threshold=0.9) == "dog 75%, eel 20%"
    image = np.full((120, 200, 3), 128, np.uint8)
    for drawn in (found, ClassTargets(torch.tensor(2))):
        picture = draw(drawn, image, PETS, threshold=0.9)
        changed = (picture != image).any(axis=2)
        assert changed[:40].any()
        assert not changed[60:].any()
    assert (picture[1, 1] == PETS.colours[2]).all()
    assert (draw(ClassTargets(torch.tensor(-1)), image, PETS, threshold=0.0) == image).all()
    tiny = draw(found, image[:9, :7], PETS, threshold=0.0)
    assert tiny.shape == (9, 7, 3)


# ------------------------------------------------------------------------------------------ what others take from it


@cache
def build(name: str, *overrides: str) -> Predictor:
    torch.manual_seed(1)
    return config.load(ROOT / "configs" / f"{name}.py", list(overrides)).build_model(PETS)


def backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("as_run", [True, False])
def test_a_detector_takes_its_backbone(trained: Path, as_run: bool) -> None:
    model = build("ssdlite_v3_large", "model.width=0.35", "model.size=96")
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    source = trained if as_run else trained / "best.pt"
    report = load_weights(model, str(source))
    learned = backbone_of(load(trained / "best.pt").weights)
    mine = backbone_of(model.state_dict())
    assert learned.keys() == mine.keys()
    assert all(torch.equal(mine[name], learned[name]) for name in learned)
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.head.state_dict().items())
    lines = str(report).splitlines()
    assert lines[0] == f"{source} (classifier's detseg checkpoint): {len(learned) + 2} tensors loaded"
    assert lines[1] == ("  4 left over in the file: head.hidden.weight, head.hidden.bias, head.classify.weight, "
                        "head.classify.bias")
    assert re.fullmatch(rf"  {len(head)} not in the file, start anew: head\..* and {len(head) - 6} more", lines[2])
    assert len(lines) == 3, "its images are normalised as they are"


def test_a_segmenter_takes_its_backbone_and_its_normalisation(sample: Path, tmp_path: Path) -> None:
    fit(small_config("model.reduced_tail=segmentation"), sample, out=tmp_path / "run")
    model = build("lraspp_v3_large", "model.width=0.35", "model.size=64")
    assert model.normalisation[0] == pytest.approx(IMAGENET_MEAN, abs=1e-4)
    report = load_weights(model, str(tmp_path / "run"))
    assert model.normalisation[0] == pytest.approx((0.5, 0.5, 0.5))
    assert report.renormalised
    assert str(report).splitlines()[-1] == (
        "  images are normalised with the mean and std that these weights were trained with")
    learned = backbone_of(load(tmp_path / "run" / "best.pt").weights)
    assert all(torch.equal(tensor, learned[name]) for name, tensor in backbone_of(dict(model.state_dict())).items())


def test_plain_tensors_of_a_classifier_serve_as_well(trained: Path, tmp_path: Path) -> None:
    torch.save(load(trained / "best.pt").weights, tmp_path / "plain.pth")
    report = load_weights(build("ssdlite_v3_large", "model.width=0.35", "model.size=96"), str(tmp_path / "plain.pth"))
    assert report.title == f"{tmp_path / 'plain.pth'} (classifier's detseg state dict)"


def test_another_tail_is_refused_and_a_folder_without_a_run_too(trained: Path, tmp_path: Path) -> None:
    model = build("ssdlite_v3_large", "model.width=0.35", "model.reduced_tail=false")
    with pytest.raises(ValueError, match=r"this classifier's detseg checkpoint file does not fit the network; it is "
                                         r"of another family, width or tail(.|\n)*have another shape: backbone\."):
        load_weights(model, str(trained))
    with pytest.raises(ValueError, match=r"holds no run: it has neither best\.pt nor last\.pt"):
        load_weights(model, str(tmp_path))


def test_a_classifier_of_other_classes_keeps_all_but_its_last_layer(trained: Path) -> None:
    model = small_config("model.reduced_tail=detection").build_model(PETS)
    report = load_weights(model, str(trained))
    assert report.other_classes == report.fresh == ("head.classify.weight", "head.classify.bias")
    learned = load(trained / "best.pt").weights
    assert torch.equal(model.state_dict()["head.hidden.weight"], learned["head.hidden.weight"])
    some = Classes(("star", "disc"), (1, 2))
    report = load_weights(small_config("model.reduced_tail=detection").build_model(some), str(trained))
    assert not report.fresh, "it knows both"


# ------------------------------------------------------------------------------------------ commands


def test_a_run_is_tested_predicted_and_exported(
    trained: Path, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("test", str(trained), "--per-class", "--json", "run.json", capsys=capsys)
    assert code == 0, err
    assert "top1/star" in out
    code, out, err = run("predict", str(trained), str(sample / "val" / "star"), capsys=capsys)
    assert code == 0, err
    assert re.search(r"star/000003\.jpg: \w+ \d+%", out)
    rows = json.loads(Path("predictions/predictions.json").read_text())
    assert len(rows) == len(CATEGORIES)
    assert [*rows[0]] == ["image_id", "category_id", "score"]
    assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-5)
    for arguments, message in (
        (["--threshold", "0.5"], "--threshold is for boxes: label maps have no scores, and an image always has its "
                                 "best classes; leave it out"),
        (["--labels", "maps"], f"{trained} predicts no label maps; leave --labels out"),
    ):
        assert run("predict", str(trained), str(sample / "val" / "star"), *arguments, capsys=capsys) == (
            2, "", f"error: {message}\n")

    code, out, err = run("export", str(trained), "--format", "onnx", capsys=capsys)
    assert code == 0, err
    assert "gives scores float32 [1, 5], labels int32 [1, 5]" in out
    file = Path("exports/classify.onnx")
    code, out, err = run("test", str(file), "--data", str(sample), "--json", "file.json", capsys=capsys)
    assert code == 0, err
    ours, its = (json.loads(Path(name).read_text())["top1"] for name in ("run.json", "file.json"))
    assert abs(ours - its) <= 0.2, "bytes may turn one of five"
    assert detseg.load(file)(sample / "val" / "star" / "000003.jpg").names
    for refuse, message in (
        (app_code, "there is no app code for classifiers such as exports/classify.onnx; what it takes and gives stands "
                   "in its manifest"),
        (open_for_page, "exports/classify.onnx is a classifier, and the page shows boxes and label maps; its classes "
                        "are written on pictures by detseg predict exports/classify.onnx IMAGE"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            refuse(file)


def test_which_best_classes_agree() -> None:
    """Of scores at the edge of being told either may be; drifts are those of the same class."""
    def agreed(wanted: list[tuple[int, float]], found: list[tuple[int, float]]) -> Agreement:
        agreement = Agreement()
        mine, theirs = (TopClasses(torch.tensor([[score for _, score in rows]]),
                                   torch.tensor([[label for label, _ in rows]])) for rows in (wanted, found))
        agree(mine, theirs, Classification(), agreement, TOLERANCES["fp32"])
        return agreement

    rows = [(3, 0.6), (1, 0.2), (4, 0.1)]
    assert agreed(rows, rows) == Agreement(wanted=3, matched=3)
    drifted = agreed(rows, [(1, 0.55), (3, 0.25), (4, 0.1)])
    assert (drifted.wanted, drifted.matched) == (3, 3)
    assert drifted.score_drift == pytest.approx(0.35)
    edge = agreed([(3, 0.6), (1, 0.1005), (4, 0.1)], [(3, 0.6), (4, 0.1003), (7, 0.1002)])
    assert (edge.wanted, edge.matched) == (2, 2)
    lost = agreed(rows, [(5, 0.6), (1, 0.2), (4, 0.1)])
    assert (lost.wanted, lost.matched) == (3, 2), "the best class is none at the edge"


def test_a_file_with_its_classes_in_another_order_is_told(tmp_path: Path) -> None:
    predictor, task = micro.network("classifier")
    shuffled, _ = micro.network("classifier")
    layer = shuffled.head.get_submodule("classify")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter[[1, 2, 0]].clone())
    kind, pictures = format_named("onnx"), micro.scenes(8, seed=1)
    made = export(ExportSource(shuffled, task, "x.pt"), tmp_path / "x.onnx", kind, kind.usual_options(),
                  images=pictures)
    with pytest.raises(ParityError, match=r"the classes are in another order: \d comes as \d"):
        check(made.path, ExportSource(predictor, task, "y.pt"), pictures)


def test_a_crop_is_for_classifiers_in_apps_and_on_the_page(tmp_path: Path) -> None:
    """They would take it for a stretch, without a word."""
    predictor, task = micro.network("fcn")
    predictor.resize = CentreCrop(micro.SIZE, share=0.9)
    pictures = micro.scenes(2, seed=1)
    kind = format_named("onnx")
    made = export(ExportSource(predictor, task, "runs/crop/best.pt"), tmp_path / "crop.onnx", kind,
                  kind.usual_options(), images=pictures)
    assert made.manifest.resize_rule == predictor.resize
    found = detseg.load(made.path)(pictures[0])
    assert found.labels.shape == pictures[0].shape[:2]
    with pytest.raises(ValueError, match="sees the middle of a picture, and there is no app code for such a crop"):
        app_code(made.path)
    with pytest.raises(ValueError, match="sees the middle of a picture, and the page has no such crop"):
        open_for_page(made.path)


def test_python_gives_names(trained: Path, sample: Path) -> None:
    model = detseg.load(trained)
    path = sample / "val" / "ring" / "000004.jpg"
    found = model(path)
    assert isinstance(found, detseg.BestClasses)
    assert len(found.names) == len(found.scores) == len(found.labels) == 5
    assert [model.classes.names[label] for label in found.labels.tolist()] == list(found.names)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert float(found.scores.sum()) == pytest.approx(1, abs=1e-5)
    picture = model.draw(path, found)
    assert picture.shape == model.draw(path).shape
    assert (picture == model.draw(path)).all()


def test_a_classifier_teaches_another(trained: Path, sample: Path, tmp_path: Path) -> None:
    student = config.load(CONFIG, [*SMALL, "distill.feature_weight=0"], sample=True, teacher=[str(trained)])
    student = replace(student, experiment=student.experiment.changed("schedule", Cosine(epochs=1)))
    result = fit(student, sample, out=tmp_path / "student")
    assert '"loss/distill_logits"' in result.run.log.read_text()


def test_it_resumes_bit_for_bit_and_by_command(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the config's own augmentation."""
    monkeypatch.chdir(tmp_path)
    changes = ["--set", *SMALL, "schedule.epochs=3", "schedule.warmup_steps=1"]
    common = ["train", str(CONFIG), "--data", str(sample), *changes]
    code, _, err = run(*common, "--out", "whole", capsys=capsys)
    assert code == 0, err

    original, calls = Classifier.loss, list[int]()

    def interrupted(self: Classifier, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "loss", interrupted)
        assert run(*common, "--out", "cut", capsys=capsys)[0] == 130
    assert 0 < load(Path("cut/last.pt")).step < 6
    code, _, err = run(*common, "--out", "cut", "--resume", capsys=capsys)
    assert code == 0, err
    whole, cut = load(Path("whole/last.pt")), load(Path("cut/last.pt"))
    assert whole.step == cut.step == 6
    assert all(torch.equal(tensor, cut.model[name]) for name, tensor in whole.model.items())
    assert all(torch.equal(tensor, cut.weights[name]) for name, tensor in whole.weights.items())
    assert cut.numbers == pytest.approx(whole.numbers, nan_ok=True, abs=0)
