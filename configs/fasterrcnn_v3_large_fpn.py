"""Faster R-CNN with a pyramid on MobileNetV3-Large at 800 pixels, for COCO, as torchvision has it.

Paper: Ren et al. 2015, arXiv 1506.01497; the pyramid: Lin et al. 2017, arXiv 1612.03144.
Wiring and recipe: torchvision's fasterrcnn_mobilenet_v3_large_fpn. Both inputs of its pyramid have stride 32, the
first and the last map of the backbone's last stage. Its weights reach 32.8 AP on val2017 and load with
--weights fasterrcnn_mobilenet_v3_large_fpn. What differs from its training: all layers learn from the start, where
torchvision freezes the first half of the backbone and all its BatchNorm; the gradient is clipped; and images of one
batch are padded to the largest, which regions may reach into.
Source: torchvision; 32.8 AP on val2017.
Cost: 19,410,754 parameters, 6,105,359,104 multiply-adds at 800 x 1066, and 14,359,552 for each region.

    detseg train fasterrcnn_v3_large_fpn --data data/coco --weights mobilenet_v3_large
"""

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.layers import Norm
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

NORM = Norm(momentum=0.1, eps=1e-5)
"""torchvision gives its detectors PyTorch's defaults, other than its classifiers."""


def model(
    classes: Classes, *, width: float = 1.0, size: int = 800, proposals: int = 1000, region_samples: int = 512
) -> Predictor:
    """The shorter side `size`, the longer at most 5/3 of that; anchors of 32 to 512 pixels on every map."""
    backbone = mobilenet_v3_large(width=width, taps=("c5.first", "c5"), norm=NORM)
    neck = FPN(backbone.specs, channels=round(256 * width), coarser="pool")
    anchors = GridAnchors(((32, 64, 128, 256, 512),) * 3)
    head = FasterRCNN(
        neck.specs, len(classes), anchors=anchors, proposals=proposals, region_samples=region_samples,
        hidden=round(1024 * width))
    return Predictor(backbone, head, classes=classes, resize=KeepAspect(size, size * 1333 // 800),
                     mean=IMAGENET_MEAN, std=IMAGENET_STD, neck=neck, size_divisor=32)


def augment(resize: Resize) -> SSDAugment:
    """Mirror images only."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0, iou_crop=0.0)


experiment = Experiment(
    task=Detection(score_threshold=0.05, iou_threshold=0.5, per_class=1000, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.02, momentum=0.9, weight_decay=1e-4),
    schedule=Steps(epochs=26, milestones=(16, 22), warmup_steps=1000, warmup_start=0.001),
    batch_size=16,
    clip_norm=10.0,
    sample=faster_rcnn_sample({"proposals": 150}),
)
