"""LR-ASPP on MobileNetV3-Large as OpenMMLab builds it, for Cityscapes.

Paper: Howard et al. 2019, arXiv 1905.02244, section 6.4; its wiring is lraspp_v3_large. Wiring and recipe:
mmsegmentation's lraspp_m-v3-d8_512x1024_320k_cityscapes, whose weights reach 69.5 mIoU on val (70.9 with scales and
mirror images), 67.9 where it is trained from scratch: the whole tail at stride 8, two skips at strides 2 and 4. They
load with --weights FILE.
Four things differ: its learning rate ends at 1e-4 and here at 0, its 4 processes share BatchNorm's statistics, its loss
is divided by all pixels and here by those that count, and it starts from ImageNet weights of its own, for which
torchvision's stand in.
Source: mmsegmentation; 69.5 mIoU on Cityscapes val.
Cost: 3,284,547 parameters, 68,999,323,520 multiply-adds at 1024 x 2048.

    detseg train lraspp_v3_large_openmmlab --data data/cityscapes --weights mobilenet_v3_large
"""

from dataclasses import replace

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.layouts import read_labels
from detseg.data.sample import generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.optim import SGD, Poly
from detseg.recipes import segmenter_sample
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.lraspp_openmmlab import NORM, OpenMMLabLRASPP


def model(classes: Classes, *, width: float = 1.0, size: int = 1024) -> Predictor:
    """1024 x 2048, the stages behind stride 8 dilated by 2 and 4, padding as in TensorFlow."""
    backbone = mobilenet_v3_large(
        width=width, taps=("c1", "c2", "c5"), output_stride=8, dilate_first=True, padding="same", norm=NORM)
    head = OpenMMLabLRASPP(backbone.specs, len(classes))
    return Predictor(backbone, head, classes=classes, resize=Letterbox((size, 2 * size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """Half to double size, crops of half the sides (512 x 1024) of which no class fills more than 3/4, colours,
    mirror images."""
    height, width = resize.size
    return SegmentationAugment((height // 2, width // 2), resize.fill, shorter=height, most_of_one_class=0.75)


def sample_augment(resize: Resize) -> SegmentationAugment:
    """Square crops of 3/4 of the height: what is generated is small."""
    side = resize.size[0] * 3 // 4
    return replace(augment(resize), crop=(side, side))


experiment = Experiment(
    task=Segmentation(),
    data=Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU,
              generate=generate_sample, folder="data/cityscapes"),
    model=model,
    classes=CITYSCAPES,
    augment=augment,
    optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=5e-4),
    schedule=Poly(epochs=1721, power=0.9),
    batch_size=16,
    ema=None,
    validate_every=50,
    sample=segmenter_sample(sample_augment, {"size": 192}),
)
