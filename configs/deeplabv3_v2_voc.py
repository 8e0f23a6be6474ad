"""DeepLabV3 on MobileNetV2 at stride 16 for PASCAL VOC 2012, the MobileNetV2 paper's largest segmenter.

Paper: Sandler et al. 2018, arXiv 1801.04381, Table 7: 75.7 mIoU on val, 4.52 M parameters, 5.8 B multiply-adds, after
training on COCO too. Wiring: TensorFlow's DeepLab, on the 320 channels before the last convolution. Recipe: Chen et al.
2017, arXiv 1706.05587, section 4 (30,000 steps with 16 images, 45 epochs of the 10,582 of trainaug), from ImageNet
weights: --weights mobilenet_v2. TensorFlow pads the images to 513 x 513; here they are enlarged to it, by 3 %.
Source: TensorFlow; 75.7 mIoU on VOC val.
Cost: 4,523,541 parameters, 5,363,508,928 multiply-adds at 513 x 513.

    detseg train deeplabv3_v2_voc --data data/voc --weights mobilenet_v2
"""

from dataclasses import replace

from detseg.backbones.mobilenet_v2 import mobilenet_v2
from detseg.config import Data, Experiment
from detseg.data.augment import SegmentationAugment
from detseg.data.layouts import read_labels
from detseg.data.sample import generate_sample
from detseg.data.segmentation import SegmentationDataset
from detseg.data.voc import VOC_21
from detseg.metrics.mean_iou import MeanIoU
from detseg.model import Predictor
from detseg.optim import SGD, Poly
from detseg.recipes import segmenter_sample
from detseg.resize import Letterbox, Resize
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.segmentation import Segmentation
from heads.deeplabv3 import DeepLabV3


def model(classes: Classes, *, width: float = 1.0, size: int = 513) -> Predictor:
    """513 x 513 with bars; the pyramid's rates belong to stride 16."""
    backbone = mobilenet_v2(width=width, taps=("c5.bottleneck",), output_stride=16)
    head = DeepLabV3(backbone.specs, len(classes), rates=(6, 12, 18), refine=False, dropout=0.1)
    return Predictor(backbone, head, classes=classes, resize=Letterbox((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


def augment(resize: Resize) -> SegmentationAugment:
    """Half to double size, crops of the network's size, mirror images."""
    return SegmentationAugment(resize.size, resize.fill, photometric=0.0)


def sample_augment(resize: Resize) -> SegmentationAugment:
    """Of images at 3/4 of the network's size."""
    return replace(augment(resize), shorter=resize.size[0] * 3 // 4)


experiment = Experiment(
    task=Segmentation(),
    data=Data(read=read_labels, dataset=SegmentationDataset, metric=MeanIoU,
              generate=generate_sample, folder="data/voc"),
    model=model,
    classes=VOC_21,
    augment=augment,
    optimizer=SGD(lr=0.007, momentum=0.9, weight_decay=4e-5),
    schedule=Poly(epochs=45, power=0.9),
    batch_size=16,
    sample=segmenter_sample(sample_augment, {"size": 257}),
)
