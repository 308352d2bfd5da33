"""Curves and confusion matrix as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from globalvit import atomic
from globalvit.printable import printable

Record = dict[str, Any]
# More classes than this have no room for their names and counts.
MOST_NAMES = 30
MOST_COUNTS = 15


def plot_run(folder: Path, records: Sequence[Record]) -> None:
    """Draw plots/loss.png, accuracy.png (every score in percent) and lr.png from the records of metrics.jsonl."""
    training = [record for record in records if record["kind"] == "train"]
    scores = [record for record in records if record["kind"] == "evaluate"]
    plot_curves(
        folder / "loss.png",
        "loss",
        {
            "training": curve(training, "loss"),
            "evaluation": curve(scores, "loss"),
            "evaluation, EMA": curve(scores, "ema_loss"),
        },
    )
    plot_curves(
        folder / "accuracy.png",
        "accuracy, %",
        {name: curve(scores, key) for name, key in _ACCURACIES.items()},
    )
    plot_curves(folder / "lr.png", "learning rate", {"": curve(training, "lr")})


_SCORES = {
    "top-1": "top1",
    "top-5": "top5",
    "mIoU": "miou",
    "mean accuracy": "macc",
    "pixel accuracy": "pacc",
    "box AP": "ap_box",
    "mask AP": "ap_mask",
}
_ACCURACIES = {
    f"{name}{suffix}": prefix + key for name, key in _SCORES.items() for prefix, suffix in (("", ""), ("ema_", ", EMA"))
}


def curve(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """(epoch, value) of the records that have the key."""
    return [(record["epoch"], record[key]) for record in records if key in record]


def plot_curves(path: Path, label: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Draw named curves over epochs; empty ones are left out."""
    figure, axes = _figure(7, 4)
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 3 else "")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()
    _save(figure, path)


def plot_confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw a confusion matrix: rows are the true classes, columns the guesses, colors the share of the row."""
    counts_KK = np.asarray(counts)
    shares_KK = counts_KK / counts_KK.sum(1, keepdims=True).clip(1)
    side = min(12.0, 4.0 + 0.35 * len(classes))
    figure, axes = _figure(side, side)
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("guessed")
    axes.set_ylabel("true")
    if len(classes) <= MOST_NAMES:
        # Text between dollar signs would be read as a formula.
        names = [printable(name).replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= MOST_COUNTS:
        _write_counts(axes, counts_KK, shares_KK)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Figures without pyplot: no window system, no state shared with a notebook.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _write_counts(axes: Axes, counts_KK: np.ndarray, shares_KK: np.ndarray) -> None:
    for row, column in zip(*counts_KK.nonzero(), strict=True):
        color = "white" if shares_KK[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts_KK[row, column]), ha="center", va="center", color=color, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic.replace_with(path) as temporary:
        figure.savefig(temporary, dpi=110)
