"""Recognize the head of a model from its entries in our names.

Everything outside `backbone.` belongs to the head. No torch here: entries are anything with a `shape`. Another head is
another line of `HEADS`, or is registered by an extension.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from globalvit import extensions

State = Mapping[str, Any]
BACKBONE = "backbone."
CLASSIFIER = "classifier"
CLASSIFIER_WEIGHT = "head.linear.weight"
RETINANET_ANCHORS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """How a head is recognized, and which of its entries depend on the number of classes.

    Attributes:
        name: as in a model's name; `classifier` where that has none.
        mark: an entry that every model with this head has, and none with another.
        outputs: the entry whose rows are the outputs for the classes.
        class_wise: a pattern of what the entries begin with that another number of classes leaves fresh.
        rows_to_classes: from the rows of `outputs` to the number of classes.
    """

    name: str
    mark: str
    outputs: str
    class_wise: str
    rows_to_classes: Callable[[int], int] = int

    def num_classes(self, state: State) -> int:
        """Return the number of classes of a state dict with this head."""
        return self.rows_to_classes(state[self.outputs].shape[0])

    def is_class_wise(self, name: str) -> bool:
        """Return whether an entry stays fresh if the number of classes differs."""
        return re.match(self.class_wise, name) is not None


def _segmenter(name: str, mark: str) -> Head:
    return Head(name=name, mark=mark, outputs="head.classifier.weight", class_wise=r"(auxiliary_)?head\.classifier\.")


def _two_stage(name: str, outputs: str) -> Head:
    # The last row is the background's.
    return Head(
        name=name,
        mark=outputs,
        outputs=outputs,
        class_wise=r"roi\.(box|mask)_heads?\.(\d+\.)?(logits|deltas)\.",
        rows_to_classes=lambda rows: rows - 1,
    )


HEADS = (
    Head(name=CLASSIFIER, mark=CLASSIFIER_WEIGHT, outputs=CLASSIFIER_WEIGHT, class_wise=r"head\."),
    _segmenter("upernet", "head.pyramid.merge.conv.weight"),
    _segmenter("segformer", "head.fusion.conv.weight"),
    _two_stage("mask_rcnn", "roi.box_head.logits.weight"),
    _two_stage("cascade_mask_rcnn", "roi.box_heads.0.logits.weight"),
    Head(
        name="retinanet",
        mark="dense.logits.weight",
        outputs="dense.logits.weight",
        class_wise=r"dense\.logits\.",
        rows_to_classes=lambda rows: rows // RETINANET_ANCHORS,
    ),
)


def head_parts() -> tuple[Head, ...]:
    """Return how each head is recognized, those of extensions among them."""
    return (*HEADS, *(Head(name=one.name, **asdict(one.entries)) for one in extensions.heads()))


def head_of(state: State) -> Head | None:
    """Return the head of a state dict in our names; None for a bare backbone."""
    return next((head for head in head_parts() if head.mark in state), None)


def full_name(backbone: str, head: Head | None) -> str:
    """Return the name of the model: `gpvit_l1` with its classifier, `gpvit_l1_upernet`."""
    return backbone if head is None or head.name == CLASSIFIER else f"{backbone}_{head.name}"
