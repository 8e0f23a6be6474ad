"""SSDLite on MobileNetV2, for COCO, with the paper's anchors and 80 classes.

Paper: Sandler et al. 2018, arXiv 1801.04381, Table 6 (22.1 AP on test-dev, 4.3 M parameters, 0.8 B multiply-adds).
Recipe: that of mmdetection's ssdlite_mobilenetv2_scratch_600e_coco (21.3 AP on val2017), whose network differs: it taps
the 96-channel block output where this one taps the paper's 576-channel expansion. The paper's own, RMSprop with
learning rate 0.004 and epsilon 1 at batch 24 for 800,000 steps, is `RMSprop(lr=0.004, eps=1.0)`.
Input: ImageNet's mean and std, so that torchvision's ImageNet weights fit (--weights mobilenet_v2).
Source: paper; 22.1 AP on test-dev.
Cost: 4,337,013 parameters, 788,830,144 multiply-adds at 320 x 320.

    detseg train ssdlite_v2 --data data/coco --weights mobilenet_v2
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
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
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""The head's usual momentum of 0.03 has not forgotten the untrained network after a few hundred steps."""


def model(classes: Classes, *, width: float = 1.0, size: int = 320) -> Predictor:
    """320 x 320 stretched, three anchors on the first map: 2,034 boxes."""
    backbone = mobilenet_v2(width=width, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(three_on_first=True, clip_sizes=False), width=width,
        norm=HEAD_NORM)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


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
