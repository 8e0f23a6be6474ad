"""Mobile detectors and segmenters: MobileNet backbones, heads, training, honest measuring, export."""

__version__ = "0.1.0"
