"""Tables and summary lines of each task's scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from globalvit.cli import tables
from globalvit.models.variants import Kind

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a task's scores.

    Attributes:
        columns: heading → (key of a class's row, decimal places; None for integers).
        judged: the key by which classes are sorted, worst first, if there are too many to print.
        summary: formats the scores as one line.
    """

    columns: Mapping[str, tuple[str, int | None]]
    judged: str
    summary: Callable[[Mapping[str, float]], str]

    def cells(self, row: Row) -> dict[str, str]:
        """Format a class's row as strings, for the columns that it has."""
        shown = {"class": row["name"]}
        for heading, (key, digits) in self.columns.items():
            if key in row:
                shown[heading] = str(row[key]) if digits is None else tables.number(row[key], digits)
        return shown


def _classified(scores: Mapping[str, float]) -> str:
    return f"top1 {scores['top1']:.3f} %  top5 {scores['top5']:.3f} %  loss {scores['loss']:.5f}"


def _segmented(scores: Mapping[str, float]) -> str:
    return f"miou {scores['miou']:.3f} %  macc {scores['macc']:.3f} %  pacc {scores['pacc']:.3f} %"


def _detected(scores: Mapping[str, float]) -> str:
    keys = [f"ap_{kind}{at}" for kind in ("box", "mask") for at in ("", "_50", "_75")]
    return "  ".join(f"{key} {scores[key]:.3f} %" for key in keys if key in scores)


def _labeled(scores: Mapping[str, float]) -> str:
    shares = "  ".join(f"{key} {scores[key]:.3f} %" for key in ("map", "f1_micro", "f1_macro"))
    return f"{shares}  loss {scores['loss']:.5f}"


LAYOUTS: dict[Kind | Literal["multi_label"], Layout] = {
    "multi_label": Layout(
        columns={
            "images": ("images", None),
            "AP %": ("ap", 1),
            "F1 %": ("f1", 1),
            "recall %": ("recall", 1),
            "precision %": ("precision", 1),
            "threshold": ("threshold", 3),
        },
        judged="ap",
        summary=_labeled,
    ),
    "classify": Layout(
        columns={"images": ("images", None), "recall %": ("recall", 1), "precision %": ("precision", 1)},
        judged="recall",
        summary=_classified,
    ),
    "segment": Layout(
        columns={
            "pixels": ("pixels", None),
            "IoU %": ("iou", 1),
            "accuracy %": ("accuracy", 1),
            "precision %": ("precision", 1),
        },
        judged="iou",
        summary=_segmented,
    ),
    "detect": Layout(
        columns={
            "objects": ("objects", None),
            "box AP": ("ap_box", 1),
            "box AP50": ("ap_box_50", 1),
            "mask AP": ("ap_mask", 1),
            "mask AP50": ("ap_mask_50", 1),
        },
        judged="ap_box",
        summary=_detected,
    ),
}
