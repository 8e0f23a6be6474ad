"""The layouts of data sets that are read as they are: one list of them, a small module each."""

from __future__ import annotations

from detseg.data.layouts import (
    ade20k,
    binary_masks,
    cityscapes,
    cityscapes_coarse,
    class_folders,
    coco,
    coco_file,
    colour_masks,
    cvat_coco,
    label_studio,
    labelme,
    masks,
    roboflow_coco,
    roboflow_voc,
    voc,
    voc_labels,
    xml_files,
    yolo,
    yolo_folders,
)
from detseg.data.layouts.layout import SPLITS, Layout, Split
from detseg.data.layouts.reader import LayoutReader

__all__ = ["LAYOUTS", "SPLITS", "Layout", "Split", "read_boxes", "read_image_classes", "read_labels"]

LAYOUTS: tuple[Layout, ...] = (
    cityscapes.LAYOUT,
    cityscapes_coarse.LAYOUT,
    ade20k.LAYOUT,
    colour_masks.LAYOUT,
    binary_masks.LAYOUT,
    voc.LAYOUT,
    voc_labels.LAYOUT,
    masks.LAYOUT,
    coco.LAYOUT,
    roboflow_coco.LAYOUT,
    cvat_coco.LAYOUT,
    label_studio.LAYOUT,
    yolo.LAYOUT,
    coco_file.LAYOUT,
    labelme.LAYOUT,
    roboflow_voc.LAYOUT,
    xml_files.LAYOUT,
    yolo_folders.LAYOUT,
)
"""The first that recognises a place reads it: the more specific come before the more general, and label maps in files
before those that are drawn from outlines."""

_GET_BOXES = (
    "COCO 2017 is at https://cocodataset.org/#download: unpack train2017.zip, val2017.zip and "
    "annotations_trainval2017.zip there, or name another folder with --data. ")
_GET_LABELS = (
    "Cityscapes is at https://www.cityscapes-dataset.com/downloads (register, then unpack "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there), VOC 2012 at "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012, COCO 2017 at https://cocodataset.org/#download. "
    "Or name another folder with --data. ")
_GET_CLASSES = (
    "ImageNet is at https://image-net.org/download-images (ILSVRC 2012; register, then unpack the archive of each "
    "class into train/CLASS, and sort the validation images into val/CLASS). Or name another folder with --data. ")
_NO_DATA = "To try without any data, use --sample: it generates its own."

read_boxes = LayoutReader(
    tuple(layout for layout in LAYOUTS if layout.boxes), lambda part: part.boxes, what="data",
    hint=_GET_BOXES + _NO_DATA)
"""Reads the boxes of a split in the first of the `LAYOUTS` that is recognised."""

read_labels = LayoutReader(
    tuple(layout for layout in LAYOUTS if layout.label_maps), lambda part: part.labels, what="label maps",
    hint=_GET_LABELS + _NO_DATA)
"""The same for label maps."""

read_image_classes = LayoutReader(
    (class_folders.LAYOUT,), lambda part: part.classes, what="classes of images", hint=_GET_CLASSES + _NO_DATA)
"""Reads the classes of a split's images, which its folders tell."""
