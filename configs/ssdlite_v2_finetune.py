"""SSDLite on MobileNetV2 fine-tuned on data of one's own, whatever they are: the first thing to try.

What differs from ssdlite_v2.py: anchors are matched by what the network says of them (task-aligned) and scores learn
how well boxes fit; complete IoU as box loss; mosaics in the first 70 % of the epochs; and what depends on the data
follows from them: batch, epochs and the average of the weights from the number of images, anchors from the boxes. It is
printed before the first step. Images of classes that few images show come more often.
Paper of the network: Sandler et al. 2018, arXiv 1801.04381. Its AP on blood cells: see benchmarks.md.
Source: own, for small data sets; see benchmarks.md.
Cost: 4,664,988 parameters, 870,061,504 multiply-adds at 320 x 320.

    detseg train ssdlite_v2_finetune --data DIR --weights mobilenet_v2
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
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
    backbone = mobilenet_v2(width=width, taps=("c4.expansion", "c5"), scale_last=True)
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
