"""SSDLite on MobileNetV3-Large with the reduced tail, for COCO, trained as detectors are today.

The network of ssdlite_v3_large.py, which costs the same on a phone. What differs: anchors are matched by what the
network says of them, scores learn how well boxes fit (task-aligned, quality focal loss), complete IoU as box loss, and
blocks with a skip begin as the identity. What that brings on small data is in benchmarks.md. In few steps from random
weights what the network says is no guide: the sample run keeps SSD's matching, and needs half the steps by the rest.
Paper of the network: Howard et al. 2019, arXiv 1905.02244; of the matching: Feng et al. 2021, arXiv 2108.07755.
Nobody has published an AP of this recipe.
Source: torchvision's network, own recipe; none published.
Cost: 3,440,060 parameters, 583,171,904 multiply-adds at 320 x 320.

    detseg train ssdlite_v3_large_modern --data data/coco
    torchrun --nproc_per_node 8 -m detseg train ssdlite_v3_large_modern --data data/coco
"""

from dataclasses import replace

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.backbones.trunk import zero_init_residual
from detseg.config import Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.model import Predictor
from detseg.ops.anchors import SSDAnchors
from detseg.optim import EMA, SGD, Cosine
from detseg.recipes import BOXES, ssd_sample
from detseg.resize import Resize, Stretch
from detseg.structures import Classes
from detseg.tasks.detection import Detection
from heads.ssdlite import NORM, ClassLoss, SSDLite


def model(
    classes: Classes, *, width: float = 1.0, size: int = 320, reduced_tail: bool = True,
    class_loss: ClassLoss = "task_aligned",
) -> Predictor:
    """320 x 320 stretched, values in -1..1, six anchors on every map: 3,234 boxes."""
    backbone = zero_init_residual(mobilenet_v3_large(
        width=width, taps=("c4.expansion", "c5"), reduced_tail="detection" if reduced_tail else "none", norm=NORM))
    head = SSDLite(
        backbone.specs, len(classes), anchors=SSDAnchors(), class_loss=class_loss, box_loss="ciou", box_weight=2.0,
        width=width)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=(0.5, 0.5, 0.5),
                     std=(0.5, 0.5, 0.5))


def augment(resize: Resize) -> SSDAugment:
    """IoU crop and mirror image only, as torchvision trains it."""
    return SSDAugment(resize, photometric=0.0, zoom_out=0.0)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.55, max_detections=300),
    data=BOXES,
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=SGD(lr=0.15, momentum=0.9, weight_decay=4e-5),
    schedule=Cosine(epochs=660, warmup_steps=1000, warmup_start=0.001),
    batch_size=192,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=replace(
        ssd_sample(),
        model={"size": 224, "class_loss": "multibox"},
        optimizer=SGD(lr=0.2, momentum=0.9, weight_decay=4e-5, nesterov=True),
        schedule=Cosine(epochs=33, warmup_steps=50),
        batch_size=32,
        ema=EMA(decay=0.98),
        validate_every=8,
    ),
)
