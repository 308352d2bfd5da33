"""The drawings of docs/networks.md and docs/results.md. `python docs/figures.py` writes them to docs/images."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from globalvit.models.variants import PUBLISHED

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREEN, GRAY, PALE = "#3b6fb6", "#e08a2e", "#4c9f70", "#8a8f98", "#eef1f6"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose units are inches, without axes."""
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str = PALE) -> None:
    """Draw a rounded box with centered text."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec=GRAY, lw=0.8)
    axes.add_patch(shape)
    ink = "black" if color == PALE else "white"
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9, color=ink)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    """Draw an arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color, lw=1, shrinkA=0))


def note(axes: Axes, x: float, y: float, text: str, size: float = 9, **kwargs: str) -> None:
    """Write centered text, or text aligned as `ha` says."""
    axes.text(x, y, text, fontsize=size, va="center", **{"ha": "center", **kwargs})


def tokens(axes: Axes, x: float, y: float, side: float, colors: list[list[str]]) -> None:
    """Draw a grid of tokens, first row on top."""
    for i, row in enumerate(colors):
        for j, color in enumerate(row):
            corner = (x + j * side, y + (len(colors) - 1 - i) * side)
            axes.add_patch(Rectangle(corner, side, side, fc=color, ec="white", lw=1))


def gcvit() -> Figure:
    """Draw the four stages of GC ViT with their grids for an image of 224 pixels."""
    figure, axes = canvas(9.6, 3.2)
    box(axes, 0.15, 1.3, 0.95, 0.8, "image\n224×224")
    box(axes, 1.35, 1.3, 0.95, 0.8, "stem\nstride 4")
    grids = ("56×56", "28×28", "14×14", "7×7")
    for stage, grid in enumerate(grids):
        x = 2.55 + 1.65 * stage
        box(axes, x, 1.75, 1.3, 0.5, "local block", BLUE)
        box(axes, x, 1.15, 1.3, 0.5, "global block", ORANGE)
        axes.add_patch(Rectangle((x - 0.06, 1.08), 1.42, 1.24, fill=False, ec=GRAY, lw=0.8, ls=":"))
        note(axes, x + 0.65, 2.5, f"stage {stage + 1}, {grid}")
        note(axes, x + 0.65, 2.78, f"{'C' if stage == 0 else f'{2**stage}C'} channels", 8, color=GRAY)
        box(axes, x + 0.12, 0.3, 1.06, 0.5, "query\ngenerator")
        arrow(axes, (x + 0.65, 0.8), (x + 0.65, 1.15), ORANGE)
        arrow(axes, (x - 0.19, 1.7), (x - 0.06, 1.7))
        if stage < 3:
            note(axes, x + 1.475, 1.93, "÷2", 8, color=GRAY)
    arrow(axes, (1.1, 1.7), (1.35, 1.7))
    arrow(axes, (2.3, 1.7), (2.49, 1.7))
    arrow(axes, (8.86, 1.7), (9.2, 1.7))
    note(axes, 9.38, 1.7, "head", rotation="vertical")
    return figure


def global_query() -> Figure:
    """Draw what a token attends to in a local and in a global block."""
    figure, axes = canvas(9.6, 3.5)
    shades = [BLUE, "#7fa4d6", "#a9c4e6", "#cfdef2"]
    cells = [[shades[2 * (i // 4) + j // 4] for j in range(8)] for i in range(8)]
    tokens(axes, 0.35, 0.55, 0.28, cells)
    axes.add_patch(Rectangle((0.35, 1.67), 1.12, 1.12, fill=False, ec="black", lw=2))
    note(axes, 1.47, 3.15, "local block")
    note(axes, 1.47, 0.25, "queries, keys and values\nall come from the window", 8)

    tokens(axes, 3.35, 0.55, 0.28, [[PALE if (i + j) % 2 else "#dfe4ec" for j in range(8)] for i in range(8)])
    note(axes, 4.47, 3.15, "the stage's map")
    arrow(axes, (5.7, 1.67), (6.25, 1.67))
    note(axes, 5.97, 1.95, "convolve,\npool", 8)
    tokens(axes, 6.35, 1.11, 0.28, [[ORANGE] * 4] * 4)
    note(axes, 6.91, 2.5, "global query\n(window size)", 8)
    for column, row in ((0, 1), (1, 1), (0, 0), (1, 0)):
        x, y = 8.05 + 0.75 * column, 0.95 + 0.8 * row
        tokens(axes, x, y, 0.15, [[shades[column + 2 * (1 - row)]] * 4] * 4)
        arrow(axes, (7.5, 1.67), (x - 0.02, y + 0.3), ORANGE)
    note(axes, 8.7, 3.15, "global block")
    note(axes, 8.4, 0.4, "the same queries in every window;\nkeys and values of that window", 8)
    return figure


def gpvit() -> Figure:
    """Draw a group propagation block and the stripes of local blocks."""
    figure, axes = canvas(9.6, 3.6)
    tokens(axes, 0.3, 0.75, 0.22, [[("#cfdef2", "#a9c4e6")[(i + j) % 2] for j in range(8)] for i in range(8)])
    note(axes, 1.18, 2.85, "image tokens (28×28 at 224 px)", 8)
    for row, color in enumerate((GREEN, "#7dbb97", "#a8d3ba")):
        tokens(axes, 3.2, 1.95 - 0.5 * row, 0.3, [[color]])
        tokens(axes, 4.85, 1.95 - 0.5 * row, 0.3, [[color]])
        arrow(axes, (2.15, 1.63), (3.15, 2.1 - 0.5 * row), GREEN)
        arrow(axes, (5.2, 2.1 - 0.5 * row), (6.1, 1.63), GREEN)
        arrow(axes, (3.55, 2.1 - 0.5 * row), (4.8, 2.1 - 0.5 * row), GRAY)
    note(axes, 2.55, 2.45, "1. gather", weight="bold")
    note(axes, 4.18, 2.45, "2. mix", weight="bold")
    note(axes, 5.65, 2.45, "3. return", weight="bold")
    note(axes, 4.18, 0.72, "64, 32, 32 or 16 group tokens", 8)
    tokens(axes, 6.15, 0.75, 0.22, [[("#cfdef2", "#a9c4e6")[(i + j) % 2] for j in range(8)] for i in range(8)])
    note(axes, 7.03, 2.85, "every token has global context", 8)
    note(axes, 4.18, 3.3, "group propagation block", 10)
    left = [[GREEN if j in (2, 3) else PALE for j in range(6)] for _ in range(6)]
    below = [[BLUE if i in (2, 3) else PALE for _ in range(6)] for i in range(6)]
    tokens(axes, 8.35, 1.95, 0.16, left)
    tokens(axes, 8.35, 0.75, 0.16, below)
    note(axes, 8.83, 3.3, "local block", 10)
    note(axes, 8.83, 0.45, "vertical stripes for half\nof the channels, horizontal\nfor the others; width 2", 7)
    axes.plot([8.12, 8.12], [0.3, 3.3], color=GRAY, lw=0.8, ls=":")
    return figure


def accuracy() -> Figure:
    """Draw published ImageNet accuracy over multiply-adds and over parameters, as counted here."""
    figure = Figure(figsize=(9.6, 4.2), dpi=110, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label in ((left, "multiply-adds of one image (10⁹)"), (right, "parameters (10⁶)")):
        for family, title, color in (("gcvit", "GC ViT", ORANGE), ("gpvit", "GPViT", GREEN)):
            named = [(name, value) for name, value in PUBLISHED.items() if name.startswith(family) and value.top1]
            x = [value.gmacs if axes is left else value.params / 1e6 for _, value in named]
            y = [value.top1 for _, value in named if value.top1]
            axes.plot(x, y, "o-", color=color, label=title, ms=4, lw=1)
            for place, score, (name, _) in zip(x, y, named, strict=True):
                down = (family == "gpvit") == (axes is left)  # each curve's labels on its own side
                axes.annotate(
                    name.removeprefix(f"{family}_"),
                    (place, score),
                    xytext=(4, -4) if down else (-4, 4),
                    textcoords="offset points",
                    fontsize=7.5,
                    ha="left" if down else "right",
                    va="top" if down else "bottom",
                )
        axes.set_xscale("log")
        axes.set_xticks([2, 5, 10, 20, 50, 100, 200], labels=[2, 5, 10, 20, 50, 100, 200])
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("ImageNet-1K top-1, as published (%)")
    left.margins(x=0.12)
    right.margins(x=0.14)
    left.legend(loc="lower right", frameon=False)
    return figure


def main() -> None:
    """Write all drawings."""
    matplotlib.use("agg")
    for draw in (gcvit, global_query, gpvit, accuracy):
        draw().savefig(IMAGES / f"{draw.__name__}.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
