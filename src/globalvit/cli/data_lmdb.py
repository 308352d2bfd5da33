"""`globalvit data lmdb`: pack image folders into LMDB databases, and compare the databases with the folders."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from globalvit.cli import tables
from globalvit.cli.options import choose, parse
from globalvit.console import Progress

if TYPE_CHECKING:
    from globalvit.data.storage.lmdb_build import Packed
    from globalvit.data.storage.lmdb_verify import Comparison

SUMMARY = "Pack an image folder into LMDB databases, or compare them with the folder"
COMMANDS = {
    "build": "Pack an image folder, or resume an interrupted build; use the result as --data-dir",
    "verify": "Compare databases with the image folder they were built from, byte for byte",
}
SPLITS = "splits to pack or compare, such as train,val (default: all)"
WORKERS = "number of files read in parallel"
# Maximum files printed per kind of difference.
MOST_PRINTED = 20
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class LmdbOptions:
    """Options of both commands.

    Raises:
        ValueError: `workers` is less than 1.
    """

    splits: tuple[str, ...] | None = field(default=None, metadata={"help": SPLITS})
    workers: int = field(default=8, metadata={"help": WORKERS})

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers} must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class BuildOptions(LmdbOptions):
    """Options of `globalvit data lmdb build`."""

    src: Path = field(
        metadata={
            "help": "image folder with CLASS/IMAGE, SPLIT/CLASS/IMAGE, or images/SPLIT and annotations/SPLIT",
            "metavar": "SRC",
        }
    )
    dst: Path = field(metadata={"help": "folder for the databases, one per split", "metavar": "DST"})


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(LmdbOptions):
    """Options of `globalvit data lmdb verify`."""

    dst: Path = field(metadata={"help": "folder of the databases", "metavar": "DST"})
    src: Path = field(metadata={"help": "image folder they were built from", "metavar": "SRC"})


def run(argv: Sequence[str], prog: str) -> int:
    """Run one of the commands; return the exit status."""
    name, rest = choose(COMMANDS, argv, prog, SUMMARY)
    return {"build": run_build, "verify": run_verify}[name](rest, f"{prog} {name}")


def run_build(argv: Sequence[str], prog: str) -> int:
    """Pack a folder."""
    options = parse(BuildOptions, argv, prog, COMMANDS["build"], positional=("src", "dst"))
    from globalvit.data.storage.lmdb_build import build

    with _bar("packing") as calls:
        packed = build(options.src, options.dst, splits=options.splits, readers=options.workers, **calls)
    tables.show([_row(split) for split in packed])
    tables.write_line(f"{options.dst} is complete")
    return 0


def run_verify(argv: Sequence[str], prog: str) -> int:
    """Compare databases with a folder; return exit status 1 if they differ."""
    options = parse(VerifyOptions, argv, prog, COMMANDS["verify"], positional=("dst", "src"))
    from globalvit.data.storage.lmdb_verify import verify

    with _bar("comparing") as calls:
        found = verify(options.dst, options.src, splits=options.splits, readers=options.workers, **calls)
    _tell(found)
    return 0 if found.is_equal else 1


@contextmanager
def _bar(description: str) -> Iterator[dict[str, Callable[..., None]]]:
    """Return the callbacks that advance a progress bar, which starts once the images are counted."""
    with ExitStack() as stack:
        bars: list[Progress] = []
        yield {
            "on_start": lambda total: bars.append(stack.enter_context(Progress(total, description))),
            "on_image": lambda: bars[0].advance(),
        }


def _row(split: "Packed") -> dict[str, str]:
    values: dict[str, Any] = {
        "split": split.split or "(none)",
        "classes": split.classes,
        "images": split.images,
        "MiB": f"{split.total_bytes / MEBIBYTE:.1f}",
        "written now": split.written,
        "there before": split.kept,
        "removed": split.removed,
    }
    return {name: str(value) for name, value in values.items()}


def _tell(found: "Comparison") -> None:
    kinds = {
        "missing in the database": found.missing,
        "not in the folder": found.extra,
        "different bytes": found.differing,
        "different from the index": found.index,
    }
    for kind, names in kinds.items():
        for name in names[:MOST_PRINTED]:
            tables.write_line(f"{kind}: {name}")
        if len(names) > MOST_PRINTED:
            tables.write_line(f"{kind}: {len(names) - MOST_PRINTED} more")
    problems = ", ".join(f"{len(names)} × {kind}" for kind, names in kinds.items() if names)
    tables.write_line(f"{found.equal} files are identical" + (f"; {problems}" if problems else ", no problems found"))
