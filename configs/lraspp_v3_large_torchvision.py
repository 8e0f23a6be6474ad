"""LR-ASPP on MobileNetV3-Large for COCO with VOC's 21 labels, as torchvision builds and trains it.

Paper: Howard et al. 2019, arXiv 1905.02244, section 6.4. torchvision's wiring is not the paper's, which
lraspp_v3_large has: it pools over the whole map, takes the low-level features from a block's output, and keeps the
whole tail.
Wiring and recipe: torchvision's lraspp_mobilenet_v3_large; its weights reach 57.9 mIoU on the images of val2017
(91.2 % of the pixels) and load with --weights lraspp_mobilenet_v3_large. Train from ImageNet weights as it does:
--weights mobilenet_v3_large. One thing differs: its 8 processes share BatchNorm's statistics, while here each has those
of its own images.
Source: torchvision; 57.9 mIoU on COCO, VOC's classes.
Cost: 3,221,538 parameters, 2,782,864,064 multiply-adds at 520 x 693.

    detseg train lraspp_v3_large_torchvision --data data/coco --weights mobilenet_v3_large
"""


from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.layouts import read_labels
from detseg.data.sample import generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.data.voc import VOC_21
from detseg.layers import Norm
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.optim import SGD, Poly
from detseg.recipes import segmenter_sample
from detseg.resize import KeepAspect, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.lraspp import LRASPP


def model(classes: Classes, *, width: float = 1.0, size: int = 520, norm_momentum: float = 0.01) -> Predictor:
    """Shorter side 520, whole tail at stride 16, low-level features of 40 channels at stride 8."""
    backbone = mobilenet_v3_large(
        width=width, taps=("c3.first", "c5"), output_stride=16, dilate_first=True, norm=Norm(norm_momentum, eps=1e-3))
    head = LRASPP(
        backbone.specs, len(classes), pooling="global", gate="sigmoid", gate_bias=False, align_corners=False)
    return Predictor(
        backbone, head, classes=classes, resize=KeepAspect(size, 100 * size, antialias=True),
        mean=IMAGENET_MEAN, std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """Half to double the size at which it predicts, crops of 12/13 of that (480 of 520), mirror images."""
    shorter = min(resize.size)
    crop = shorter * 12 // 13
    return SegmentationAugment((crop, crop), resize.fill, shorter=shorter, photometric=0.0)


experiment = Experiment(
    task=Segmentation(),
    data=Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU, generate=generate_sample),
    model=model,
    classes=VOC_21,
    augment=augment,
    optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=1e-6),
    schedule=Poly(epochs=30, power=0.9),
    batch_size=32,
    sample=segmenter_sample(augment, {"size": 208, "norm_momentum": 0.1}),
)
