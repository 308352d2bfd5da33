"""The small text files `best` and `last` of a run, which name one of its checkpoints: links that every system has."""

from os import PathLike
from pathlib import Path

from globalvit import atomic

POINTERS = ("best", "last")
_MOST_BYTES = 256


def follow(path: str | PathLike[str]) -> Path:
    """Return the path with `best` and `last` replaced by the checkpoint that they name: `RUN/checkpoints/step-10/…`."""
    given = Path(path)
    for place in (given, *given.parents):
        if place.name in POINTERS and place.is_file():
            return place.parent / _name_in(place) / given.relative_to(place)
    return given


def point(pointer: Path, checkpoint: Path) -> None:
    """Make the file `pointer` name a checkpoint beside it."""
    atomic.write_text(pointer, checkpoint.name + "\n")


def _name_in(pointer: Path) -> str:
    with pointer.open("rb") as file:
        name = file.read(_MOST_BYTES).decode(errors="replace").strip()
    # Never a path out of the folder.
    return Path(name).name or pointer.name
