"""RetinaNet on MobileNetV4-Conv-Medium, for COCO: separable pyramid P3-P7 and head of 256 channels, 384 x 384.

Paper: Qin et al. 2024, arXiv 2404.10518, Table 6: 32.6 AP on val2017, 5.06 G multiply-adds, 9.79 M parameters, these
with BatchNorm's statistics and the backbone's unused classifier. Wiring: TensorFlow's official/vision.
Recipe: the paper's 600 epochs, cosine after 24 epochs of warm-up, stochastic depth 0.2 (here growing to it). Its rate
for batches of 2,048 is not printed: 0.001 at 256 is ours, to be multiplied by the root of what the batch is by.
AdamW stands for Adam with an l2 loss of 3e-5; colours, zoom-out and SSD's crop for RandAugment and random scales.
Input: ImageNet's mean and std, as timm's mobilenetv4_conv_medium expects, whose weights fit (--weights FILE).
Source: paper; 32.6 AP on val2017.
Cost: 8,216,343 parameters, 5,029,737,984 multiply-adds at 384 x 384.

    torchrun --nproc_per_node 8 -m detseg train retinanet_v4_conv_medium --data data/coco --weights FILE
"""

from detseg.backbones.mobilenet_v4 import mobilenet_v4_conv_medium
from detseg.config import Data, Experiment
from detseg.data.augment import SSDAugment
from detseg.data.coco import COCO_90
from detseg.data.detection import DetectionDataset
from detseg.data.layouts import read_boxes
from detseg.data.sample import generate_sample
from detseg.layers import Norm
from detseg.metrics.coco_ap import CocoAP
from detseg.model import Predictor
from detseg.necks import SeparableFPN
from detseg.ops.anchors import GridAnchors
from detseg.optim import EMA, AdamW, Cosine
from detseg.recipes import retinanet_sample
from detseg.resize import Letterbox
from detseg.structures import IMAGENET_MEAN, IMAGENET_STD, Classes
from detseg.tasks.detection import Detection
from heads.retinanet import RetinaNet

HEAD_NORM = Norm(momentum=0.1, eps=1e-3)
"""TensorFlow's momentum of 0.01 has not forgotten the untrained network after a few hundred steps."""
ANCHORS = GridAnchors(
    tuple(tuple(3 * stride * 2 ** (k / 3) for k in range(3)) for stride in (8, 16, 32, 64, 128)), rounded=False,
    centred=True)
"""TensorFlow's: three times the stride and two sizes on the way to the next map's (anchor_size 3, num_scales 3)."""


def model(classes: Classes, *, width: float = 1.0, size: int = 384, channels: int = 256) -> Predictor:
    """384 x 384 with its aspect ratio kept, nine anchors a cell on five maps: 27,621 boxes."""
    backbone = mobilenet_v4_conv_medium(width=width, taps=("c3", "c4", "c5.bottleneck"), drop_path=0.2)
    neck = SeparableFPN(backbone.specs, channels=channels, norm=HEAD_NORM)
    head = RetinaNet(
        neck.specs, len(classes), anchors=ANCHORS, separable=True, norm=HEAD_NORM, gamma=1.5, box_loss="huber",
        box_weight=12.5, max_negative_iou=0.5)
    return Predictor(backbone, head, neck=neck, classes=classes, resize=Letterbox((size, size)), mean=IMAGENET_MEAN,
                     std=IMAGENET_STD)


experiment = Experiment(
    task=Detection(score_threshold=0.05, iou_threshold=0.5, per_class=1000, max_detections=100),
    data=Data(read=read_boxes, dataset=DetectionDataset, metric=CocoAP, generate=generate_sample),
    model=model,
    classes=COCO_90,
    augment=SSDAugment,
    optimizer=AdamW(lr=0.001, weight_decay=0.05, decay_norms=False),
    schedule=Cosine(epochs=600, warmup_steps=11_088, warmup_start=0.001),
    batch_size=256,
    ema=EMA(decay=0.9998),
    validate_every=10,
    sample=retinanet_sample({"size": 256, "channels": 64}),
)
