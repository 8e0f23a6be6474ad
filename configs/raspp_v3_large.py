"""R-ASPP on MobileNetV3-Large with the reduced tail, for Cityscapes: what LR-ASPP is measured against.

Paper: Howard et al. 2019, arXiv 1905.02244, Table 7, row 6: 71.9 mIoU on val, 1.76 M parameters, 11.24 B multiply-adds,
trained from scratch on the fine annotations; row 5 (72.6 mIoU, 3.60 M) with --set model.reduced_tail=false.
The paper prints no schedule. Here it is that of TensorFlow's DeepLab for Cityscapes in size and length (crops of 769,
90,000 steps with 16 images, poly 0.9) with mmsegmentation's learning rate.
Source: paper; 71.9 mIoU on Cityscapes val.
Cost: 1,762,435 parameters, 10,830,137,472 multiply-adds at 1024 x 2048.

    detseg train raspp_v3_large --data data/cityscapes
    torchrun --nproc_per_node 8 -m detseg train raspp_v3_large --data data/cityscapes
"""


from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.cityscapes import CITYSCAPES
from detseg.data.layouts import read_labels
from detseg.data.sample import generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.layers import Norm
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.optim import EMA, SGD, Poly
from detseg.recipes import segmenter_sample
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.raspp import RASPP


def model(
    classes: Classes, *, width: float = 1.0, size: int = 1024, filters: int = 256, output_stride: int = 16,
    reduced_tail: bool = True, norm_momentum: float = 0.01,
) -> Predictor:
    """1024 x 2048, the last block dilated; its channels, inner ones too, halved."""
    backbone = mobilenet_v3_large(
        width=width, taps=("c5",), output_stride=output_stride,
        reduced_tail="segmentation" if reduced_tail else "none", norm=Norm(norm_momentum, eps=1e-3))
    head = RASPP(backbone.specs, len(classes), filters=filters)
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
    sample=segmenter_sample(augment, {"size": 256, "norm_momentum": 0.1}),
)
