"""Curves and confusion matrix as PNG files and as images."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from globalvit import atomic
from globalvit.metrics.curves import RECALLS, ClassCurve
from globalvit.printable import printable

Record = dict[str, Any]
# More classes than this have no room for their names and counts.
MOST_NAMES = 30
MOST_COUNTS = 15
MOST_CURVES = 10


def plot_run(folder: Path, records: Sequence[Record]) -> None:
    """Draw plots/loss.png, accuracy.png (every score in percent) and lr.png from the records of metrics.jsonl."""
    for name, label, curves in _plots(records):
        plot_curves(folder / name, label, curves)


def _plots(records: Sequence[Record]) -> list[tuple[str, str, dict[str, list[tuple[float, float]]]]]:
    """File name, label and curves of each plot of a run."""
    training = [record for record in records if record["kind"] == "train"]
    scores = [record for record in records if record["kind"] == "evaluate"]
    losses = {
        "training": curve(training, "loss"),
        "evaluation": curve(scores, "loss"),
        "evaluation, EMA": curve(scores, "ema_loss"),
    }
    return [
        ("loss.png", "loss", losses),
        ("accuracy.png", "accuracy, %", {name: curve(scores, key) for name, key in _ACCURACIES.items()}),
        ("lr.png", "learning rate", {"": curve(training, "lr")}),
    ]


_SCORES = {
    "top-1": "top1",
    "top-5": "top5",
    "mAP": "map",
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
    _draw_curves(axes, label, curves)
    _save(figure, path)


def run_figure(records: Sequence[Record]) -> Figure:
    """Draw loss and scores of a run side by side."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (_, label, curves) in zip(figure.subplots(1, 2), _plots(records), strict=False):
        _draw_curves(axes, label, curves)
    return figure


def _draw_curves(axes: Axes, label: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 3 else "")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend()


def plot_confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw a confusion matrix: rows are the true classes, columns the predicted ones, colors the share of the row."""
    _save(confusion_figure(counts, classes), path)


def confusion_figure(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix; see `plot_confusion`."""
    counts_KK = np.asarray(counts)
    shares_KK = counts_KK / counts_KK.sum(1, keepdims=True).clip(1)
    side = min(12.0, 4.0 + 0.35 * len(classes))
    figure, axes = _figure(side, side)
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= MOST_NAMES:
        names = _plain(classes)
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), names)
    if len(classes) <= MOST_COUNTS:
        _write_counts(axes, counts_KK, shares_KK)
    return figure


def curves_figure(curves: Sequence[ClassCurve], classes: Sequence[str]) -> Figure:
    """Draw precision over recall, and F1 over the score threshold, of each class and their mean."""
    known = [(curve, name) for curve, name in zip(curves, _plain(classes), strict=True) if curve.objects]
    thresholds = np.linspace(0, 1, 201)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    sides = (
        (RECALLS, [curve.envelope for curve, _ in known], "recall", "precision"),
        (thresholds, [curve.f1_at(thresholds) for curve, _ in known], "score threshold", "F1"),
    )
    is_named = len(known) <= MOST_CURVES
    for axes, (x, lines, across, up) in zip(figure.subplots(1, 2), sides, strict=True):
        for line, (_, name) in zip(lines, known, strict=True):
            axes.plot(x, line, label=name if is_named else None, lw=1, color=None if is_named else "#b0b0b0")
        if len(known) > 1:
            axes.plot(x, np.mean(lines, 0), label="mean", lw=2.5, color="black")
        axes.set(xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        if known:
            axes.legend(fontsize=8)
    return figure


def row_figure(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, str]) -> Figure:
    """Draw scores of each class as bars; `scores` maps their titles to keys of the rows, percent or None."""
    figure, axes = _figure(7, min(40.0, 1.5 + 0.25 * len(rows) * len(scores)))
    height = 0.8 / len(scores)
    for number, (title, key) in enumerate(scores.items()):
        places = [index + number * height for index in range(len(rows))]
        axes.barh(places, [row[key] or 0 for row in rows], height, label=title)
    axes.set_yticks(range(len(rows)), _plain([row["name"] for row in rows]))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.legend()
    return figure


def to_image(figure: Figure) -> Image.Image:
    """Render a figure as an image, which notebooks show and `save` writes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB")


def _plain(names: Sequence[str]) -> list[str]:
    # Text between dollar signs would be read as a formula.
    return [printable(name).replace("$", r"\$") for name in names]


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
