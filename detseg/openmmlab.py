"""detseg in OpenMMLab's configs: its backbones, its heads and whole networks, by the names "detseg.*".

    custom_imports = dict(imports=["detseg.openmmlab"])
    model = dict(
        type="mmseg.EncoderDecoder",
        backbone=dict(type="detseg.mobilenet_v4_conv_small", taps=("c3", "c5"), output_stride=16, weights="small.pth"),
        decode_head=dict(type="detseg.DecodeHead", head=dict(type="heads.lraspp.LRASPP", filters=256),
                         in_channels=(64, 960), strides=(8, 16), num_classes=19))

A config of mmdetection names "detseg.BoxHead" in the same way as its `bbox_head`. mmengine's Runner alone trains a
whole network as a config of detseg describes it, on the data of either:

    model = dict(type="detseg.Detector", config="configs/ssdlite_v3_large.py", classes=("cat", "dog"))

Only mmengine is needed. It finds things by name in a registry that imports fill: therefore importing this module
registers, in a scope of detseg's own, and nothing else of detseg imports it or does such a thing. Where a part takes
another one, such as a backbone its `norm` or a head its `anchors`, a config writes a dict with its full name:
`norm=dict(type="detseg.layers.Norm", momentum=0.03, eps=1e-3)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from mmengine import registry
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.model import BaseModel, BaseModule
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.utils import get_object_from_string
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detseg import config as configs
from detseg.backbones import builders
from detseg.interfaces import Backbone, Features, FeatureSpec, Head, Losses, Source, Task
from detseg.model import Predictor
from detseg.ops.resample import enlarge
from detseg.resize import Placement, Stretch
from detseg.structures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VOID,
    BoxTargets,
    Classes,
    ImageDetections,
    ImageLabels,
    LabelTargets,
    Size,
)
from detseg.tasks.detection import Detection
from detseg.tasks.segmentation import Segmentation
from detseg.weights.load import load_weights

Described: TypeAlias = Mapping[str, Any]
"""A part in a config: `type`, its full name (or the thing itself), and its arguments."""
DataSample: TypeAlias = Any
"""mmengine's BaseDataElement, or mmdetection's or mmsegmentation's subclass, which are not needed here."""
Mode: TypeAlias = Literal["tensor", "loss", "predict"]
"""What mmengine calls a network for."""


class BackboneModule(BaseModule):  # type: ignore[misc]
    """A backbone as OpenMMLab takes it: it gives a tuple of maps, in the order of its taps.

    weights: a file or a name as for `--weights`, of which the backbone's tensors are loaded. What mean and std
    they were trained with is logged; setting it is the data preprocessor's part. init_cfg: mmengine's.
    """

    def __init__(self, backbone: Backbone, *, weights: str | None = None, init_cfg: Any = None) -> None:
        super().__init__(init_cfg)
        self.network = backbone
        self.specs = backbone.specs
        if weights is not None:
            _load_backbone(backbone, weights)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images [B, 3, H, W] to one map per tap."""
        return tuple(self.network(images).values())


class _Head(BaseModule):  # type: ignore[misc]
    """A head on the maps that OpenMMLab's backbone or neck gives.

    head: its class by full name and its arguments but for the first two. in_channels, strides: of the maps it uses.
    in_index: which of the maps these are, all of them unless it is said.
    """

    def __init__(
        self, head: Described, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int,
        in_index: Sequence[int] | None, init_cfg: Any,
    ) -> None:
        super().__init__(init_cfg)
        if len(in_channels) != len(strides):
            raise ValueError(f"a head needs the stride of each map, got in_channels {tuple(in_channels)} and strides "
                             f"{tuple(strides)}")
        self.in_index = tuple(range(len(strides)) if in_index is None else in_index)
        if len(self.in_index) != len(strides):
            raise ValueError(f"in_index names {len(self.in_index)} maps, but there are in_channels and strides of "
                             f"{len(strides)}")
        pairs = zip(in_channels, strides, strict=True)
        self.specs = {f"map{k}": FeatureSpec(*pair) for k, pair in enumerate(pairs)}
        self.num_classes = num_classes
        self.head: Head[Any, Any, Any] = _built({**head, "specs": self.specs, "num_classes": num_classes})

    def _features(self, maps: Sequence[Tensor]) -> Features:
        return {name: maps[k] for name, k in zip(self.specs, self.in_index, strict=True)}

    def _size(self, features: Features, metas: Sequence[Mapping[str, Any]] = ()) -> Size:
        """Of the network's images: what their metadata say if it explains the maps, else what the maps span."""
        cells = {name: (x.shape[2], x.shape[3]) for name, x in features.items()}
        for key in ("batch_input_shape", "pad_shape", "img_shape"):
            for meta in metas[:1]:
                if key in meta:
                    height, width = map(int, meta[key][:2])
                    if all((-(-height // self.specs[name].stride), -(-width // self.specs[name].stride)) == found
                           for name, found in cells.items()):
                        return height, width
        finest = min(self.specs, key=lambda name: self.specs[name].stride)
        (rows, columns), stride = cells[finest], self.specs[finest].stride
        return rows * stride, columns * stride


class DecodeHead(_Head):
    """A segmentation head of detseg as mmsegmentation's `decode_head`; see `_Head` for the arguments.

    Its logits have the size of the images, so that `align_corners` only says how they become original ones.
    """

    def __init__(
        self, head: Described, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int,
        in_index: Sequence[int] | None = None, init_cfg: Any = None,
    ) -> None:
        super().__init__(head, in_channels=in_channels, strides=strides, num_classes=num_classes, in_index=in_index,
                         init_cfg=init_cfg)
        self.out_channels, self.align_corners = num_classes, False

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps to logits, [B, K, H, W]."""
        return self._logits(inputs)

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: Sequence[DataSample], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        """The losses by name, for the `gt_sem_seg` of the samples."""
        features = self._features(inputs)
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in batch_data_samples])
        return _normalised(self.head.loss(
            self.head(features), LabelTargets(labels), (labels.shape[1], labels.shape[2])))

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[Mapping[str, Any]], test_cfg: Any = None
    ) -> Tensor:
        """Logits of the images' size, [B, K, H, W]."""
        return self._logits(inputs, batch_img_metas)

    def _logits(self, inputs: Sequence[Tensor], metas: Sequence[Mapping[str, Any]] = ()) -> Tensor:
        features = self._features(inputs)
        return enlarge(self.head.decode(self.head(features), self._size(features, metas)))


class BoxHead(_Head):
    """A detection head of detseg, of one or two stages, as the `bbox_head` of mmdetection's SingleStageDetector; see
    `_Head` for the arguments.

    test_cfg: the arguments of `detseg.tasks.detection.Detection`, such as score_threshold. train_cfg: what the head
    needs for training, it is given with its arguments, so this is None.
    """

    def __init__(
        self, head: Described, *, in_channels: Sequence[int], strides: Sequence[int], num_classes: int,
        in_index: Sequence[int] | None = None, train_cfg: Any = None, test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(head, in_channels=in_channels, strides=strides, num_classes=num_classes, in_index=in_index,
                         init_cfg=init_cfg)
        if train_cfg:
            raise ValueError(f"detseg.BoxHead has no train_cfg, got {train_cfg}; give its head these arguments")
        self.task = Detection(**(test_cfg or {}))

    def forward(self, inputs: Sequence[Tensor]) -> Any:
        """Maps to the head's raw predictions."""
        return self.head(self._features(inputs))

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DataSample]) -> dict[str, Tensor]:
        """The losses by name, for the `gt_instances` of the samples; `ignored_instances` are ignored."""
        raw, size = self._raw(x, batch_data_samples)
        return _normalised(self.head.loss(raw, _box_targets(batch_data_samples), size))

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DataSample], rescale: bool = True
    ) -> list[InstanceData]:
        """The detections of each image, in its original pixels if `rescale`."""
        raw, size = self._raw(x, batch_data_samples)
        finished = self.task.postprocess(self.head.decode(raw, size))
        sources = [_source(sample if rescale else BaseDataElement(), size) for sample in batch_data_samples]
        return [_instances(found, device=x[0].device) for found in self.task.to_original(finished, sources)]

    def _raw(self, maps: Sequence[Tensor], samples: Sequence[DataSample]) -> tuple[Any, Size]:
        features = self._features(maps)
        size = self._size(features, [sample.metainfo for sample in samples])
        return self.head(features), size


class _Model(BaseModel, ABC):  # type: ignore[misc]
    """The network of one of detseg's configs, for mmengine's Runner.

    config: the file. settings: texts as for `--set`, such as "model.width=0.5". classes: names, in the order of the
    data's labels; those of the config unless they are given. weights: a file or a name as for `--weights`. The network
    normalises images itself: the data preprocessor only makes a batch of RGB images, 0..255, and it does so from BGR
    unless another one is given.
    """

    kind: ClassVar[type[Task[Any, Any, Any, Any]]]
    """Of the configs that this is for."""

    def __init__(
        self, config: str, *, settings: Sequence[str] = (), classes: Sequence[str] | None = None,
        weights: str | None = None, data_preprocessor: Any = None, init_cfg: Any = None,
    ) -> None:
        # 114 is the grey level of ImageNet's mean colour
        super().__init__(data_preprocessor or {"type": "ImgDataPreprocessor", "bgr_to_rgb": True, "pad_value": 114},
                         init_cfg)
        loaded = configs.load(Path(config), tuple(settings))
        if not isinstance(loaded.experiment.task, self.kind):
            raise ValueError(f"{config} is not for detseg.{type(self).__name__}: its task is "  # noqa: TRY004
                             f"{type(loaded.experiment.task).__name__}, not {self.kind.__name__}")
        known = loaded.experiment.classes
        named = known if classes is None else Classes(names=tuple(classes), source_ids=tuple(range(len(classes))))
        self.network = loaded.build_model(named)
        self.task: Task[Any, Any, Any, Any] = loaded.experiment.task
        if weights is not None:
            print_log(str(load_weights(self.network, weights)), logger="current")

    def forward(self, inputs: Tensor, data_samples: Sequence[DataSample] | None = None, mode: Mode = "tensor") -> Any:
        """RGB images 0..255, [B, 3, H, W], to the head's raw predictions, the losses by name, or the samples with
        predictions in original pixels added to them."""
        if mode not in ("tensor", "loss", "predict"):
            raise ValueError(f'mode must be "tensor", "loss" or "predict", got {mode!r}')
        raw = self.network(inputs)
        if mode == "tensor":
            return raw
        size = (inputs.shape[2], inputs.shape[3])
        if mode == "loss":
            if data_samples is None:
                raise ValueError('mode "loss" needs data_samples')
            return _normalised(self.network.head.loss(raw, self.targets(data_samples, size), size))
        samples = [BaseDataElement() for _ in inputs] if data_samples is None else list(data_samples)
        finished = self.task.postprocess(self.network.head.decode(raw, size))
        for sample, found in zip(
                samples, self.task.to_original(finished, [_source(sample, size) for sample in samples]), strict=True):
            self.add_prediction(sample, found, device=inputs.device)
        return samples

    @abstractmethod
    def targets(self, samples: Sequence[DataSample], size: Size) -> Any:
        """What the head's loss takes, of images of `size`."""

    @abstractmethod
    def add_prediction(self, sample: DataSample, found: Any, *, device: torch.device) -> None:
        """Writes an image's prediction into its sample."""


class Detector(_Model):
    """A detector: `gt_instances` (bboxes xyxy, labels) and `ignored_instances` in, `pred_instances` (and scores) out;
    see `_Model` for the arguments."""

    kind = Detection

    def targets(self, samples: Sequence[DataSample], size: Size) -> BoxTargets:
        """Boxes padded to the fullest image."""
        return _box_targets(samples)

    def add_prediction(self, sample: DataSample, found: ImageDetections, *, device: torch.device) -> None:
        """As `pred_instances`."""
        sample.pred_instances = _instances(found, device=device)


class Segmentor(_Model):
    """A segmenter: `gt_sem_seg` in, `pred_sem_seg` out, each a label map [1, H, W]; see `_Model` for the arguments."""

    kind = Segmentation

    def targets(self, samples: Sequence[DataSample], size: Size) -> LabelTargets:
        """Label maps padded with VOID."""
        maps = [sample.gt_sem_seg.data[0] for sample in samples]
        return LabelTargets(torch.stack([
            F.pad(labels, (0, size[1] - labels.shape[1], 0, size[0] - labels.shape[0]), value=VOID)
            for labels in maps]))

    def add_prediction(self, sample: DataSample, found: ImageLabels, *, device: torch.device) -> None:
        """As `pred_sem_seg`."""
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.labels).long()[None].to(device))


# ------------------------------------------------------------------------------------------ samples


def _box_targets(samples: Sequence[DataSample]) -> BoxTargets:
    """Boxes padded to the fullest image; what is to be ignored comes after the others, as crowds."""
    all_boxes, all_labels, all_crowds = [], [], []
    for sample in samples:
        boxes, labels = _boxes(sample.gt_instances), sample.gt_instances.labels
        ignored = _boxes(sample.ignored_instances) if "ignored_instances" in sample else boxes[:0]
        all_boxes.append(torch.cat((boxes, ignored)))
        all_labels.append(torch.cat((labels, labels.new_zeros(len(ignored)))))
        all_crowds.append(torch.arange(len(boxes) + len(ignored), device=boxes.device) >= len(boxes))
    return BoxTargets(
        pad_sequence(all_boxes, batch_first=True), pad_sequence(all_labels, batch_first=True, padding_value=-1),
        pad_sequence(all_crowds, batch_first=True))


def _boxes(instances: InstanceData) -> Tensor:
    """float32 [M, 4]; mmdetection may wrap them into a class of its own."""
    boxes = instances.bboxes
    plain: Tensor = boxes if isinstance(boxes, Tensor) else boxes.tensor
    return plain.float().reshape(-1, 4)


def _source(sample: DataSample, size: Size) -> Source:
    """How an image lies in the network's of `size`: at the upper left, scaled as its metadata say."""
    meta = sample.metainfo
    height, width = (int(side) for side in meta.get("ori_shape", size)[:2])
    shown = meta.get("img_shape", (height, width))
    scale_x, scale_y = meta.get("scale_factor", (shown[1] / width, shown[0] / height))[:2]
    return Source(0, (height, width), Placement(float(scale_y), float(scale_x), 0.0, 0.0))


def _instances(found: ImageDetections, *, device: torch.device) -> InstanceData:
    return InstanceData(bboxes=found.boxes.to(device), scores=found.scores.to(device), labels=found.labels.to(device))


def _normalised(losses: Losses) -> dict[str, Tensor]:
    """The losses as means over all processes, whose gradients OpenMMLab averages."""
    counts = torch.stack([term.count.detach().float() for term in losses.values()])
    all_reduce(counts)
    scales = get_world_size() / counts.clamp(min=1)
    return {f"loss_{name}": term.sum * scale for (name, term), scale in zip(losses.items(), scales, strict=True)}


# ------------------------------------------------------------------------------------------ building


def _built(described: Any) -> Any:
    """What a config describes: dicts with a `type` become that thing, all else stays."""
    if not isinstance(described, Mapping) or "type" not in described:
        return described
    arguments = {name: _built(value) for name, value in described.items() if name != "type"}
    thing = described["type"]
    if isinstance(thing, str) and (thing := get_object_from_string(thing)) is None:
        raise ValueError(f'there is no {described["type"]!r}; write the full name, such as "heads.ssdlite.SSDLite"')
    return thing(**arguments)


def _backbone(
    build: Callable[..., Backbone], *, weights: str | None = None, init_cfg: Any = None, **arguments: Any
) -> BackboneModule:
    """A backbone by its builder and the arguments of this builder."""
    backbone = build(**{name: _built(value) for name, value in arguments.items()})
    return BackboneModule(backbone, weights=weights, init_cfg=init_cfg)


class _NoHead(Head[Any, Features, Any]):
    """Nothing: a predictor with it is its backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.num_outputs, self.class_layers = 1, {}

    def forward(self, features: Features) -> Features:
        return features

    def loss(self, raw: Features, targets: Any, size: Size) -> Losses:
        raise NotImplementedError

    def decode(self, raw: Features, size: Size, *, static: bool = False) -> Any:
        raise NotImplementedError


def _load_backbone(backbone: Backbone, weights: str) -> None:
    """Loads what a file or a name has for a backbone, strictly, and logs how images are to be normalised."""
    predictor = Predictor(
        backbone, _NoHead(), classes=Classes(names=("thing",), source_ids=(0,)), resize=Stretch((32, 32)),
        mean=IMAGENET_MEAN, std=IMAGENET_STD)
    report = load_weights(predictor, weights)
    mean, std = ([round(255 * value, 3) for value in values] for values in predictor.normalisation)
    print_log(f"{report.title}: {report.num_loaded} tensors loaded; these weights expect a data_preprocessor with "
              f"mean={mean}, std={std}, bgr_to_rgb=True", logger="current")


# ------------------------------------------------------------------------------------------ registration


MODELS = registry.Registry("model", parent=registry.MODELS, scope="detseg")
"""What OpenMMLab finds by the names "detseg.*": every backbone builder, and the classes above."""

for _name, _build in builders().items():
    MODELS.register_module(name=_name, module=partial(_backbone, _build))
for _module in (DecodeHead, BoxHead, Detector, Segmentor):
    MODELS.register_module(module=_module)
