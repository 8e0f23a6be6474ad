"""SSDLite on MobileNetV2 fine-tuned on BCCD, blood cells in three classes, as detectors are trained today.

The network, images and schedule of ssdlite_v2_bccd.py. What differs: anchors are matched by what the network says of
them, and scores learn how well boxes fit (task-aligned, quality focal loss).
Paper of the network: Sandler et al. 2018, arXiv 1801.04381; of the matching: Feng et al. 2021, arXiv 2108.07755.
Expected AP: see benchmarks.md, beside that of ssdlite_v2_bccd.py.
Source: own, for small data sets; see benchmarks.md.
Cost: 3,091,680 parameters, 674,491,072 multiply-adds at 320 x 320.

    detseg train ssdlite_v2_bccd_modern --data DIR --weights mobilenet_v2
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Experiment
from detseg.data.augment import SSDAugment
from detseg.layers import Norm
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import BOXES
from detseg.resize import Resize, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""The head's usual momentum of 0.03 has not forgotten the untrained network after a few hundred steps."""


def model(classes: Classes, *, width: float = 1.0, size: int = 320) -> Predictor:
    """320 x 320 stretched, six anchors on every map."""
    backbone = mobilenet_v2(width=width, taps=("c4.expansion", "c5"), scale_last=True)
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(scales=(0.07, 0.46, 0.6, 0.75, 0.85, 0.95)),
        class_loss="task_aligned", box_loss="ciou", box_weight=2.0, width=width, norm=HEAD_NORM)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SSDAugment:
    """No zoom-out: it makes small objects smaller than any anchor."""
    return SSDAugment(resize, zoom_out=0.0, iou_crop=0.5)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.5, per_class=100, max_detections=100),
    data=BOXES,
    model=model,
    classes=Classes(("Platelets", "RBC", "WBC"), (1, 2, 3)),
    augment=augment,
    optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=36, warmup_steps=40),
    batch_size=16,
    ema=EMA(decay=0.99),
    clip_norm=10.0,
    validate_every=6,
)
