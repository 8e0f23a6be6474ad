"""LR-ASPP on MobileNetV4-Conv-Medium, for Cityscapes.

Paper of the backbone: Qin et al. 2024, arXiv 2404.10518; of the head: Howard et al. 2019, arXiv 1905.02244.
Nobody has published an mIoU of LR-ASPP on it. The head stands on the last block (256 channels) and not on the 960
behind it, which TensorFlow's MobileNetV4 does not offer to heads either.
Recipe: that of lraspp_v2.py, with the stochastic depth of the paper's ImageNet training, from timm's weights of
mobilenetv4_conv_medium (--weights FILE), whose mean and std are ImageNet's.
Source: paper's head; none published.
Cost: 7,026,902 parameters, 34,231,156,736 multiply-adds at 1024 x 2048.

    detseg train lraspp_v4_conv_medium --data data/cityscapes --weights FILE
"""


from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_medium
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.layouts import read_labels
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


def model(
    classes: Classes, *, width: float = 1.0, size: int = 1024, filters: int = 128, output_stride: int = 32,
) -> Predictor:
    """1024 x 2048, nothing dilated: at stride 16 the last stage alone would cost twice the rest."""
    backbone = mobilenet_v4_conv_medium(
        width=width, taps=("c3.depthwise", "c5.bottleneck"), output_stride=output_stride, drop_path=0.075)
    head = LRASPP(backbone.specs, len(classes), filters=filters)
    return Predictor(backbone, head, classes=classes, resize=Letterbox((size, 2 * size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """Half to double size, square crops of 3/4 of the height (768 for TensorFlow's 769), colours, mirror images."""
    side = resize.size[0] * 3 // 4
    return SegmentationAugment((side, side), resize.fill, shorter=resize.size[0])


experiment = Experiment(
    task=Segmentation(),
    data=Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU,
              generate=generate_sample, folder="data/cityscapes"),
    model=model,
    classes=CITYSCAPES,
    augment=augment,
    optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=4e-5),
    schedule=Poly(epochs=480, power=0.9, warmup_steps=1000),
    batch_size=16,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=segmenter_sample(augment, {"size": 256}),
)
