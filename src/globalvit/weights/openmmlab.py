"""Detectors and segmenters in the style of OpenMMLab: their GC ViT backbone → ours.

Pure dict → dict. The backbone is in the official form under `backbone.`; the other parts are left out by name.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights import gcvit_official

TITLE = "the form of OpenMMLab"
BACKBONE = "backbone."
OTHER_PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "decode_head.", "auxiliary_head.")


def dropped(name: str) -> bool:
    """Whether `to_ours` leaves an entry out: the parts beside the backbone, and the backbone's index buffers."""
    return name.startswith(OTHER_PARTS) or gcvit_official.dropped(name)


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's entries under our names.

    Raises:
        ValueError: entries that belong to no known part.
    """
    kept = {name: value for name, value in state.items() if not dropped(name)}
    return gcvit_official.to_ours({name.removeprefix(BACKBONE): value for name, value in kept.items()})
