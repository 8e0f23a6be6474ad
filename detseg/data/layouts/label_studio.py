"""Label Studio's COCO export.

    result.json
    images/
      8d3f-street.jpg
"""

from __future__ import annotations

from detseg.data.layouts.coco_files import coco_part, images_folder, is_coco
from detseg.data.layouts.layout import Found, Layout, Place


def find(place: Place) -> Found | None:
    """By the name of the annotation file and its content."""
    annotations = place.path / "result.json"
    if not is_coco(annotations):
        return None
    part = coco_part("whole", annotations, images_folder(annotations, place.path, given=place.images))
    return Found("it has result.json, with images and annotations as COCO's", {"whole": part})


LAYOUT = Layout("Label Studio, COCO", __doc__, "result.json and images/", find, boxes=True, label_maps="outlines")
