"""`globalvit models --complexity`: how multiply-adds, activations and memory grow with the image."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.atomic import replace_with
from globalvit.cli import tables
from globalvit.jobs import files
from globalvit.models.variants import variants

if TYPE_CHECKING:
    from globalvit.benchmark.complexity import AttentionKind

# Default sizes: windows divide the grids of 224 and 448 only.
SIDES = (224, 256, 384, 448, 512, 768, 1024)
MODEL = "gcvit_tiny"
KINDS: dict["AttentionKind", str] = {"own": "its own", "swin": "Swin's windows", "full": "full self-attention"}
GIGA, MEGA, MEBI = 1e9, 1e6, 2**20
Row = dict[str, Any]


def rows(names: Sequence[str], sides: Sequence[int]) -> list[Row]:
    """Count operations and memory for square images: one row per model, attention and size.

    Args:
        names: model names.
        sides: image side lengths in pixels.

    Raises:
        ValueError: a model is not a classifier, or a side is too small.
    """
    from globalvit.benchmark.complexity import complexity, kinds_of

    for name in names:
        if name not in variants():
            raise ValueError(f"--complexity: expected a classifier, got {name}; give its backbone's name")
    return [
        {"model": name, "attention": kind, "side": side} | asdict(complexity(name, (side, side), kind))
        for name in names
        for kind in kinds_of(name)
        for side in sides
    ]


def show(found: Sequence[Row]) -> None:
    """Print the rows as a table."""
    tables.show(
        [
            {
                "model": row["model"],
                "attention": KINDS[row["attention"]],
                "pixels": str(row["side"]),
                "GMACs": tables.number(row["macs"] / GIGA, 2),
                "of attention": tables.number(row["attention_macs"] / GIGA, 2),
                "on padding, %": tables.number(100 * row["padding_share"], 1),
                "activations M": tables.number(row["activations"] / MEGA, 1),
                "largest layer MiB": tables.number(row["memory"] / MEBI, 1),
            }
            for row in found
        ]
    )


def write_csv(path: Path, found: Sequence[Row]) -> None:
    """Write the rows as CSV at full precision."""
    files.write_csv(path, list(found[0]), [list(row.values()) for row in found])


def plot(path: Path, found: Sequence[Row]) -> None:
    """Plot multiply-adds, activations and memory against the image side, with logarithmic axes.

    Raises:
        ValueError: the path does not have an image extension.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {"multiply-adds, 10⁹": ("macs", GIGA), "activations, 10⁶": ("activations", MEGA)}
    panels["largest layer in float32, MiB"] = ("memory", MEBI)
    grid = figure.subplots(1, 3)
    for axes, (label, (key, unit)) in zip(grid, panels.items(), strict=True):
        _panel(axes, found, key, unit)
        axes.set_title(label, fontsize=10)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with replace_with(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _panel(axes: Any, found: Sequence[Row], key: str, unit: float) -> None:
    for name, kind in dict.fromkeys((row["model"], row["attention"]) for row in found):
        line = [row for row in found if (row["model"], row["attention"]) == (name, kind)]
        sides = [row["side"] for row in line]
        # Dashes keep two overlapping curves visible.
        style = {"own": "o-", "swin": "s--", "full": "^:"}[kind]
        axes.plot(sides, [row[key] / unit for row in line], style, markersize=4, label=f"{name}, {KINDS[kind]}")
    sides = sorted({row["side"] for row in found})
    axes.loglog()
    axes.set_xticks(sides, [str(side) for side in sides], rotation=45)
    axes.minorticks_off()
    axes.set_xlabel("image side, pixels")
    axes.grid(alpha=0.3)
