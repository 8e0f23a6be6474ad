"""SSD with full convolutions on MobileNetV2, for COCO, with the paper's anchors and 80 classes.

Paper: Sandler et al. 2018, arXiv 1801.04381, Table 5, which sets this head (14.8 M parameters, 1.25 B multiply-adds)
against SSDLite's. Nobody has published an AP of exactly this network. TensorFlow's ssd_mobilenet_v2_coco, at 300 x 300
and with lighter extra maps or predictors in all versions of its config, reaches 22 mAP on a part of val.
Recipe: that config's, with ImageNet weights to begin with: batch 24 for 800,000 steps, in which the learning rate falls
by a twentieth; here it is constant. Its classes have sigmoids of their own, here they share SSD's softmax.
Source: paper; none published.
Cost: 17,000,501 parameters, 1,870,281,472 multiply-adds at 320 x 320.

    detseg train ssd_v2 --data data/coco --weights mobilenet_v2
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
from detseg.optim import EMA, RMSprop, Steps
from detseg.recipes import ssd_sample
from detseg.resize import Resize, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssd import SSD

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""The head's usual momentum of 0.03 has not forgotten the untrained network after a few hundred steps."""


def model(classes: Classes, *, width: float = 1.0, size: int = 320) -> Predictor:
    """320 x 320 stretched, three anchors on the first map: 2,034 boxes."""
    backbone = mobilenet_v2(width=width, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSD(
        backbone.specs, len(classes), anchors=SSDAnchors(three_on_first=True, clip_sizes=False), width=width,
        norm=HEAD_NORM)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SSDAugment:
    """IoU crop and mirror image only, as that config has it."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.6, per_class=100, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_80,
    augment=augment,
    optimizer=RMSprop(lr=0.004, eps=1.0, weight_decay=4e-5, decay_norms=False),
    schedule=Steps(epochs=163, warmup_steps=500),
    batch_size=24,
    ema=EMA(decay=0.9999),
    validate_every=5,
    sample=ssd_sample(),
)
