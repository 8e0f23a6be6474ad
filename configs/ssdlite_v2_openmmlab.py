"""SSDLite on MobileNetV2 as OpenMMLab builds it, for COCO, trained from scratch.

Paper: Sandler et al. 2018, arXiv 1801.04381. Wiring and recipe: mmdetection's ssdlite_mobilenetv2-scratch_8xb24-600e,
whose weights reach 21.3 AP on val2017. What differs from the paper's, which is ssdlite_v2.py: the first map is the
96-channel block output and not the 576-channel expansion, every map has six anchors, in sizes of their own.
Its predictors begin with weights of std 0.001, here 0.03; it leaves images without objects out of training.
Source: mmdetection; 21.3 AP on val2017.
Cost: 4,228,788 parameters, 746,206,144 multiply-adds at 320 x 320.

    detseg train ssdlite_v2_openmmlab --data data/coco
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_80
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import SGD, Cosine
from detseg.recipes import ssd_sample
from detseg.resize import Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import NORM, SSDLite

ANCHORS = SSDAnchors(
    scales=(48 / 320, 100 / 320, 150 / 320, 202 / 320, 253 / 320, 304 / 320), clip_sizes=False,
    spacing=(1.0, 1.0, 1.0, 107 / (320 / 3), 1.0, 1.0))
"""Sides in pixels of 320, and the stride of the 3 x 3 map, which OpenMMLab rounds to 107 pixels."""


def model(classes: Classes, *, width: float = 1.0, size: int = 320) -> Predictor:
    """320 x 320 stretched, six anchors on every map: 3,234 boxes."""
    backbone = mobilenet_v2(width=width, taps=("c4", "c5"), scale_last=True, norm=NORM)
    head = SSDLite(backbone.specs, len(classes), anchors=ANCHORS, min_negatives=0, width=width)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


experiment = Experiment(
    task=Detection(score_threshold=0.02, iou_threshold=0.45, per_class=1000, max_detections=200),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_80,
    augment=SSDAugment,
    optimizer=SGD(lr=0.015, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=600, warmup_steps=500, warmup_start=0.001),
    batch_size=192,
    ema=None,
    validate_every=25,
    sample=ssd_sample(),
)
