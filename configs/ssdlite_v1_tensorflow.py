"""SSDLite on MobileNetV1 as TensorFlow's object detection API builds it, for COCO: for its weights.

Paper: Sandler et al. 2018, arXiv 1801.04381, Table 6 (22.2 AP on test-dev). Wiring: ssdlite_mobilenet_v1_coco of
TensorFlow's API: images of 300 x 300 by TensorFlow's first bilinear kernel, SAME padding, its order of the anchors,
sigmoid scores. Its weights come as docs/tensorflow_weights.md says.
Recipe: for fine-tuning them. TensorFlow's own, from ImageNet's weights, was RMSprop with learning rate 0.004 and
epsilon 1 at batch 24 (`RMSprop(lr=0.004, eps=1.0)`), mirror image and random crop.
Source: TensorFlow's API; 22.2 AP on test-dev.
Cost: 5,246,911 parameters, 1,212,977,536 multiply-adds at 300 x 300.

    detseg test ssdlite_v1_tensorflow FILE --data data/coco
    detseg train ssdlite_v1_tensorflow --data DIR --weights FILE
"""

from detseg.backbones.mobilenet_v1 import mobilenet_v1
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.ops.anchors import TensorFlowAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import ssd_sample
from detseg.resize import Resize, TensorFlowStretch
from detseg.structures import Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import NORM, SSDLite


def model(classes: Classes, *, width: float = 1.0, size: int = 300) -> Predictor:
    """300 x 300 stretched, values in -1..1, three anchors on the first map: 1,917 boxes."""
    backbone = mobilenet_v1(width=width, taps=("c4", "c5"), norm=NORM, padding="same")
    head = SSDLite(
        backbone.specs, len(classes), anchors=TensorFlowAnchors(), class_loss="sigmoid", min_negatives=0, width=width,
        padding="same")
    return Predictor(backbone, head, classes=classes, resize=TensorFlowStretch((size, size)), mean=(0.5, 0.5, 0.5),
                     std=(0.5, 0.5, 0.5))


def augment(resize: Resize) -> SSDAugment:
    """IoU crop and mirror image, as the published config has it."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0)


experiment = Experiment(
    task=Detection(score_threshold=1e-8, iou_threshold=0.6, per_class=2000, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=60, warmup_steps=500, warmup_start=0.001),
    batch_size=32,
    ema=EMA(decay=0.999),
    clip_norm=10.0,
    validate_every=5,
    sample=ssd_sample(),
)
