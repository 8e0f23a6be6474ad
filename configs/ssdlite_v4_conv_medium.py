"""SSDLite on MobileNetV4-Conv-Medium, for COCO, with the papers' anchors and 80 classes.

Paper of the backbone: Qin et al. 2024, arXiv 2404.10518. Nobody has published an AP of SSDLite on it; the paper's own
detector is RetinaNet. Recipe: that of ssdlite_v2.py, with the stochastic depth of the paper's ImageNet training.
Input: ImageNet's mean and std, as timm's mobilenetv4_conv_medium expects, whose weights fit (--weights FILE).
Source: papers' head; none published.
Cost: 9,170,501 parameters, 1,878,423,744 multiply-adds at 320 x 320.

    detseg train ssdlite_v4_conv_medium --data data/coco
"""

from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_medium
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
    backbone = mobilenet_v4_conv_medium(width=width, taps=("c4.expansion", "c5"), drop_path=0.075)
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
