"""LR-ASPP on MobileNetV2 fine-tuned on label maps of one's own, whatever they show: the first thing to try.

What differs from lraspp_v2.py: the whole tail, because ImageNet's weights fit no other; the layers up to stride 4 keep
these weights; half of the crops are drawn around a pixel of a rare class; and what depends on the data follows from
them: the network's size from the images', batch, epochs and the average of the weights from their number, class weights
from their label maps. It is printed before the first step.
Paper of the network: Howard et al. 2019, arXiv 1905.02244. Its mIoU on CamVid: see benchmarks.md.
Source: own, for small data sets; see benchmarks.md.
Cost: 1,897,558 parameters, 1,632,662,080 multiply-adds at 360 x 480.

    detseg train lraspp_v2_finetune --data DIR --weights mobilenet_v2
"""

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.masks import CAMVID
from detseg.from_data import SegmenterFromData
from detseg.model import Predictor
from detseg.optim import EMA, SGD, Freeze, Poly
from detseg.recipes import LABELS, segmenter_sample
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.lraspp import LRASPP


def model(
    classes: Classes, *, width: float = 1.0, input_height: int = 360, input_width: int = 480, output_stride: int = 16,
    class_weights: tuple[float, ...] | None = None,
) -> Predictor:
    """The head on the last bottleneck."""
    backbone = mobilenet_v2(width=width, taps=("c3.depthwise", "c5.bottleneck"), output_stride=output_stride)
    head = LRASPP(backbone.specs, len(classes), class_weights=class_weights)
    return Predictor(backbone, head, classes=classes, resize=Letterbox((input_height, input_width)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """3/4 to 3/2 of the size, square crops of 8/9 of the shorter side, colours, mirror images."""
    side = min(resize.size) * 8 // 9
    return SegmentationAugment((side, side), resize.fill, shorter=min(resize.size), scale=(0.75, 1.5),
                               rare_classes=0.5)


experiment = Experiment(
    task=Segmentation(),
    data=LABELS,
    model=model,
    classes=CAMVID,
    augment=augment,
    optimizer=SGD(lr=0.1, momentum=0.9, weight_decay=4e-5),
    schedule=Poly(epochs=14, power=0.9, warmup_steps=40),
    batch_size=8,
    ema=EMA(decay=0.98),
    freeze=Freeze(stride=4),
    clip_norm=10.0,
    from_data=SegmenterFromData(passes=14),
    sample=segmenter_sample(augment, {"input_height": 240, "input_width": 320}),
)
