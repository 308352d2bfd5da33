"""Segmenters and detectors in the style of OpenMMLab ↔ ours.

Pure dict → dict on anything with `shape` and `reshape`. The backbone is in its authors' form under `backbone.`: GPViT's
as released, GC ViT's in the detection form. A table for each kind of head stands in a file of its own; to add one is to
add its pairs to `PAIRS` and its marks to `MARKS`.
"""

from collections.abc import Mapping
from typing import Any

from globalvit.weights import gcvit_official, gpvit_official, openmmlab_segment
from globalvit.weights.names import Pair, nest, rename_all, renamer, swap

TITLE = "the form of OpenMMLab"
# Parts without a table, which are left out by name.
OTHER_PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.")
# Entries of which every such checkpoint has one; GPViT's classifiers have none of them.
MARKS = ("backbone.patch_embed.conv_down.reduction.weight", *openmmlab_segment.MARKS)
PAIRS: list[Pair] = [
    *nest("backbone.", "", gcvit_official.EVERY_NORM_BACKBONE),
    *gpvit_official.BACKBONE,
    *openmmlab_segment.PAIRS,
]

_to_ours, _from_ours = renamer(PAIRS), renamer(swap(PAIRS))


def dropped(name: str) -> bool:
    """Whether `to_ours` leaves an entry out: parts without a table, and the index buffers of GC ViT."""
    return name.startswith(OTHER_PARTS) or gcvit_official.dropped(name)


def to_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """From these names and shapes to ours.

    Raises:
        ValueError: entries that belong to no known part.
    """
    kept = {name: value for name, value in state.items() if not dropped(name)}
    return gpvit_official.our_shapes(rename_all(kept, _to_ours, TITLE))


def from_ours(state: Mapping[str, Any]) -> dict[str, Any]:
    """From our names and shapes to these, GC ViT's index buffers written anew behind their tables.

    Raises:
        ValueError: entries that such checkpoints do not have, such as a classifier's.
    """
    shaped = gpvit_official.official_shapes(state)
    return gcvit_official.with_indices(rename_all(shaped, _from_ours, TITLE))
