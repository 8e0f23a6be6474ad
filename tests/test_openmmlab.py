"""detseg in OpenMMLab's configs: what mmengine builds from names, what it is given and gives, and that it trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

import detseg.openmmlab
from detseg.interfaces import Source
from detseg.ops.anchors import SSDAnchors
from detseg.ops.resample import enlarge
from detseg.predict import predict_image
from detseg.resize import Placement
from detseg.structures import VOID, BoxTargets, LabelTargets
from detseg.tasks.segmentation import Segmentation

from . import discovery
from .conftest import ROOT

DETECTOR = {"type": "detseg.Detector", "config": str(ROOT / "configs" / "ssdlite_v2.py"),
            "settings": ["model.width=0.35", "model.size=96"], "classes": ["cat", "dog"]}
SEGMENTOR = {"type": "detseg.Segmentor", "config": str(ROOT / "configs" / "lraspp_v2.py"),
             "settings": ["model.width=0.35", "model.size=64"], "classes": ["sky", "road", "car"]}
ANCHORS = {"type": "detseg.ops.anchors.SSDAnchors", "num_maps": 4, "three_on_first": True}


def _build(**described: Any) -> Any:
    """What mmengine builds of it in a config, outside detseg's scope."""
    return registry.MODELS.build(Config({"model": described}).model)


def _detection(number: int, *, ignored: int = 0, **meta: Any) -> BaseDataElement:
    """A sample as mmdetection packs it, of an image with so many boxes."""
    sample = BaseDataElement(metainfo=meta)
    corners = 10.0 * torch.arange(number + ignored)[:, None] + torch.tensor([1.0, 2.0, 41.0, 32.0])
    sample.gt_instances = InstanceData(bboxes=corners[:number], labels=torch.arange(number) % 2)
    if ignored:
        sample.ignored_instances = InstanceData(bboxes=corners[number:], labels=torch.ones(ignored, dtype=torch.long))
    return sample


def _segmentation(labels: Tensor, **meta: Any) -> BaseDataElement:
    """A sample as mmsegmentation packs it."""
    return BaseDataElement(metainfo=meta, gt_sem_seg=PixelData(data=labels[None]))


# ------------------------------------------------------------------------------------------ registration


def test_every_backbone_and_four_more_are_registered() -> None:
    names = {"DecodeHead", "BoxHead", "Detector", "Segmentor"}
    assert set(registry.MODELS.children["detseg"].module_dict) == set(discovery.backbones()) | names


def test_nothing_else_registers_or_imports_what_does() -> None:
    """A part of detseg behaves the same whether a config of OpenMMLab was read or not."""
    files = [file for folder in ("detseg", "heads", "configs", "tools") for file in (ROOT / folder).rglob("*.py")]
    users = [file for file in files if re.search(
        r"^\s*(from|import) .*(mmengine.*registry|mmcv.*registry|detseg\.openmmlab|detseg import .*openmmlab)",
        file.read_text(encoding="utf-8"), re.MULTILINE)]
    assert users == [ROOT / "detseg" / "openmmlab.py"]


@pytest.mark.parametrize("name", discovery.backbones())
def test_every_backbone_gives_its_maps_in_the_order_of_its_taps(name: str) -> None:
    backbone = _build(type=f"detseg.{name}", taps=["c5", "c3"], width=0.5).eval()
    build = discovery.backbones()[name]
    assert backbone.specs == build(taps=("c5", "c3"), width=0.5).specs
    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert isinstance(maps, tuple)
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, 64 // stride, 96 // stride) for channels, stride in backbone.specs.values()]
    assert [stride for _, stride in backbone.specs.values()] == [32, 8]


def test_parts_of_parts_are_described() -> None:
    norm = {"type": "detseg.layers.Norm", "momentum": 0.02, "eps": 0.01}
    backbone = _build(type="detseg.mobilenet_v2", taps=("c3",), norm=norm)
    found = {(layer.momentum, layer.eps) for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert found == {(0.02, 0.01)}


def test_a_misspelt_argument_and_an_unknown_part() -> None:
    with pytest.raises(TypeError, match="tapz"):
        _build(type="detseg.mobilenet_v2", tapz=("c3",))
    with pytest.raises(ValueError, match=r'there is no \'detseg\.layers\.Nrom\'; write the full name, such as "heads'):
        _build(type="detseg.mobilenet_v2", norm={"type": "detseg.layers.Nrom"})


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in OpenMMLab's log."""
    texts: list[str] = []
    monkeypatch.setattr(detseg.openmmlab, "print_log", lambda text, logger: texts.append(text))
    return texts


def test_a_backbone_takes_weights(tmp_path: Path, logged: list[str]) -> None:
    """mmengine's initialisation, which comes later, leaves them alone."""
    state, file = mobilenet_v2(weights=None).state_dict(), str(tmp_path / "mobilenet_v2.pth")
    torch.save(state, file)
    backbone = _build(type="detseg.mobilenet_v2", taps=("c4",), weights=file)
    backbone.init_weights()
    assert torch.equal(backbone.network.stem.conv.weight, state["features.0.0.weight"])
    (text,) = logged
    assert re.fullmatch(
        r".*mobilenet_v2\.pth \(torchvision MobileNet\): \d+ tensors loaded; these weights expect a data_preprocessor "
        r"with mean=\[123\.675, 116\.28, 103\.53\], std=\[58\.395, 57\.12, 57\.375\], bgr_to_rgb=True", text)


def test_a_backbone_takes_mmengines_initialisation() -> None:
    constant = {"type": "Constant", "layer": "Conv2d", "val": 0.25}
    backbone = _build(type="detseg.mobilenet_v2", taps=("c4",), init_cfg=constant)
    backbone.init_weights()
    assert bool((backbone.network.stem.conv.weight == 0.25).all())


# ------------------------------------------------------------------------------------------ heads


def _decode_head(**changes: Any) -> Any:
    head = {"type": "heads.lraspp.LRASPP", "filters": 16, "align_corners": False}
    given = {"head": head, "in_channels": (6, 8), "strides": (8, 16), "num_classes": 3}
    return _build(type="detseg.DecodeHead", **(given | changes))


def _maps(size: tuple[int, int], **channels: int) -> list[Tensor]:
    return [torch.rand(2, number, -(-size[0] // int(stride[1:])), -(-size[1] // int(stride[1:])))
            for stride, number in channels.items()]


def test_a_decode_head_learns_and_predicts() -> None:
    """As mmsegmentation's EncoderDecoder calls it."""
    head, maps = _decode_head(in_index=(1, 2)), _maps((50, 70), s4=5, s8=6, s16=8)
    assert (head.num_classes, head.out_channels, head.align_corners) == (3, 3, False)
    labels = torch.randint(0, 3, (2, 50, 70))
    labels[0, :10] = VOID
    losses = head.loss(maps, [_segmentation(one) for one in labels], {})
    raw = head.head({"map0": maps[1], "map1": maps[2]})
    wanted = head.head.loss(raw, LabelTargets(labels), (50, 70))
    assert set(losses) == {"loss_pixel"}
    torch.testing.assert_close(losses["loss_pixel"], wanted["pixel"].sum / (2 * 50 * 70 - 10 * 70))
    losses["loss_pixel"].backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    head.eval()
    logits = head.predict(maps, [{"img_shape": (50, 70), "pad_shape": (50, 70)}] * 2, {})
    assert logits.shape == (2, 3, 50, 70)
    raw = head.head({"map0": maps[1], "map1": maps[2]})
    torch.testing.assert_close(logits, enlarge(head.head.decode(raw, (50, 70))))


@pytest.mark.parametrize(("meta", "size"), [
    ({"img_shape": (50, 70), "pad_shape": (56, 72)}, (56, 72)),
    ({"img_shape": torch.Size((50, 70)), "pad_shape": (512, 512)}, (50, 70)),  # a window of a larger image
    ({"batch_input_shape": (49, 65), "pad_shape": (50, 70)}, (49, 65)),
    ({}, (56, 72)),
])
def test_the_images_size_is_the_one_that_explains_the_maps(meta: dict[str, Any], size: tuple[int, int]) -> None:
    head = _decode_head().eval()
    assert head.predict(_maps((50, 70), s8=6, s16=8), [meta] * 2).shape[2:] == size
    assert head(_maps((50, 70), s8=6, s16=8)).shape[2:] == (56, 72)


def _box_head(**changes: Any) -> Any:
    head = {"type": "heads.ssdlite.SSDLite", "anchors": ANCHORS, "extra_channels": (32, 32)}
    given = {"head": head, "in_channels": (6, 8), "strides": (16, 32), "num_classes": 2}
    return _build(type="detseg.BoxHead", **(given | changes))


def test_a_box_head_learns_and_predicts() -> None:
    """As mmdetection's SingleStageDetector calls it."""
    head = _box_head(train_cfg=None, test_cfg={"score_threshold": 0.0, "max_detections": 7})
    assert isinstance(head.head.anchors, SSDAnchors)
    maps = _maps((96, 128), s16=6, s32=8)
    meta: dict[str, Any] = {
        "batch_input_shape": (96, 128), "img_shape": (96, 120), "ori_shape": (48, 60), "scale_factor": (2.0, 2.0)}
    samples = [_detection(2, ignored=1, **meta), _detection(0, **meta)]
    losses = head.loss(maps, samples)
    assert set(losses) == {"loss_class", "loss_box"}
    boxes = torch.tensor([[[1.0, 2, 41, 32], [11, 12, 51, 42], [21, 22, 61, 52]], [[0.0] * 4] * 3])
    targets = BoxTargets(boxes, torch.tensor([[0, 1, 0], [-1] * 3]), torch.tensor([[False, False, True], [False] * 3]))
    raw = head.head({"map0": maps[0], "map1": maps[1]})
    wanted = head.head.loss(raw, targets, (96, 128))
    for name, term in wanted.items():
        assert float(term.count) > 1
        torch.testing.assert_close(losses[f"loss_{name}"], term.sum / term.count)

    head.eval()
    with torch.inference_mode():
        raw = head(maps)
        finished = head.task.postprocess(head.head.decode(raw, (96, 128)))
        found, unscaled = head.predict(maps, samples), head.predict(maps, samples, rescale=False)
    for k in range(2):
        assert len(found[k]) == len(unscaled[k]) == 7
        torch.testing.assert_close(unscaled[k].bboxes, finished.boxes[k])
        limits = torch.tensor([60.0, 48.0, 60.0, 48.0])
        torch.testing.assert_close(found[k].bboxes, torch.minimum(finished.boxes[k] / 2, limits))
        torch.testing.assert_close(found[k].scores, finished.scores[k])
        assert torch.equal(found[k].labels, finished.labels[k])


class _Wrapped:
    """mmdetection's HorizontalBoxes, as far as it matters."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)


def test_wrapped_boxes_are_boxes() -> None:
    head, maps, plain = _box_head(), _maps((96, 128), s16=6, s32=8), _detection(2)
    wrapped = _detection(2)
    wrapped.gt_instances.bboxes = _Wrapped(plain.gt_instances.bboxes)
    torch.testing.assert_close(head.loss(maps, [wrapped] * 2), head.loss(maps, [plain] * 2))


def test_what_a_head_refuses() -> None:
    with pytest.raises(ValueError, match=r"needs the stride of each map, got in_channels \(6, 8\) and strides \(8,\)"):
        _decode_head(strides=(8,))
    with pytest.raises(ValueError, match="in_index names 3 maps, but there are in_channels and strides of 2"):
        _decode_head(in_index=(0, 1, 2))
    with pytest.raises(ValueError, match=r"detseg\.BoxHead has no train_cfg, got \{'debug': False\}; give its head"):
        _box_head(train_cfg={"debug": False})
    with pytest.raises(TypeError, match="score_thr"):
        _box_head(test_cfg={"score_thr": 0.02})


# ------------------------------------------------------------------------------------------ whole networks


def test_a_detector_predicts_what_detseg_predicts() -> None:
    """From the BGR images of OpenMMLab's pipelines; the original pixels are those of `ori_shape`."""
    model = _build(**DETECTOR).eval()
    assert model.network.classes.names == ("cat", "dog")
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    sample = _detection(1, img_shape=(96, 96), ori_shape=(48, 192), scale_factor=(0.5, 2.0))
    with torch.inference_mode():
        (given,) = model.test_step({"inputs": [image.flip(0)], "data_samples": [sample]})
        dense = model.network.decode(image[None])
        (wanted,) = model.task.to_original(
            model.task.postprocess(dense), [Source(0, (48, 192), Placement(2.0, 0.5, 0.0, 0.0))])
        (square,) = model.forward(image[None].float(), None, "predict")
    assert len(wanted.scores) > 10
    torch.testing.assert_close(given.pred_instances.bboxes, wanted.boxes)
    torch.testing.assert_close(given.pred_instances.scores, wanted.scores)
    assert torch.equal(given.pred_instances.labels, wanted.labels)
    ours = predict_image(model.network, model.task, image.permute(1, 2, 0).numpy())
    torch.testing.assert_close(square.pred_instances.scores, ours.scores, rtol=1e-4, atol=1e-6)


def test_a_segmentor_predicts_what_detseg_predicts() -> None:
    model = _build(**SEGMENTOR).eval()
    assert isinstance(model.task, Segmentation)
    image = torch.randint(0, 256, (3, 64, 128), dtype=torch.uint8)
    sample = _segmentation(torch.zeros(64, 128), img_shape=(64, 128), ori_shape=(32, 64), scale_factor=(2.0, 2.0))
    with torch.inference_mode():
        (given,) = model.test_step({"inputs": [image.flip(0)], "data_samples": [sample]})
        labels = model.task.postprocess(model.network.decode(image[None])).labels
    assert given.pred_sem_seg.data.shape == (1, 32, 64)
    assert torch.equal(given.pred_sem_seg.data[0], labels[0, 1::2, 1::2].long())


def test_smaller_images_are_padded_and_the_padding_is_ignored() -> None:
    model = _build(**SEGMENTOR)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 96), (48, 128))]
    samples = [_segmentation(torch.ones(image.shape[1:], dtype=torch.long)) for image in images]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples}, training=True)
    assert data["inputs"].shape == (2, 3, 64, 128)
    targets = model.targets(data["data_samples"], (64, 128))
    assert int((targets.labels == VOID).sum()) == 2 * 64 * 128 - 64 * 96 - 48 * 128
    losses = model(**data, mode="loss")
    assert set(losses) == {"loss_pixel"}
    assert bool(losses["loss_pixel"].isfinite())


def test_raw_predictions_and_wrong_modes() -> None:
    model, images = _build(**DETECTOR), torch.rand(2, 3, 96, 96) * 255
    logits, _ = model(images).rows(3)
    assert logits.shape == (2, 3 * 6 * 6 + 6 * (3 * 3 + 2 * 2 + 1 + 1 + 1), 3)
    with pytest.raises(ValueError, match='mode must be "tensor", "loss" or "predict", got \'train\''):
        model(images, [], mode="train")
    with pytest.raises(ValueError, match='mode "loss" needs data_samples'):
        model(images, mode="loss")


def test_a_config_for_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lraspp_v2\.py is not for detseg\.Detector: its task is Segmentation, not"):
        _build(**{**DETECTOR, "config": SEGMENTOR["config"]})


def test_a_whole_network_takes_weights(tmp_path: Path, logged: list[str]) -> None:
    state, file = mobilenet_v2(weights=None).state_dict(), str(tmp_path / "mobilenet_v2.pth")
    torch.save(state, file)
    model = _build(**{**DETECTOR, "settings": ["model.size=96"]}, weights=file)
    assert torch.equal(model.network.backbone.stem.conv.weight, state["features.0.0.weight"])
    assert logged[0].splitlines()[0].endswith("mobilenet_v2.pth (torchvision MobileNet): 312 tensors loaded")
    with pytest.raises(ValueError, match="does not fit the network"):
        _build(**DETECTOR, weights=file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("described", [DETECTOR, SEGMENTOR], ids=["detector", "segmentor"])
def test_mmengines_runner_trains_it(described: dict[str, Any], tmp_path: Path) -> None:
    from mmengine.runner import Runner

    def item(k: int) -> dict[str, Any]:
        image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
        labels = torch.randint(0, 3, (96, 96))
        return {"inputs": image,
                "data_samples": _detection(k) if described is DETECTOR else _segmentation(labels)}

    runner = Runner(
        model=described, work_dir=str(tmp_path), experiment_name=f"test_{described['type']}",
        train_dataloader={"dataset": [item(k) for k in range(4)], "batch_size": 2, "num_workers": 0,
                          "sampler": {"type": "DefaultSampler", "shuffle": True},
                          "collate_fn": {"type": "pseudo_collate"}},
        train_cfg={"by_epoch": False, "max_iters": 2}, log_level="ERROR",
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2}},
    )
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert any(key.startswith("network.head.") for key in changed)
    assert "network.backbone.stem.conv.weight" in changed
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert (tmp_path / "iter_2.pth").is_file()
