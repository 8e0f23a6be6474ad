"""LR-ASPP on MobileNetV2 fine-tuned on a small data set: CamVid, 367 street scenes of 480 x 360 in 11 classes.

An example for data of one's own. What differs from lraspp_v2.py, and why: the whole tail, because ImageNet's weights
fit no other; classes weigh by the root of their rarity, because the mean over classes counts a pole like the road; half
of the crops are drawn around a pixel of a rare class; a short schedule with a fast average of the weights.
Paper of the network: Howard et al. 2019, arXiv 1905.02244. Expected mIoU: see benchmarks.md.
Source: own, for small data sets; see benchmarks.md.
Cost: 1,897,558 parameters, 1,632,662,080 multiply-adds at 360 x 480.

    detseg train lraspp_v2_camvid --data data/camvid --weights mobilenet_v2
"""

from functools import partial

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.masks import CAMVID, CAMVID_VOID, read_masks
from detseg.data.sample import generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.optim import EMA, SGD, Poly
from detseg.recipes import segmenter_sample
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.lraspp import LRASPP

CLASS_WEIGHTS = (0.88, 0.75, 3.63, 0.64, 1.70, 1.15, 3.32, 3.39, 1.49, 4.50, 6.66)
"""1 / root of each class's share of the training pixels; the mean over pixels is 1."""


def model(classes: Classes, *, width: float = 1.0, size: int = 360, output_stride: int = 16) -> Predictor:
    """360 x 480, the head on the last bottleneck; weights for CamVid's classes only."""
    backbone = mobilenet_v2(width=width, taps=("c3.depthwise", "c5.bottleneck"), output_stride=output_stride)
    head = LRASPP(
        backbone.specs, len(classes), class_weights=CLASS_WEIGHTS if classes.names == CAMVID.names else None)
    return Predictor(backbone, head, classes=classes, resize=Letterbox((size, size * 4 // 3)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """Half to double size, square crops of 8/9 of the height (320 of 360), colours, mirror images."""
    side = resize.size[0] * 8 // 9
    return SegmentationAugment((side, side), resize.fill, shorter=resize.size[0], rare_classes=0.5)


experiment = Experiment(
    task=Segmentation(),
    data=Data(read=partial(read_masks, classes=CAMVID, void=CAMVID_VOID), dataset=SegmentationDataset, metric=MeanIoU,
              generate=generate_sample, folder="data/camvid"),
    model=model,
    classes=CAMVID,
    augment=augment,
    optimizer=SGD(lr=0.05, momentum=0.9, weight_decay=4e-5),
    schedule=Poly(epochs=12, power=0.9, warmup_steps=40),
    batch_size=8,
    ema=EMA(decay=0.98),
    clip_norm=10.0,
    validate_every=3,
    sample=segmenter_sample(augment, {"size": 240}),
)
