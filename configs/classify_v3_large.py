"""MobileNetV3-Large on ImageNet, to pre-train a backbone, as the paper has it.

Paper: Howard et al. 2019, arXiv 1905.02244, section 6.1 and Table 3: 75.2 top-1, 5.4 M parameters, 219 M
multiply-adds. From there: RMSprop with 0.9 and 0.9, a rate of 0.1 for 4,096 images that is multiplied by 0.99 after
every 3 epochs, a dropout that keeps 0.8, weight decay 1e-5, crops and values in -1..1 as for Inception, the average of
the weights (0.9999) and BatchNorm's (0.99).
It tells neither epochs nor warm-up: 600 epochs are torchvision's and timm's, 5 epochs of warm-up our choice. Label
smoothing is Inception-v3's. Where Inception's preprocessing changes colours stand AutoAugment and random erasing, as
in torchvision's recipe, which multiplies 0.064 for 1,024 images by 0.973 after every 2 epochs, without label smoothing,
and averages three checkpoints: 74.0; a longer one gave its second weights, 75.3. timm's have RandAugment, and reach
75.8. No score of this recipe has been measured yet. torchvision's weights load with --weights mobilenet_v3_large.
What comes of it starts a detector or segmenter with the same tail: --weights runs/classify_v3_large. The tail of
SSDLite's configs is --set model.reduced_tail=detection, that of LR-ASPP's model.reduced_tail=segmentation.
Source: paper; 75.2 top-1 on ImageNet val.
Cost: 5,483,032 parameters, 216,589,760 multiply-adds at 224 x 224.

    detseg train classify_v3_large --data data/imagenet
    torchrun --nproc_per_node 8 -m detseg train classify_v3_large --data data/imagenet
"""

from detseg.backbones.mobilenet_v3 import mobilenet_v3_large
from detseg.backbones.trunk import ReducedTail
from detseg.config import Experiment
from detseg.data.augment import ClassificationAugment, ClassSample, RandomErasing
from detseg.data.imagenet import IMAGENET
from detseg.data.policies import AutoAugment
from detseg.layers import Norm
from detseg.model import Predictor
from detseg.optim import EMA, Exponential, RMSprop
from detseg.recipes import CLASSES, classifier_sample
from detseg.resize import CentreCrop, Resize
from detseg.structures import Classes
from detseg.tasks.classification import Classification
from heads.classifier import Classifier


def model(
    classes: Classes, *, width: float = 1.0, size: int = 224, reduced_tail: ReducedTail = "none", hidden: int = 1280,
    dropout: float = 0.2, label_smoothing: float = 0.1, norm_momentum: float = 0.01,
) -> Predictor:
    """224 x 224 out of the middle, values in -1..1; 1,280 channels behind the mean."""
    backbone = mobilenet_v3_large(width=width, taps=("c5",), reduced_tail=reduced_tail, norm=Norm(norm_momentum, 1e-3))
    head = Classifier(backbone.specs, len(classes), hidden=hidden, dropout=dropout, label_smoothing=label_smoothing)
    return Predictor(backbone, head, classes=classes, resize=CentreCrop((size, size)), mean=(0.5, 0.5, 0.5),
                     std=(0.5, 0.5, 0.5))


def augment(resize: Resize) -> RandomErasing[ClassSample]:
    """Crops of 8 % of the area and more, mirror images, AutoAugment, a rectangle erased in every fifth."""
    crops = ClassificationAugment(resize.size)
    return RandomErasing(AutoAugment(crops, resize.fill), probability=0.2, area=(0.02, 0.33))


experiment = Experiment(
    task=Classification(),
    data=CLASSES,
    model=model,
    classes=IMAGENET,
    augment=augment,
    optimizer=RMSprop(lr=0.1, alpha=0.9, momentum=0.9, weight_decay=1e-5),
    schedule=Exponential(epochs=600, warmup_steps=1560, gamma=0.99, every=3),
    batch_size=4096,
    ema=EMA(decay=0.9999),
    validate_every=10,
    sample=classifier_sample({"size": 96, "width": 0.5, "hidden": 256, "norm_momentum": 0.1}),
)
