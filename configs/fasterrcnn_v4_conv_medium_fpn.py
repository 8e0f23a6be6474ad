"""Faster R-CNN with a whole pyramid, strides 4 to 64, on MobileNetV4-Conv-Medium, for COCO.

Paper: Ren et al. 2015, arXiv 1506.01497; the pyramid: Lin et al. 2017, arXiv 1612.03144; the backbone: Qin et al. 2024,
arXiv 2404.10518. Nobody has published an AP of the three together. Any backbone that has the taps "c2" to "c5" can take
its place. Recipe: that of fasterrcnn_v3_large_320_fpn.py, with the stochastic depth of the paper's ImageNet training;
the weights of timm's mobilenetv4_conv_medium fit (--weights FILE). The pyramid has 128 channels, because on its finest
map the usual 256 would cost more than the backbone.
Source: own; none published.
Cost: 15,653,748 parameters, 5,954,712,960 multiply-adds at 320 x 426, and 7,885,824 for each region.

    detseg train fasterrcnn_v4_conv_medium_fpn --data data/coco
"""

from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_medium
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_80
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.necks import FPN
from detseg.ops.anchors import GridAnchors
from detseg.optim import SGD, Steps
from detseg.recipes import faster_rcnn_sample
from detseg.resize import KeepAspect, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.faster_rcnn import FasterRCNN


def model(
    classes: Classes, *, width: float = 1.0, size: int = 320, proposals: int = 150, region_samples: int = 512
) -> Predictor:
    """The shorter side `size`, the longer at most twice that; each map has anchors of one size, eight of its cells."""
    backbone = mobilenet_v4_conv_medium(width=width, taps=("c2", "c3", "c4", "c5.bottleneck"), drop_path=0.075)
    neck = FPN(backbone.specs, channels=round(128 * width), coarser="pool")
    anchors = GridAnchors(((32,), (64,), (128,), (256,), (512,)))
    head = FasterRCNN(
        neck.specs, len(classes), anchors=anchors, proposals=proposals, region_samples=region_samples,
        hidden=round(1024 * width))
    return Predictor(backbone, head, classes=classes, resize=KeepAspect(size, 2 * size),
                     mean=IMAGENET_MEAN, std=IMAGENET_STD, neck=neck, size_divisor=32)


def augment(resize: Resize) -> SSDAugment:
    """Mirror images only."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0, iou_crop=0.0)


experiment = Experiment(
    task=Detection(score_threshold=0.05, iou_threshold=0.5, per_class=1000, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_80,
    augment=augment,
    optimizer=SGD(lr=0.02, momentum=0.9, weight_decay=1e-4),
    schedule=Steps(epochs=26, milestones=(16, 22), warmup_steps=1000, warmup_start=0.001),
    batch_size=16,
    clip_norm=10.0,
    sample=faster_rcnn_sample(),
)
