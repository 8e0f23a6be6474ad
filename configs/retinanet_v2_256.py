"""RetinaNet on MobileNetV2, for COCO: separable pyramid P3-P7 and head of 128 channels, 256 x 256.

Backbone: Sandler et al. 2018, arXiv 1801.04381. Wiring and recipe: coco_mobilenetv2_tpu.yaml of TensorFlow's
official/vision (23.5 AP on val2017; 2.27 M parameters with BatchNorm's statistics): 600 epochs, a rate of 0.32 for
batches of 256, a tenth of it from epoch 570 and a hundredth from 590, random scale and mirror image. Ours: the average
of the weights, BatchNorms that are not decayed, and SSD's crop in the place of a plain one.
Input: ImageNet's mean and std, so that torchvision's ImageNet weights fit (--weights mobilenet_v2).
Source: TensorFlow; 23.5 AP on val2017.
Cost: 2,223,639 parameters, 742,691,840 multiply-adds at 256 x 256.

    detseg train retinanet_v2_256 --data data/coco
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Data, Experiment, SampleRun
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.layers import Norm
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.necks import SeparableFPN
from detseg.ops.anchors import GridAnchors
from detseg.optim import EMA, SGD, Cosine, Steps
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.retinanet import RetinaNet

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""TensorFlow's momentum of 0.01 has not forgotten the untrained network after a few hundred steps."""
ANCHORS = GridAnchors(
    tuple(tuple(3 * stride * 2 ** (k / 3) for k in range(3)) for stride in (8, 16, 32, 64, 128)), rounded=False,
    centred=True)
"""TensorFlow's: three times the stride and two sizes on the way to the next map's (anchor_size 3, num_scales 3)."""


def model(classes: Classes, *, width: float = 1.0, size: int = 256, channels: int = 128) -> Predictor:
    """256 x 256 with its aspect ratio kept, nine anchors a cell on five maps: 12,276 boxes."""
    backbone = mobilenet_v2(width=width, taps=("c3", "c4", "c5.bottleneck"))
    neck = SeparableFPN(backbone.specs, channels=channels, norm=HEAD_NORM, activation="relu6")
    head = RetinaNet(
        neck.specs, len(classes), anchors=ANCHORS, separable=True, norm=HEAD_NORM, activation="relu6", gamma=1.5,
        box_loss="huber", box_weight=12.5, max_negative_iou=0.5)
    return Predictor(backbone, head, neck=neck, classes=classes, resize=Letterbox((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SSDAugment:
    """Zoom-out to half the size, SSD's crop for the other direction, and the mirror image; no colours."""
    return SSDAugment(resize, photometric=0.0, zoom_out_ratio=2.0)


experiment = Experiment(
    task=Detection(score_threshold=0.05, iou_threshold=0.5, per_class=1000, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.32, momentum=0.9, weight_decay=3e-5, decay_norms=False),
    schedule=Steps(epochs=600, warmup_steps=2000, warmup_start=0.021, milestones=(570, 590)),
    batch_size=256,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=SampleRun(
        optimizer=SGD(lr=0.04, momentum=0.9, weight_decay=3e-5, decay_norms=False),
        schedule=Cosine(epochs=32, warmup_steps=100),
        batch_size=16,
        ema=EMA(decay=0.99),
        clip_norm=10.0,
        validate_every=4,
    ),
)
