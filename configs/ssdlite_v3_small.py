"""SSDLite on MobileNetV3-Small with the reduced tail, for COCO, as TensorFlow's object detection API trains it.

Paper: Howard et al. 2019, arXiv 1905.02244, Table 6 ("V3-Small+": 16.1 AP on test-dev, 1.77 M parameters without
BatchNorm; TensorFlow's model zoo gives 15.4 AP on a part of val).
Wiring and recipe: TensorFlow's ssdlite_mobilenet_v3_small config: three anchors on the first map, focal loss with a
background column, batch 512 for 800,000 steps, which is 3,500 epochs, from scratch.
Source: TensorFlow; 16.1 AP on test-dev.
Cost: 1,785,743 parameters, 162,303,424 multiply-adds at 320 x 320.

    detseg train ssdlite_v3_small --data data/coco
"""

from detseg.backbones.mobilenet_v3 import mobilenet_v3_small
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import ssd_sample
from detseg.resize import Resize, Stretch
from detseg.structures import Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import NORM, SSDLite


def model(classes: Classes, *, width: float = 1.0, size: int = 320, reduced_tail: bool = True) -> Predictor:
    """320 x 320 stretched, values in -1..1, three anchors on the first map: 2,034 boxes."""
    backbone = mobilenet_v3_small(
        width=width, taps=("c4.expansion", "c5"), reduced_tail="detection" if reduced_tail else "none", norm=NORM)
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(three_on_first=True, clip_sizes=False), class_loss="focal",
        box_weight=0.25, width=width)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=(0.5, 0.5, 0.5),
                     std=(0.5, 0.5, 0.5))


def augment(resize: Resize) -> SSDAugment:
    """IoU crop and mirror image, as the published config has it."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0)


experiment = Experiment(
    task=Detection(score_threshold=1e-4, iou_threshold=0.6, per_class=100, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.4, momentum=0.9, weight_decay=4e-5, decay_norms=False),
    schedule=Cosine(epochs=3500, warmup_steps=2000, warmup_start=0.333),
    batch_size=512,
    ema=EMA(decay=0.9998),
    clip_norm=10.0,
    validate_every=50,
    sample=ssd_sample(),
)
