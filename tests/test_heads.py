"""What every head keeps, found by discovery: a new file in heads/ gets all of it for nothing.

Each head is built as the first config that uses it builds it, small, on one convolution for each tap, with outputs that
differ from place to place and BatchNorm as after training: statistics of images, and factors and offsets that differ.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from detseg.benchmark import synthetic
from detseg.config import Config
from detseg.interfaces import Head, Losses, TrainingBatch
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.structures import VOID, BoxTargets, ClassTargets, LabelTargets, Size
from detseg.tasks.classification import Classification
from detseg.tasks.detection import Detection
from detseg.training_step import TrainingStep

from . import discovery
from .conftest import ROOT

HEADS = discovery.head_classes()
SIZE = (96, 128)
UNEVEN_SIZE = (83, 121)
"""No multiple of any stride."""
SMALL_SIZE = (72, 104)


@dataclass(frozen=True, repr=False)
class Built:
    """A head in its network, which is in evaluation mode."""

    config: Config
    model: Predictor

    @property
    def head(self) -> Head[Any, Any, Any]:
        return self.model.head

    @property
    def task(self) -> Any:
        return self.config.experiment.task

    @property
    def has_boxes(self) -> bool:
        """An image without objects then has negatives; of label maps and classes nothing is left to learn."""
        return isinstance(self.task, Detection)


@pytest.fixture(scope="module")
def first_configs() -> dict[str, Config]:
    """For each head the first config that uses it."""
    return {head: discovery.small_config(discovery.config_of_head(head)) for head in discovery.one_config_a_head()}


@pytest.fixture(scope="module", params=HEADS)
def built(request: pytest.FixtureRequest, first_configs: Mapping[str, Config]) -> Built:
    config = first_configs[request.param]
    # What a head draws at random should be few of many.
    settings = {name: entry._replace(value=32) if name.endswith("_samples") else entry
                for name, entry in config.model_settings.items()}
    torch.manual_seed(0)
    model = replace(config, model_settings=settings).build_model(discovery.OWN)
    model.backbone = synthetic.OneConvolution(model.backbone.specs)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    synthetic.enliven(model, SIZE)
    return Built(config, model)


def _images(number: int, size: Size = SIZE) -> Tensor:
    return torch.from_numpy(np.stack(synthetic.textures(number, size, seed=1))).permute(0, 3, 1, 2)


def _objects(built: Built, number: int, size: Size = SIZE) -> list[Any]:
    """Targets of images, each with one object more than the one before; of label maps a part is VOID."""
    return [synthetic.targets(built.task, size, len(discovery.OWN), seed=seed) for seed in range(number)]


def _nothing(built: Built, *, padding: int = 0) -> Any:
    """Targets of an image that shows no object."""
    if not built.has_boxes:
        return _ignored(built)
    return _boxes(torch.zeros(padding, 4), torch.full((padding,), -1))


def _ignored(built: Built, size: Size = SIZE) -> Any:
    """Targets of an image of which nothing is asked."""
    if built.task.label_maps:
        return LabelTargets(torch.full(size, VOID, dtype=torch.uint8))
    if isinstance(built.task, Classification):
        return ClassTargets(torch.tensor(-1))
    height, width = size
    return _boxes(torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([1]), crowd=True)


def _boxes(boxes: Tensor, labels: Tensor, *, crowd: bool = False) -> BoxTargets:
    return BoxTargets(boxes, labels, torch.full(labels.shape, crowd) & (labels >= 0), torch.tensor(0))


def _numbers(losses: Losses) -> dict[str, tuple[float, float]]:
    return {name: (float(term.sum.detach()), float(term.count)) for name, term in losses.items()}


def _added(several: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    return {name: (sum(one[name][0] for one in several), sum(one[name][1] for one in several)) for name in several[0]}


def _assert_equal(found: dict[str, tuple[float, float]], wanted: dict[str, tuple[float, float]]) -> None:
    assert found.keys() == wanted.keys()
    for name, numbers in found.items():
        assert numbers == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name


def _double(model: Predictor) -> Predictor:
    """A copy in which rounding is no excuse; heads compute losses, boxes and regions in float32."""
    model = copy.deepcopy(model).double()
    if model.head.second_stage is not None:
        model.head.second_stage.float()
    return model


def _gradients(built: Built, targets: Any) -> tuple[dict[str, tuple[float, float]], list[Tensor]]:
    """The loss of as many images as there are targets, and its gradients in the raw outputs."""
    with torch.no_grad():
        raw = built.model(_images(len(targets)))
    raw = tree_map(lambda x: x.detach().requires_grad_(), raw)
    losses = built.head.loss(raw, built.task.collate_targets(targets, SIZE), SIZE)
    total = torch.stack([term.sum for term in losses.values()]).sum()
    gradients = torch.autograd.grad(total, tree_leaves(raw), allow_unused=True, materialize_grads=True)
    return _numbers(losses), list(gradients)


# ------------------------------------------------------------------------------------------ discovery


def test_every_head_is_found(first_configs: Mapping[str, Config]) -> None:
    files = {path.stem for path in (ROOT / "heads").glob("*.py")} - {"__init__"}
    assert len(files) >= 9
    assert set(HEADS) == set(first_configs) == files
    assert len(set(HEADS.values())) == len(files)


# ------------------------------------------------------------------------------------------ loss


def test_images_without_an_object(built: Built) -> None:
    """In training: the loss and every gradient are finite, and every parameter has one, as DDP demands."""
    found = []
    for padding in (0, 3):
        model = copy.deepcopy(built.model).train()
        torch.manual_seed(0)
        targets = built.task.collate_targets([_nothing(built, padding=padding)] * 4, SIZE)
        losses = model.head.loss(model(_images(4)), targets, SIZE)
        torch.autograd.backward([term.sum for term in losses.values()])
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            if not built.has_boxes:
                assert not parameter.grad.any(), name
        found.append(_numbers(losses))
        assert np.isfinite(list(found[-1].values())).all()
        if not built.has_boxes:
            assert set(found[-1].values()) == {(0.0, 0.0)}
    _assert_equal(*found)


def test_crowds_and_void_are_ignored_by_the_loss(built: Built) -> None:
    if built.task.label_maps:
        _check_void(built)
    elif isinstance(built.task, Classification):
        _check_unknown(built)
    else:
        _check_crowds(built)


def _check_void(built: Built) -> None:
    """Two halves of the label maps count as much as the whole, and outputs inside the VOID half get no gradient."""
    labels = torch.stack([one.labels for one in _objects(built, 2)])
    left, right = labels.clone(), labels.clone()
    left[..., SIZE[1] // 2:], right[..., : SIZE[1] // 2] = VOID, VOID
    (both, _), (on_left, gradients), (on_right, _) = (
        _gradients(built, [LabelTargets(one) for one in maps]) for maps in (labels, left, right))
    _assert_equal(_added([on_left, on_right]), both)
    assert all(0 < numbers[1] < both[name][1] for name, numbers in on_left.items())
    for gradient in gradients:
        columns = gradient.abs().amax((0, 1, 2))
        half = len(columns) // 2
        assert bool((columns[:half] > 0).all())
        assert not columns[half + 1:].any()


def _check_unknown(built: Built) -> None:
    """An image of unknown class counts for nothing and gets no gradient."""
    known = _objects(built, 2)
    wanted, _ = _gradients(built, known)
    found, (gradient,) = _gradients(built, [*known, _ignored(built)])
    _assert_equal(found, wanted)
    assert bool((gradient[:2] != 0).all())
    assert not gradient[2].any()


def _check_crowds(built: Built) -> None:
    """A crowd over everything leaves nothing to learn but the objects on it; beside a crowd there are negatives."""
    height, width = (float(side) for side in SIZE)
    found, gradients = _gradients(built, [_ignored(built)] * 2)
    assert set(found.values()) == {(0.0, 0.0)}
    assert not any(gradient.any() for gradient in gradients)

    # An object at the right edge; the outputs of the left column are all about what lies in the crowd.
    boxes = torch.tensor([[width - 32, 30.0, width - 2, 60.0], [0.0, 0.0, 0.625 * width, height]])
    plain = _boxes(boxes[:1], torch.tensor([0]))
    crowded = [plain._replace(boxes=boxes, labels=torch.tensor([0, label]), crowd=torch.tensor([False, True]))
               for label in range(3)]
    _, without = _gradients(built, [plain] * 8)
    (found, gradients), *others = (_gradients(built, [one] * 8) for one in crowded)
    assert any(bool(gradient[..., 0].any()) for gradient in without)
    assert not any(gradient[..., 0].any() for gradient in gradients)
    assert all(count > 0 for _, count in found.values())
    for other, same in others:
        assert other == found, "the class of a crowd matters"
        assert all(map(torch.equal, same, gradients))


def test_the_loss_is_a_sum_over_images(built: Built) -> None:
    """Of which one shows nothing."""
    first, second, third = _objects(built, 3)
    targets = [first, _nothing(built), second, third]
    with torch.no_grad():
        raw = built.model(_images(len(targets)))
        together = built.head.loss(raw, built.task.collate_targets(targets, SIZE), SIZE)
        apart = [
            built.head.loss(tree_map(lambda x, row=row: x[row : row + 1], raw),
                            built.task.collate_targets([one], SIZE), SIZE)
            for row, one in enumerate(targets)]
    assert all(float(term.count) > 0 for term in together.values())
    _assert_equal(_numbers(together), _added([_numbers(losses) for losses in apart]))


def test_terms_with_one_normalizer_share_its_tensor(built: Built) -> None:
    """So that a step need not know the total before the first gradient: only a second stage may have its own."""
    with torch.no_grad():
        losses = built.head.loss(built.model(_images(2)), built.task.collate_targets(_objects(built, 2), SIZE), SIZE)
    tensors = {id(term.count): term.count for term in losses.values()}
    assert len(tensors) == (1 if built.head.second_stage is None else 2)
    assert len({float(count) for count in tensors.values()}) == len(tensors)


def test_one_step_of_8_images_has_the_gradient_of_2_parts_of_4(built: Built) -> None:
    """In evaluation mode, for BatchNorm and dropout see the parts. The first part counts less than the second."""
    targets = [_ignored(built, SMALL_SIZE), *_objects(built, 7, SMALL_SIZE)]
    batch = TrainingBatch(_images(8, SMALL_SIZE), built.task.collate_targets(targets, SMALL_SIZE))
    at_once, in_parts = (_step_gradient(built, batch, parts=number) for number in (1, 2))
    assert float(at_once.norm()) > 0
    assert float((in_parts - at_once).norm() / at_once.norm()) <= 1e-6


def _step_gradient(built: Built, batch: TrainingBatch[Any], *, parts: int) -> Tensor:
    """Of all parameters, one after the other."""
    experiment = built.config.experiment.changed("batch_size", len(batch.images)).changed("accumulate", parts)
    fabric = Fabric(accelerator="cpu", devices=1)
    model = _double(built.model)
    TrainingStep(model, experiment.changed("ema", None), fabric=fabric).gradient(batch)
    gradients = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradients.append(parameter.grad.flatten().double())
    return torch.cat(gradients)


# ------------------------------------------------------------------------------------------ decoding


def test_raw_holds_outputs_of_the_network_alone(built: Built) -> None:
    leaves = tree_leaves(built.model(_images(2)))
    assert leaves
    for leaf in leaves:
        assert isinstance(leaf, Tensor)
        assert leaf.requires_grad
        assert len(leaf) == 2


@pytest.mark.parametrize("size", [SIZE, UNEVEN_SIZE])
def test_dense_predictions_fit_the_image(built: Built, size: Size) -> None:
    with torch.inference_mode():
        dense = built.model.decode(_images(2, size))
    height, width = size
    if built.task.label_maps:
        logits = enlarge(dense)
        assert logits.shape == (2, len(discovery.OWN), height, width)
        assert logits.dtype == torch.float32
        assert bool(logits.isfinite().all())
        return
    if isinstance(built.task, Classification):
        assert dense.scores.shape == (2, len(discovery.OWN))
        torch.testing.assert_close(dense.scores.sum(1), torch.ones(2))
        return
    assert dense.scores.shape == (2, dense.boxes.shape[1], len(discovery.OWN))
    assert bool(((dense.scores >= 0) & (dense.scores <= 1)).all())
    assert bool((dense.boxes >= 0).all())
    assert bool((dense.boxes[..., 2:] >= dense.boxes[..., :2]).all())
    # At the border, boxes reach out of the image before they are clipped.
    boxes = dense.boxes.flatten(0, -2)
    assert boxes[:, :2].amin(0).tolist() == [0, 0]
    assert boxes[:, 2:].amax(0).tolist() == [width, height]


def test_folded_it_predicts_the_same(built: Built) -> None:
    model = _double(built.model)
    with torch.inference_mode():
        wanted, found = (network.decode(_images(2)) for network in (model, model.folded()))
    _assert_close(found, wanted, tolerance=1e-5)


def test_the_static_form_is_the_same(built: Built) -> None:
    with torch.inference_mode():
        raw = built.model(_images(2, UNEVEN_SIZE))
        eager, static = (built.head.decode(raw, UNEVEN_SIZE, static=form) for form in (False, True))
        _assert_close(static, eager, tolerance=1e-5)
        task = built.task
        if isinstance(task, Detection):
            # No two scores are the same, and so few are above the threshold that all of them enter either form.
            ranks = eager.scores.flatten(1).argsort(1).argsort(1).view_as(eager.scores)
            eager = eager._replace(scores=(ranks + 1) / (ranks[0].numel() + 1))
            number = min(600, ranks[0].numel() // 2)
            task = replace(task, score_threshold=1 - (number + 0.5) / (ranks[0].numel() + 1), candidates=number,
                           max_detections=min(number, 300))
        found, wanted = (task.postprocess(eager, static=form) for form in (True, False))
    _assert_close(found, wanted, tolerance=0.0)
    if isinstance(task, Detection):
        assert int(found.num_valid.min()) > 10
        assert int(found.num_valid.max()) < number, "nothing was suppressed"


def _assert_close(found: Any, wanted: Any, *, tolerance: float) -> None:
    """Field by field; relative, and of the largest."""
    assert type(found) is type(wanted)
    for name, one, other in zip(found._fields, found, wanted, strict=True):
        if not isinstance(other, Tensor):
            assert one == other
            continue
        assert not other.is_floating_point() or float(other.std()) > 0, name
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))
