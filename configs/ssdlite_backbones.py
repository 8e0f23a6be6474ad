"""SSDLite on any of detseg's backbones at equal terms, to compare them: the recipe of ssdlite_v4_conv_small.py.

Paper of the head: Sandler et al. 2018, arXiv 1801.04381, section 6.2. `detseg compare-backbones` trains one after the
other. Nobody has published an AP of these at equal terms; benchmarks.md has what a few hundred steps give.
Source: papers' head, any backbone; none published.
Cost: 4,337,013 parameters, 788,830,144 multiply-adds at 320 x 320.

    detseg train ssdlite_backbones --data data/coco --set model.backbone=mobilenet_v2
"""

from typing import Annotated

from detseg.backbones import builders, spec_of
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_80
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.layers import Norm
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import ssd_sample
from detseg.resize import Stretch
from detseg.settings import Choices
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""Of the backbones too: the usual momenta, 0.03 and less, have not forgotten the untrained network after a few hundred
steps."""


def model(
    classes: Classes, *, backbone: Annotated[str, Choices(tuple(builders()))] = "mobilenet_v2", width: float = 1.0,
    size: int = 320,
) -> Predictor:
    """320 x 320 stretched, three anchors on the first map: 2,034 boxes."""
    build = builders()[backbone]
    taps = ("c4.expansion" if spec_of(build, "c4.expansion") else "c4", "c5")
    trunk = build(width=width, taps=taps, norm=HEAD_NORM)
    head = SSDLite(
        trunk.specs, len(classes), anchors=SSDAnchors(three_on_first=True, clip_sizes=False), width=width,
        norm=HEAD_NORM)
    return Predictor(trunk, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN, std=IMAGENET_STD)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.6, per_class=100, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_80,
    augment=SSDAugment,
    optimizer=SGD(lr=0.015, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=600, warmup_steps=500, warmup_start=0.001),
    batch_size=192,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=ssd_sample(),
)
