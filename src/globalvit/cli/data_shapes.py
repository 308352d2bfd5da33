"""`globalvit data shapes`: write a small labeled data set of drawn shapes for all three tasks."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.console import Progress

SUMMARY = "Draw a small labeled data set of shapes, in one folder for all three tasks"
# Example commands for the folder.
NEXT = (
    "globalvit train --config shapes_segmentation --data-dir {}",
    "globalvit train --config shapes_detection --data-dir {}",
    "globalvit train --model gcvit_xxtiny --data-dir {}/classify",
)


@dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """Options of `globalvit data shapes`.

    Raises:
        ValueError: a number is out of range.
    """

    out: Path = field(metadata={"help": "folder to write; it must be new or empty", "metavar": "OUT"})
    train: int = field(
        default=800, metadata={"help": "number of training images, and as many again for classification"}
    )
    val: int = field(
        default=100, metadata={"help": "number of validation images, and as many again for classification"}
    )
    size: int = field(default=128, metadata={"help": "image side length in pixels"})
    seed: int = field(default=0, metadata={"help": "random seed of the images"})

    def __post_init__(self) -> None:
        if self.train < 1 or self.val < 1:
            raise ValueError(f"--train {self.train} and --val {self.val} must be 1 or more")
        if not 32 <= self.size <= 4096 or self.seed < 0:
            raise ValueError(f"--size {self.size} must be 32 to 4096, --seed {self.seed} 0 or more")


def run(argv: Sequence[str], prog: str) -> int:
    """Write the data set and print example commands."""
    options = parse(ShapesOptions, argv, prog, SUMMARY, positional=("out",))
    from globalvit.data.built_in.shapes_files import write_shapes

    totals = {"train": options.train, "val": options.val}
    with ExitStack() as stack:
        bars: list[Progress] = []
        write_shapes(
            options.out,
            totals=totals,
            side=options.size,
            seed=options.seed,
            on_start=lambda total: bars.append(stack.enter_context(Progress(total, "drawing"))),
            on_image=lambda: bars[0].advance(),
        )
    counts = ", ".join(f"{number} {split}" for split, number in totals.items())
    tables.write_line(f"{options.out}: {counts} images of {options.size} pixels. Try:")
    for command in NEXT:
        tables.write_line(f"  {command.format(_quoted(options.out))}")
    return 0


def _quoted(out: Path) -> str:
    """Return the folder quoted for the shell; the bare word `shapes` would mean the built-in data set."""
    return shlex.quote(f"./{out}" if str(out) == "shapes" else str(out))
