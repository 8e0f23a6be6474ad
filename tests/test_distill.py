"""Distillation: what a student loses, what it learns, that nobody updates the teacher, resume, and what is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from detseg.checkpoint import Checkpoint, load
from detseg.config import Config
from detseg.config import load as load_config
from detseg.distillation import Distillation, Relation, Teacher, common_maps, output_losses
from detseg.fingerprint import fingerprint
from detseg.interfaces import FeatureSpec, Task, TrainingBatch
from detseg.model import Predictor
from detseg.ops.distillation import (
    BoxLesson,
    box_losses,
    feature_losses,
    lesson_by_overlap,
    lesson_of_rows,
    logits_losses,
    one_box_each,
)
from detseg.optim import Distill
from detseg.resize import Stretch
from detseg.structures import VOID, Classes, ClassScores, ClassTargets, DenseBoxes, DenseLogits, LabelTargets
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation
from detseg.train import Result, fit
from detseg.training_step import TrainingStep
from heads.classifier import Classifier
from tests import discovery, micro, tiny
from tests.one_stage import box_targets
from tests.processes import start, start_several
from tests.test_fit import assert_same_state

SMALL = ("model.batch_norm=false", "model.dropout=0")


def test_the_best_suited_prediction_teaches() -> None:
    """Overlap times score: an exact but unsure prediction gives way, one that overlaps too little teaches nobody."""
    teacher = DenseBoxes(
        torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [40, 40, 60, 60], [80, 0, 90, 10]]]),
        torch.tensor([[[0.2, 0.1], [0.1, 0.9], [0.6, 0.0], [0.05, 0.04]]]))
    mine = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 60, 50], [40, 40, 60, 49], [80, 0, 90, 10]]])
    lesson = lesson_by_overlap(mine, teacher, min_score=0.1)
    assert lesson.boxes[0, :2].tolist() == [[0, 0, 10, 8], [40, 40, 60, 60]]
    torch.testing.assert_close(lesson.scores, torch.tensor([[[0.08, 0.72], [0.3, 0.0], [0, 0], [0, 0]]]))
    torch.testing.assert_close(lesson.weights, torch.tensor([[0.9, 0.6, 0.0, 0.0]]))


def test_a_teacher_of_the_same_anchors_teaches_row_by_row() -> None:
    teacher = DenseBoxes(torch.tensor([[[0.0, 0, 10, 10], [0, 0, 4, 4]]]), torch.tensor([[[0.2, 0.7], [0.05, 0.01]]]))
    lesson = lesson_of_rows(teacher, min_score=0.1)
    assert torch.equal(lesson.boxes, teacher.boxes)
    assert torch.equal(lesson.scores, teacher.scores), "what is unsure is wanted as it is"
    torch.testing.assert_close(lesson.weights, torch.tensor([[0.7, 0.0]]))


def test_the_losses_of_boxes_by_hand() -> None:
    """(y - p)^2 times the entropy: (0.8 - 0.5)^2 ln 2 and 0.5^2 ln 2; and 1 - GIoU: 1 - (0.5 - 0) of half a box."""
    scores = torch.tensor([[[0.5, 0.5]]], requires_grad=True)
    student = DenseBoxes(torch.tensor([[[0.0, 0, 10, 5]]]), scores)
    lesson = BoxLesson(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[[0.8, 0.0]]]), torch.tensor([[0.8]]))
    losses = box_losses(student, lesson)
    assert losses["distill_class"].sum.item() == pytest.approx((0.09 + 0.25) * 0.693147, rel=1e-5)
    assert losses["distill_box"].sum.item() == pytest.approx(0.8 * 0.5, rel=1e-5)
    assert losses["distill_class"].count is losses["distill_box"].count
    assert float(losses["distill_class"].count) == pytest.approx(0.8)
    (gradient,) = torch.autograd.grad(losses["distill_class"].sum, scores)
    assert gradient[0, 0, 0] < 0 < gradient[0, 0, 1]


@pytest.mark.parametrize("logit", [-200.0, -40.0, 60.0])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_student_that_is_sure_and_wrong_gets_a_finite_gradient(logit: float, softmax: bool) -> None:
    logits = torch.tensor([[[0.0, logit]]], requires_grad=True)
    scores = logits.softmax(-1) if softmax else logits.sigmoid()
    everywhere = torch.zeros(1, 1, 4)
    losses = box_losses(DenseBoxes(everywhere, scores), BoxLesson(
        everywhere, torch.tensor([[[0.5, 0.9 if logit < 0 else 0.0]]]), torch.zeros(1, 1)))
    (gradient,) = torch.autograd.grad(losses["distill_class"].sum + losses["distill_box"].sum, logits)
    assert bool(gradient.isfinite().all())
    assert logit != -40.0 or softmax or float(gradient[0, 0, 1]) < 0, "a small probability is not cut off"


def test_of_boxes_for_each_class_that_of_the_surest_counts() -> None:
    dense = DenseBoxes(torch.arange(16.0).view(1, 2, 2, 4), torch.tensor([[[0.1, 0.2], [0.4, 0.3]]]))
    assert one_box_each(dense).boxes.tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]]]
    assert one_box_each(one_box_each(dense)).boxes.tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]]]


def test_the_divergence_of_logits_by_hand() -> None:
    """Softmax of (ln 3, 0) is (0.75, 0.25); at temperature 2 that of (2 ln 3, 0) is the same."""
    uniform, sure = torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4)
    sure[:, 0] = 1.0986123
    expected = 0.75 * 0.4054651 + 0.25 * -0.6931472
    (term,) = logits_losses(uniform, sure, temperature=1.0).values()
    assert int(term.count) == 24
    assert term.sum.item() == pytest.approx(24 * expected, rel=1e-5)
    (softer,) = logits_losses(uniform, 2 * sure, temperature=2.0).values()
    assert softer.sum.item() == pytest.approx(4 * 24 * expected, rel=1e-5)


def test_features_have_no_scale() -> None:
    maps, other = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 3)
    losses = feature_losses([maps, other], [maps * 7 + torch.arange(3).view(1, 3, 1, 1), -other])
    assert float(losses["distill_feature"].count) == 4, "two images of two maps"
    assert losses["distill_feature"].sum.item() == pytest.approx(2 * 4, rel=1e-3), "opposite maps lie 4 apart"
    dead = torch.zeros(2, 3, 1, 1, requires_grad=True)
    losses = feature_losses([dead], [torch.ones(2, 3, 1, 1)])
    (gradient,) = torch.autograd.grad(losses["distill_feature"].sum, dead)
    assert float(gradient.abs().max()) == 0, "a single cell has no variance"


def test_maps_find_a_teacher_by_name_or_by_stride() -> None:
    mine = {"c3": FeatureSpec(8, 8), "c4.expansion": FeatureSpec(24, 16), "c5": FeatureSpec(16, 32)}
    theirs = {"p4": FeatureSpec(64, 16), "q4": FeatureSpec(64, 16), "c5": FeatureSpec(64, 16)}
    assert common_maps(mine, theirs) == {"c4.expansion": "c5", "c5": "c5"}


def teacher_of(predictor: Predictor, task: Task[Any, Any, Any, Any]) -> Teacher:
    return Teacher(predictor, task, name="teacher.pt", meaning=fingerprint(predictor, task))


def distillation(student: str, teacher: str = "", *, settings: Distill | None = None) -> tuple[Predictor, Distillation]:
    """Of the smallest networks of two heads; the teacher has an input of another size."""
    mine, task = micro.network(student)
    if not teacher:
        return mine, Distillation(mine, task, settings=settings or Distill("run"), teacher=teacher_of(mine, task))
    theirs, their_task = micro.network(teacher)
    theirs.resize = Stretch((96, 128))
    return mine, Distillation(mine, task, settings=settings or Distill("run"), teacher=teacher_of(theirs, their_task))


def batch_of(student: Predictor, number: int) -> TrainingBatch[Any]:
    images = micro.inputs(micro.scenes(number, seed=5), micro.SIZE).to(torch.uint8)
    if isinstance(student.head, Classifier):
        return TrainingBatch(images, ClassTargets(torch.arange(number) % 3))
    if "distill_logits" in terms_of(student):
        labels = torch.randint(0, 3, (number, *micro.SIZE), dtype=torch.uint8)
        labels[:, :9] = VOID
        return TrainingBatch(images, LabelTargets(labels))
    objects = [[((4.0 + i, 4.0, 40.0, 40.0), i % 3, False), ((50.0, 20.0, 90.0, 60.0), 0, i % 2 == 0)]
               for i in range(number)]
    return TrainingBatch(images, box_targets(*objects)._replace(seed=torch.arange(number)))


def terms_of(student: Predictor) -> tuple[str, ...]:
    """The terms of its outputs."""
    with torch.no_grad():
        dense = student.decode(torch.zeros(2, 3, *micro.SIZE))
    return ("distill_class", "distill_box") if isinstance(dense, DenseBoxes) else ("distill_logits",)


HEADS = sorted(discovery.head_classes())


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_from_another(head: str) -> None:
    """Boxes from RetinaNet, label maps from LR-ASPP, classes from a classifier, at another input size; the teacher
    stays as it is."""
    teachers = {Detection: "retinanet", Segmentation: "lraspp", Classification: "classifier"}
    student, objective = distillation(head, teachers[type(micro.network(head)[1])])
    before = {name: tensor.clone() for name, tensor in objective.teacher.network.state_dict().items()}
    losses = objective(objective.student.train(), student, batch_of(student, 2))
    own = {*losses} - {*terms_of(student), "distill_feature"}
    assert own
    assert losses.keys() > {*terms_of(student), "distill_feature"}
    assert all(bool(term.sum.isfinite()) and float(term.count) > 0 for term in losses.values())
    taught: Tensor = sum((losses[name].sum for name in losses if name not in own), torch.zeros(()))
    taught.backward()  # type: ignore[no-untyped-call]
    for module in (student.backbone, student.head, objective.student.adapters):
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    teacher = objective.teacher.network
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn"])
def test_a_faster_rcnn_teaches(head: str) -> None:
    student, objective = distillation(head, "faster_rcnn", settings=Distill("run", feature_weight=0))
    losses = objective(objective.student, student, batch_of(student, 2))
    assert float(losses["distill_box"].count) > 0
    assert losses["distill_box"].sum.item() > 0


@pytest.mark.parametrize("head", ["ssdlite", "lraspp", "classifier"])
def test_who_is_its_own_teacher_has_nothing_to_learn(head: str) -> None:
    """Row by row, where heads and sizes are the same: there is nothing to match, and the distance is 0."""
    student, objective = distillation(head, settings=Distill("run", feature_weight=0, label_weight=0))
    student.eval()
    losses = objective(objective.student, student, batch_of(student, 2))
    assert objective.same_head
    for name, term in losses.items():
        assert abs(term.sum.item() / max(float(term.count), 1.0)) < 1e-4, name
    if head == "ssdlite":
        images = torch.zeros(1, 3, *micro.SIZE)
        dense = student.decode(images)
        best = dense.scores.amax(-1)
        losses = objective(objective.student, student, batch_of(student, 2)._replace(
            images=images, targets=box_targets([])))
        torch.testing.assert_close(losses["distill_box"].count, best[best >= 0.1].sum(), rtol=1e-3, atol=1e-3)


def test_boxes_and_classes_of_a_teacher_are_brought_to_the_students() -> None:
    """Its image is twice as high and three times as wide, its classes stand in another order."""
    mine = DenseBoxes(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[[0.3, 0.5, 0.6]]]))
    theirs = DenseBoxes(torch.tensor([[[0.0, 0, 30, 20]]]), torch.tensor([[[0.9, 0.2]]]))
    relation = Relation(torch.tensor([0, 2]), torch.tensor([1, 0]), (1 / 2, 1 / 3), same_anchors=False)
    losses = output_losses(mine, theirs, relation=relation, settings=Distill("run"))
    wanted = box_losses(DenseBoxes(mine.boxes, torch.tensor([[[0.3, 0.6]]])), BoxLesson(
        mine.boxes, torch.tensor([[[0.2, 0.9]]]), torch.tensor([[0.9]])))
    for name, term in wanted.items():
        torch.testing.assert_close(losses[name].sum, term.sum)
        torch.testing.assert_close(losses[name].count, term.count)
    logits = torch.randn(1, 3, 2, 2)
    (term,) = output_losses(DenseLogits(logits, (8, 8)), DenseLogits(logits[:, [2, 0]], (8, 8)), relation=relation,
                            settings=Distill("run")).values()
    assert term.sum.item() == pytest.approx(0, abs=1e-5)
    of_images, taught = torch.randn(4, 3), torch.randn(4, 2)
    (term,) = output_losses(ClassScores(of_images.softmax(1)), ClassScores(taught.softmax(1)), relation=relation,
                            settings=Distill("run", temperature=2.0)).values()
    (expected,) = logits_losses(of_images[:, [0, 2]], taught[:, [1, 0]], temperature=2.0).values()
    torch.testing.assert_close(term.sum, expected.sum)
    assert int(term.count) == 4


def test_a_class_list_in_another_order_teaches_the_same() -> None:
    student, _ = distillation("lraspp")
    task = micro.network("lraspp")[1]
    turned, _ = micro.network("lraspp")
    turned.classes = Classes(names=("washer", "slot", "nut", "bolt"), source_ids=(40, 50, 2, 5))
    with pytest.raises(ValueError, match=r"the teacher teacher.pt knows other classes:\n  id 50: 'absent' here, 's"):
        Distillation(student, task, settings=Distill("run"), teacher=teacher_of(turned, task))
    turned.classes = Classes(names=("washer", "unused", "nut", "bolt"), source_ids=(40, 50, 2, 5))
    objective = Distillation(student, task, settings=Distill("run"), teacher=teacher_of(turned, task))
    assert (objective.columns.tolist(), objective.teacher_columns.tolist()) == ([0, 1, 2], [2, 3, 0])


def test_the_teacher_sees_the_images_at_its_size() -> None:
    seen: list[Tensor] = []
    student, objective = distillation("ssdlite", "retinanet")
    objective.teacher.network.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    objective(objective.student, student, batch_of(student, 2))
    assert seen[0].shape == (2, 3, 96, 128)
    assert not objective.teacher.network.backbone.training


def gradients(head: str, teacher: str, *, parts: int) -> tuple[dict[str, float], list[Tensor]]:
    student, objective = distillation(head, teacher)
    config = discovery.small_config(discovery.config_of_head(head))
    experiment = replace(config.experiment, batch_size=8, accumulate=parts, ema=None)
    step = TrainingStep(student, experiment, fabric=Fabric(accelerator="cpu", devices=1), through=objective.student,
                        beside=objective.student.adapters, objective=objective)
    student.eval()  # BatchNorm sees the images of a part
    torch.manual_seed(0)
    losses = step.gradient(batch_of(student, 8))
    learning = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in objective.student.parameters()} >= {id(parameter) for parameter in learning}
    assert {id(parameter) for parameter in objective.student.adapters.parameters()} <= {id(p) for p in learning}
    return losses, [parameter.grad for parameter in objective.student.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(("head", "teacher"), [("ssdlite", "retinanet"), ("lraspp", "deeplabv3")])
def test_parts_give_the_gradient_of_the_whole(head: str, teacher: str) -> None:
    (whole_losses, whole), (part_losses, partly) = (gradients(head, teacher, parts=parts) for parts in (1, 2))
    assert whole_losses == pytest.approx(part_losses, rel=1e-5)
    assert len(whole) == len(partly) > 4
    for one, other in zip(whole, partly, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(one.norm()) + 1e-7


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to learn from."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.begin_in(folder, monkeypatch)
        monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
        train("schedule.epochs=10", "validate_every=5", "optimizer.lr=0.3", "model.channels=6", out="teacher")
    return folder / "teacher"


@pytest.fixture
def brightness(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own, with a config, data, and a run to learn from, whose network is another one."""
    tiny.begin_in(tmp_path, monkeypatch)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    shutil.copytree(trained, "teacher")
    return "teacher"


def train(
    *overrides: str, teacher: Sequence[str] = (), out: str = "run", resume: bool = False, config_changed: bool = False
) -> Result:
    return fit(config_of(*overrides, teacher=teacher), Path("data"), out=Path(out), resume=resume,
               config_changed=config_changed)


def config_of(*overrides: str, teacher: Sequence[str] = ()) -> Config:
    return load_config(Path("brightness.py"), overrides, teacher=teacher)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert_same_state(one, other)
    assert one.teacher == other.teacher
    assert one.adapters is not None
    assert other.adapters is not None
    assert one.adapters.keys() == other.adapters.keys() == {"0.weight"}
    assert torch.equal(one.adapters["0.weight"], other.adapters["0.weight"])


def test_a_student_learns_from_the_teacher_alone(brightness: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("teacher/best.pt").read_bytes()
    result = train("schedule.epochs=30", "optimizer.lr=0.3", "model.dropout=0", "distill.label_weight=0",
                   teacher=[brightness])
    assert result.numbers["accuracy"] == 1.0
    assert Path("teacher/best.pt").read_bytes() == before
    assert "teacher: teacher/best.pt, of outputs, c1 from c1\n" in capsys.readouterr().out
    lines = [json.loads(line) for line in result.run.log.read_text().splitlines()]
    first, *_, last = [line for line in lines if line["kind"] == "train"]
    assert (first["loss/entropy"], last["loss/entropy"]) == (0, 0), "labels count for nothing"
    assert last["loss/distill_feature"] < first["loss/distill_feature"]
    assert last["loss/distill_class"] < first["loss/distill_class"]


def test_a_run_leaves_an_ordinary_network_and_tells_its_teacher(brightness: str) -> None:
    result = train("distill.output_weight=2", teacher=["brightness.py", "teacher/last.pt"])
    last, plain = load(result.run.last), load(train(out="plain").run.last)
    assert last.model.keys() == plain.model.keys()
    assert (plain.teacher, plain.adapters) == (None, None)
    assert not any(name.startswith("distill") for name in plain.settings)
    assert last.settings["distill.output_weight"] == 2.0
    assert last.teacher is not None
    meaning = load(Path("teacher/last.pt")).fingerprint
    assert meaning is not None
    assert last.teacher.items() > meaning.items()
    assert last.teacher["weights"].startswith("sha256 ")
    described = json.loads(result.run.resolved.read_text())
    assert described["teacher"] == last.teacher
    assert described["settings"]["distill.checkpoint"] == {"value": "teacher/last.pt", "from": "--teacher"}
    assert "teacher" not in json.loads(Path("plain/resolved.json").read_text())
    assert last.adapters is not None
    assert last.adapters["0.weight"].shape == (6, 4, 1, 1)


@pytest.mark.parametrize("call", [2, 5])
def test_ctrl_c_and_resume_is_exact(call: int, brightness: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train("accumulate=2", teacher=[brightness], out="undisturbed")
    monkeypatch.setattr(tiny.BrightnessHead, "calls", 0)
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", 3 * call)  # a step counts one part ahead
    with pytest.raises(KeyboardInterrupt):
        train("accumulate=2", teacher=[brightness])
    assert load(Path("run/last.pt")).step == call
    monkeypatch.setattr(tiny.BrightnessHead, "interrupt_at", None)
    Path("teacher").rename("moved")
    resumed = train("accumulate=2", teacher=["moved"], resume=True)
    assert_same(load(resumed.run.last), load(undisturbed.run.last))
    assert_same(load(resumed.run.best), load(undisturbed.run.best))


def test_killed_and_resumed_is_bit_identical(brightness: str) -> None:
    overrides = ["schedule.epochs=25", "validate_every=10"]
    started = start("train", ["brightness.py", "--data", "data", "--out", "run", "--teacher", brightness, "--set",
                              *overrides, "save_minutes=0"])
    killed_at = started.kill_when_saved(Path("run/last.pt"), step=8, timeout=240)
    assert 8 <= killed_at < 75
    resumed = train(*overrides, teacher=[brightness], resume=True)
    undisturbed = train(*overrides, teacher=[brightness], out="undisturbed")
    assert_same(load(resumed.run.last), load(undisturbed.run.last))
    assert_same(load(resumed.run.best), load(undisturbed.run.best))


def test_several_processes_learn_like_one(brightness: str) -> None:
    """The adapters too, whose gradients are averaged with the network's."""
    both = start_several(2, "train", ["brightness.py", "--data", "data", "--out", "two", "--teacher", brightness,
                                      "--set", *SMALL])
    assert [one.exit_code() for one in both] == [0, 0], both[0].said()
    two, one = load(Path("two/last.pt")), load(train(*SMALL, teacher=[brightness], out="one").run.last)
    assert two.numbers["accuracy"] == one.numbers["accuracy"]
    assert one.adapters is not None
    assert two.adapters is not None
    for mine, theirs in ((one.weights, two.weights), (one.adapters, two.adapters)):
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)


def test_another_teacher_is_refused_on_resume(brightness: str) -> None:
    train(teacher=[brightness])
    train("model.channels=6", "seed=3", out="other")
    with pytest.raises(ValueError, match=r"(?s)was started with another config .*\n  teacher's weights: sha256 "
                                         r"[0-9a-f]{64} there, sha256 [0-9a-f]{64} here$"):
        train(teacher=["other"], resume=True)
    train(out="plain")
    with pytest.raises(ValueError, match=r"teacher's backbone.block.conv: Conv2d\(3, 6, .* there, Conv2d\(3, 4, "):
        train(teacher=["plain"], resume=True)
    with pytest.raises(ValueError, match=r"(?s)what run/last.pt holds of adapters does not fit .*0.weight: 6x4x1x1 th"):
        train(teacher=["plain"], resume=True, config_changed=True)
    with pytest.raises(ValueError, match=r"distill.output_weight: 1.0 in the run, absent now"):
        train(resume=True)
    with pytest.raises(ValueError, match=r"distill.output_weight: absent in the run, 1.0 now"):
        train(teacher=[brightness], out="plain", resume=True)
    insisted = train(teacher=["other"], resume=True, config_changed=True)
    assert json.loads(insisted.run.resolved.read_text())["teacher"]["weights"] != load(
        Path("run/best.pt")).teacher["weights"]  # type: ignore[index]


def other_classes(teacher: str) -> None:
    content = torch.load(f"{teacher}/best.pt", weights_only=True)
    content["classes"]["names"][2] = "dazzling"
    content["fingerprint"]["classes"] = "3 dark, 4 unused, 5 dazzling"
    torch.save(content, f"{teacher}/best.pt")


def no_fingerprint(teacher: str) -> None:
    content = torch.load(f"{teacher}/best.pt", weights_only=True)
    torch.save(content | {"fingerprint": None}, f"{teacher}/best.pt")


def changed_config(teacher: str) -> None:
    path = Path(teacher) / "brightness.py"
    path.write_text(path.read_text().replace("0.99", "0.98"))


@pytest.mark.parametrize(("harm", "message"), [
    (other_classes, r"^the teacher teacher/best.pt knows other classes:\n  id 5: 'bright' here, 'dazzling' there$"),
    (no_fingerprint, r"the teacher teacher/best.pt carries no fingerprint: it is published weights, or was written by "
                     r"an older detseg\. .* with --weights teacher/best.pt$"),
    (changed_config, r"(?s)teacher/best.pt was trained with another config, .*ema=EMA\(decay=0.98\)"),
])
def test_what_cannot_teach(harm: Callable[[str], None], message: str, brightness: str) -> None:
    harm(brightness)
    with pytest.raises(ValueError, match=message):
        train(teacher=[brightness])
    assert not Path("run").exists(), "what is refused leaves no folder"


def test_a_teacher_of_another_config_can_be_insisted_on(brightness: str) -> None:
    changed_config(brightness)
    train("schedule.epochs=1", "schedule.warmup_steps=0", teacher=[brightness], config_changed=True)


def test_a_teacher_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="nowhere is no run folder; name one, or a config and a checkpoint"):
        train(teacher=["nowhere"])
    Path("network.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"network\.onnx is an exported file, which cannot teach; name the run "):
        train(teacher=["network.onnx"])


def test_a_teacher_of_another_task_is_refused() -> None:
    student, task = micro.network("ssdlite")
    segmenter, segmentation = micro.network("lraspp")
    with pytest.raises(ValueError, match=r"teacher.pt is for another task: Segmentation there, Detection here"):
        Distillation(student, task, settings=Distill("run"), teacher=teacher_of(segmenter, segmentation))


def test_a_teacher_without_a_map_in_common_is_refused() -> None:
    student, task = micro.network("ssdlite")
    other, _ = micro.network("ssdlite")
    other.backbone.specs = {"p3": FeatureSpec(8, 8)}
    with pytest.raises(ValueError, match=r"no map of a name or stride of the student's: p3 at stride 8 there, "
                                         r"c4.* at stride 16, c5 at stride 32 here; .* --set distill.feature_weight=0"):
        Distillation(student, task, settings=Distill("run"), teacher=teacher_of(other, task))


def test_predictions_of_an_unknown_kind_are_refused() -> None:
    relation = Relation(torch.tensor([0]), torch.tensor([0]), (1.0, 1.0), same_anchors=True)
    with pytest.raises(ValueError, match="predictions that are a float cannot be distilled; leave them out with"):
        output_losses(1.0, 2.0, relation=relation, settings=Distill("run"))


@pytest.mark.parametrize(("overrides", "teacher", "message"), [
    ([], ["a", "b", "c"], "--teacher takes a run, or a config and its checkpoint, got 3: a, b, c"),
    (["distill.output_weight=-1"], ["a"], "output_weight must be at least 0, got -1"),
    (["distill.temperature=0"], ["a"], "temperature must be above 0, got 0"),
    (["distill.min_score=2"], ["a"], "min_score must be at least 0 and at most 1, got 2"),
    (["distill.feature_weight=0", "distill.output_weight=0"], ["a"],
     "output_weight and feature_weight are both 0, so nothing is learned of the teacher"),
    (["distill.teacher=b"], ["a"], "distill.teacher is text or a list; --set changes numbers"),
    (["distill.output_weight=1"], [], "there is no setting 'distill.output_weight'"),
])
def test_settings_that_cannot_be(
    overrides: list[str], teacher: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.begin_in(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        config_of(*overrides, teacher=teacher)


def test_settings_in_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.begin_in(tmp_path, monkeypatch)
    text = tiny.CONFIG.replace("batch_size=6,", "batch_size=6, distill=Distill('a', 'b', temperature=3.0),", 1).replace(
        "EMA, SGD", "EMA, SGD, Distill")
    tiny.write_config(Path(), text=text)
    entries = config_of("distill.min_score=0.2").entries()
    assert [entries[f"distill.{name}"][:2] for name in ("teacher", "checkpoint", "temperature", "min_score")] == [
        ("a", "file"), ("b", "file"), (3.0, "file"), (0.2, "command line")]
    entries = config_of(teacher=["c"]).entries()
    assert [entries[f"distill.{name}"][:2] for name in ("teacher", "checkpoint", "temperature")] == [
        ("c", "--teacher"), (None, "--teacher"), (3.0, "file")]
    assert not any(name.startswith("distill") for name in config_of("distill=none").settings())
    assert "distill.temperature" in config_of().describe()
    with pytest.raises(ValueError, match="distill and qat do not go together; distil first, then train what came"):
        load_config(Path("brightness.py"), qat=True)
    tiny.write_config(Path(), text=text.replace("log_every=1,", "log_every=1, objective=test_fit.taught,").replace(
        "import tiny", "import test_fit, tiny"))
    with pytest.raises(ValueError, match="does not go together with the objective taught; leave one out"):
        config_of()
