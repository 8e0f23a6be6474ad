"""SSDLite on MobileNetV3-Large or -Small with the reduced tail as TensorFlow's object detection API builds it, for
COCO: for its weights.

Paper: Howard et al. 2019, arXiv 1905.02244, Table 6 (22.0 AP on test-dev for Large, 16.1 for Small). Wiring:
ssdlite_mobilenet_v3_large_320x320_coco and _small_ of TensorFlow's API. What differs here from ssdlite_v3_small.py:
TensorFlow's first bilinear kernel, SAME padding, its order of the anchors. `--set model.variant=small` is Small. Its
weights come as docs/tensorflow_weights.md says.
Recipe: for fine-tuning them. TensorFlow's own is that of ssdlite_v3_small.py. Small has 1,785,743 parameters and
162,303,424 multiply-adds.
Source: TensorFlow's API; 22.0 AP on test-dev.
Cost: 3,248,255 parameters, 506,563,904 multiply-adds at 320 x 320.

    detseg test ssdlite_v3_tensorflow FILE --data data/coco
    detseg train ssdlite_v3_tensorflow --data DIR --weights FILE
"""

from typing import Literal

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
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


def model(
    classes: Classes, *, variant: Literal["large", "small"] = "large", width: float = 1.0, size: int = 320
) -> Predictor:
    """320 x 320 stretched, values in -1..1, three anchors on the first map: 2,034 boxes."""
    build = mobilenet_v3_large if variant == "large" else mobilenet_v3_small
    backbone = build(width=width, taps=("c4.expansion", "c5"), reduced_tail="detection", widths="tensorflow", norm=NORM,
                     padding="same")
    head = SSDLite(
        backbone.specs, len(classes), anchors=TensorFlowAnchors(), class_loss="focal", box_weight=0.25, width=width,
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
