"""SSDLite on MobileNetV3-Large fine-tuned on data of one's own: the recipe of ssdlite_v2_finetune.py.

The whole tail and not the reduced one of ssdlite_v3_large.py, because ImageNet's weights fit no other.
Paper of the network: Howard et al. 2019, arXiv 1905.02244.
Nobody has published an AP of this recipe; what it gives on MobileNetV2 is in benchmarks.md.
Source: own, for small data sets; none published.
Cost: 5,198,540 parameters, 689,751,104 multiply-adds at 320 x 320.

    detseg train ssdlite_v3_large_finetune --data DIR --weights mobilenet_v3_large
"""

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.mixing import Mosaic
from detseg.from_data import DetectorFromData
from detseg.layers import Norm
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import BOXES, ssd_sample
from detseg.resize import Resize, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import SSDLite

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""The head's usual momentum of 0.03 has not forgotten the untrained network after a few hundred steps."""


def model(
    classes: Classes, *, width: float = 1.0, size: int = 320, anchor_scales: tuple[float, ...] | None = None
) -> Predictor:
    """320 x 320 stretched, six anchors on every map."""
    backbone = mobilenet_v3_large(width=width, taps=("c4.expansion", "c5"), norm=HEAD_NORM)
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(scales=anchor_scales), class_loss="task_aligned",
        box_loss="ciou", box_weight=2.0, width=width, norm=HEAD_NORM)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> Mosaic:
    """Four images in half of the cases, but for the last 30 % of the epochs; crops of half of them; no zoom-out."""
    return Mosaic(SSDAugment(resize, zoom_out=0.0, iou_crop=0.5), resize, closing=0.3)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.5, per_class=100, max_detections=100),
    data=BOXES,
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.03, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=36, warmup_steps=40),
    batch_size=16,
    ema=EMA(decay=0.99),
    clip_norm=10.0,
    repeat_rare=0.1,
    from_data=DetectorFromData(),
    sample=ssd_sample(),
)
