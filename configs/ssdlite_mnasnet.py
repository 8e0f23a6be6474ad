"""SSDLite on MnasNet-A1, for COCO, with the papers' anchors and 90 class slots.

Paper: Tan et al. 2019, arXiv 1807.11626, Table 3 (23.0 AP on test-dev, 4.9 M parameters, 0.8 B multiply-adds). Recipe:
that of ssdlite_v2.py. Gates are as in the authors' code and timm's semnasnet_100, whose weights fit (--weights FILE).
The MobileNetV3 paper counts 4.88 M parameters without BatchNorm, which needs gates rounded to multiples of 8
(squeeze_rounding="divisible"); so made, this network has 4,929,967 parameters with BatchNorm.
Source: papers; 23.0 AP on test-dev.
Cost: 4,912,181 parameters, 837,819,232 multiply-adds at 320 x 320.

    detseg train ssdlite_mnasnet --data data/coco
"""

from detseg.backbones.mnasnet import mnasnet_a1
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
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
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""The head's usual momentum of 0.03 has not forgotten the untrained network after a few hundred steps."""


def model(classes: Classes, *, width: float = 1.0, size: int = 320) -> Predictor:
    """320 x 320 stretched, three anchors on the first map: 2,034 boxes."""
    backbone = mnasnet_a1(width=width, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(three_on_first=True, clip_sizes=False), width=width,
        norm=HEAD_NORM)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.6, per_class=100, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=SSDAugment,
    optimizer=SGD(lr=0.015, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=600, warmup_steps=500, warmup_start=0.001),
    batch_size=192,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=ssd_sample(),
)
