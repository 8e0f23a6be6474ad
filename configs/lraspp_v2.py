"""LR-ASPP on MobileNetV2 with the reduced tail, for Cityscapes, as the MobileNetV3 paper has it.

Paper: Howard et al. 2019, arXiv 1905.02244, Table 7, row 4: 72.7 mIoU on val, 0.98 M parameters, 12.57 B
multiply-adds, trained from scratch on the fine annotations; row 3 with --set model.filters=256, rows 9 and 10 with
--set model.width=0.5 and 0.35.
The paper prints no schedule. Here it is that of TensorFlow's DeepLab for Cityscapes in size and length (crops of 769,
90,000 steps with 16 images, poly 0.9) with mmsegmentation's learning rate.
Source: paper; 72.7 mIoU on Cityscapes val.
Cost: 987,174 parameters, 12,319,539,200 multiply-adds at 1024 x 2048.

    detseg train lraspp_v2 --data data/cityscapes
    torchrun --nproc_per_node 8 -m detseg train lraspp_v2 --data data/cityscapes
"""


from detseg.backbones.mobilenet_v2 import mobilenet_v2
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
    classes: Classes, *, width: float = 1.0, size: int = 1024, filters: int = 128, output_stride: int = 16,
    reduced_tail: bool = True,
) -> Predictor:
    """1024 x 2048, the head on the last bottleneck."""
    backbone = mobilenet_v2(
        width=width, taps=("c3.depthwise", "c5.bottleneck"), output_stride=output_stride,
        reduced_tail="segmentation" if reduced_tail else "none")
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
