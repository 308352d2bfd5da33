"""Results as an image: images a second over batch or image size, or as bars where there is one of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from globalvit import atomic
from globalvit.benchmark.report import MODE_TITLES, Row, size_text


def plot(path: Path, plain: Sequence[Row], title: str) -> None:
    """Draw rows with figures, a panel for each mode and precision; the ending chooses the format.

    Raises:
        OSError: the file cannot be written.
    """
    shown = [row for row in plain if row["error"] is None]
    panels = list(dict.fromkeys((row["mode"], row["precision"]) for row in shown))
    figure = Figure(figsize=(6 * max(1, len(panels)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=8)
    for number, (mode, precision) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(f"{MODE_TITLES[mode]}, {precision}")
        _panel(axes, [row for row in shown if (row["mode"], row["precision"]) == (mode, precision)])
    with atomic.replace_with(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _panel(axes: Axes, shown: Sequence[Row]) -> None:
    batches, sizes = ({str(row[key]) for row in shown} for key in ("batch_size", "image_size"))
    if len(sizes) > 1:
        _lines(axes, shown, "pixels a side", lambda row: row["image_size"][0], len(batches) > 1)
    elif len(batches) > 1:
        _lines(axes, shown, "batch size", lambda row: row["batch_size"], False)
    else:
        names = [f"{row['network']} {row['way']}" for row in shown]
        axes.barh(range(len(names)), [row["images_per_second"] for row in shown])
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("images/s")


def _lines(axes: Axes, shown: Sequence[Row], label: str, place: Any, has_batches: bool) -> None:
    curves: dict[str, list[Row]] = {}
    for row in shown:
        batch = f", batch {row['batch_size']}" if has_batches else ""
        curves.setdefault(f"{row['network']} {row['way']}{batch}", []).append(row)
    for name, points in curves.items():
        axes.plot([place(row) for row in points], [row["images_per_second"] for row in points], marker="o", label=name)
    ticks = {place(row): size_text(row["image_size"]) if "pixels" in label else str(place(row)) for row in shown}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel(label)
    axes.set_ylabel("images/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
