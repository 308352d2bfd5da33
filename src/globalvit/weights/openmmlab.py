"""Segmenters and detectors in the style of OpenMMLab ↔ ours.

Pure dict → dict on anything with `shape` and `reshape`. The backbone is in its authors' form under `backbone.`: GPViT's
as released, GC ViT's in the detection form. The tables of the other parts stand in files of their own.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights import gcvit_official, gpvit_official, openmmlab_detect, openmmlab_segment
from globalvit.weights.names import Pair, nest, rename_all, renamer, swap

TITLE = "the form of OpenMMLab"
# Entries of which every such checkpoint has one; GPViT's classifiers have none of them.
MARKS = (
    "backbone.patch_embed.conv_down.reduction.weight",
    "decode_head.conv_seg.weight",
    "rpn_head.rpn_cls.weight",
    "bbox_head.retina_cls.weight",
)
PAIRS: list[Pair] = [
    *nest("backbone.", "", gcvit_official.EVERY_NORM_BACKBONE),
    *gpvit_official.BACKBONE,
    *nest("backbone.", "backbone.", openmmlab_detect.ADAPTER),
    *openmmlab_segment.PAIRS,
    *openmmlab_detect.PARTS,
]

_to_ours, _from_ours = renamer(PAIRS), renamer(swap(PAIRS))
dropped = gcvit_official.dropped


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert these names and shapes to ours.

    Raises:
        ValueError: entries that belong to no known part.
    """
    kept = {name: value for name, value in state.items() if not dropped(name)}
    return gpvit_official.our_shapes(rename_all(kept, _to_ours, TITLE))


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our names and shapes to these, with GC ViT's index buffers after their tables.

    Raises:
        ValueError: entries that such checkpoints do not have, such as a classifier's.
    """
    shaped = gpvit_official.official_shapes(state)
    return gcvit_official.with_indices(rename_all(shaped, _from_ours, TITLE))
