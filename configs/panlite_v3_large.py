"""PANLite on MobileNetV3-Large, for COCO: no anchors, a light neck of three maps, what SSDLite costs.

The backbone up to its last bottleneck, so that ImageNet's weights fit. Recipe: mosaic but in the last tenth of the
epochs, SSD's crop, one cosine, an average of the weights; AdamW, with which the neck learns faster than with SGD (see
benchmarks.md).
Backbone: Howard et al. 2019, arXiv 1905.02244. Head: own; its parts' papers stand in heads/panlite.py.
Nobody has published an AP of it.
Source: own; none published.
Cost: 3,008,334 parameters, 576,009,600 multiply-adds at 320 x 320.

    detseg train panlite_v3_large --data data/coco --weights mobilenet_v3_large
"""

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.mixing import Mosaic
from detseg.model import Predictor
from detseg.optim import EMA, AdamW, Cosine
from detseg.recipes import BOXES, panlite_sample
from detseg.resize import Resize, Stretch
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.panlite import NORM, PANLite


def model(classes: Classes, *, width: float = 1.0, size: int = 320, channels: int = 96) -> Predictor:
    """320 x 320 stretched, a box in each of 2,100 cells."""
    backbone = mobilenet_v3_large(width=width, taps=("c3", "c4", "c5.bottleneck"), norm=NORM)
    head = PANLite(backbone.specs, len(classes), channels=channels)
    return Predictor(backbone, head, classes=classes, resize=Stretch((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> Mosaic:
    """Four images in half of the cases, but for the last tenth of the epochs; colours, crop and mirror image."""
    return Mosaic(SSDAugment(resize, zoom_out=0.0), resize, closing=0.1)


experiment = Experiment(
    task=Detection(score_threshold=0.001, iou_threshold=0.6, max_detections=300),
    data=BOXES,
    model=model,
    classes=COCO_90,
    augment=augment,
    optimizer=AdamW(lr=0.001, weight_decay=0.05, decay_norms=False),
    schedule=Cosine(epochs=300, warmup_steps=1000, warmup_start=0.001),
    batch_size=96,
    ema=EMA(decay=0.9998),
    clip_norm=10.0,
    validate_every=10,
    sample=panlite_sample(),
)
