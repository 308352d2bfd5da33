"""`globalvit data pack`: pack a data set into tar shards."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.console import Progress

SUMMARY = "Pack images with classes, label maps or boxes into tar shards; use the result as --data-dir"
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of `globalvit data pack`.

    Raises:
        ValueError: the size is less than 1.
    """

    src: Path = field(
        metadata={
            "help": "data set: class folders, a label table, images with label maps, or COCO, YOLO or Pascal VOC",
            "metavar": "SRC",
        }
    )
    dst: Path = field(metadata={"help": "new folder for the shards, one folder per split", "metavar": "DST"})
    to: Literal["shards"] = field(
        default="shards", metadata={"help": "form to write: WebDataset tar shards (`data lmdb build` writes LMDB)"}
    )
    splits: tuple[str, ...] | None = field(
        default=None, metadata={"help": "splits to pack, such as train,val (default: all)"}
    )
    format: str | None = field(
        default=None, metadata={"help": "format of images with boxes: coco, yolo or voc (default: detected)"}
    )
    shard_size: int = field(default=500, metadata={"help": "size in MiB at which a new shard begins"})

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size} must be 1 or more")


def run(argv: Sequence[str], prog: str) -> int:
    """Pack a data set; return the exit status."""
    options = parse(PackOptions, argv, prog, SUMMARY, positional=("src", "dst"))
    from globalvit.data.storage.shard_build import pack

    with ExitStack() as stack:
        bars: list[Progress] = []
        packed = pack(
            options.src,
            options.dst,
            splits=options.splits,
            form=options.format,
            shard_size=options.shard_size,
            on_start=lambda total: bars.append(stack.enter_context(Progress(total, "packing"))),
            on_image=lambda: bars[0].advance(),
        )
    rows = [
        {
            "split": split.split,
            "images": str(split.images),
            "shards": str(split.shards),
            "MiB": f"{split.total_bytes / MEBIBYTE:.1f}",
        }
        for split in packed
    ]
    tables.show(rows)
    tables.write_line(f"{options.dst} is complete")
    return 0
