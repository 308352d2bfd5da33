"""`globalvit data split`: split a data set into train and val folders."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.console import Progress

SUMMARY = "Split a folder into train and val: class folders, images with label maps, or COCO"


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options of `globalvit data split`.

    Raises:
        ValueError: a number is out of range.
    """

    folder: Path = field(metadata={"help": "folder to split; it is not modified", "metavar": "FOLDER"})
    output: Path = field(metadata={"help": "new folder for train and val", "metavar": "OUTPUT"})
    fraction: float = field(default=0.1, metadata={"help": "fraction of the images for val"})
    seed: int = field(default=0, metadata={"help": "random seed of the split"})
    way: Literal["copy", "link"] = field(
        default="copy",
        metadata={"help": "copy files, or make hard links, which use no space but share later changes"},
    )
    nested_classes: bool = field(
        default=False, metadata={"help": "treat every folder that directly contains images as a class, at any depth"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"--fraction {self.fraction:g} must be more than 0 and less than 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must be 0 or more")


def run(argv: Sequence[str], prog: str) -> int:
    """Split a folder; return the exit status."""
    options = parse(SplitOptions, argv, prog, SUMMARY, positional=("folder", "output"))
    from globalvit.data.split_folder import split_folder

    with ExitStack() as stack:
        bars: list[Progress] = []
        plan = split_folder(
            options.folder,
            options.output,
            fraction=options.fraction,
            seed=options.seed,
            way=options.way,
            nested=options.nested_classes,
            on_start=lambda total: bars.append(stack.enter_context(Progress(total, "writing"))),
            on_file=lambda: bars[0].advance(),
        )
    counts = ", ".join(f"{number} images in {split}" for split, number in plan.counts.items())
    tables.write_line(f"{options.output}: {counts} (fraction {options.fraction:g}, seed {options.seed})")
    return 0
