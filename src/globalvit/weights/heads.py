"""Which head the weights of a model are of, told from its entries in our names.

Everything outside `backbone.` belongs to the head. No torch here: entries are anything with a `shape`. Another head is
another line of `HEADS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

State = Mapping[str, Any]
BACKBONE = "backbone."
CLASSIFIER = "classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What tells a head, and what of it follows from the number of classes.

    Attributes:
        name: as in a model's name; `classifier` where that has none.
        mark: an entry that every model with this head has, and none with another.
        num_classes: the number of classes, from the shapes of the entries.
        class_wise: beginnings of the entries that another number of classes leaves fresh.
    """

    name: str
    mark: str
    num_classes: Callable[[State], int]
    class_wise: tuple[str, ...]


def _rows(name: str) -> Callable[[State], int]:
    return lambda state: state[name].shape[0]


def _segmenter(name: str, mark: str) -> Head:
    return Head(
        name=name,
        mark=mark,
        num_classes=_rows("head.classifier.weight"),
        class_wise=("head.classifier.", "auxiliary_head.classifier."),
    )


HEADS = (
    Head(
        name=CLASSIFIER, mark="head.linear.weight", num_classes=_rows("head.linear.weight"), class_wise=("head.",)
    ),
    _segmenter("upernet", "head.pyramid.merge.conv.weight"),
    _segmenter("segformer", "head.fusion.conv.weight"),
)


def head_of(state: State) -> Head | None:
    """The head of a state dict in our names; None for a backbone alone."""
    return next((head for head in HEADS if head.mark in state), None)


def full_name(backbone: str, head: Head | None) -> str:
    """The name of the model: `gpvit_l1` with its classifier, `gpvit_l1_upernet`."""
    return backbone if head is None or head.name == CLASSIFIER else f"{backbone}_{head.name}"
