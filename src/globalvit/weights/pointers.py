"""Resolve paths, including the files `best` and `last` of a run, which name one of its checkpoints."""

import re
from os import PathLike, fspath
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from globalvit import atomic
from globalvit.weights.hub import PREFIX, fetch_folder

POINTERS = ("best", "last")
_MOST_BYTES = 256


def follow(path: str | PathLike[str]) -> Path:
    """Return the path with `best` and `last` replaced by the checkpoint that they name: `RUN/checkpoints/step-10/…`.

    `~` is the home folder, `file://` addresses are paths, and `hf-hub:owner/name` is a downloaded folder.

    Raises:
        ValueError: it is not a path, or another address on the network.
        OSError: a repository cannot be downloaded.
    """
    given = _local(path)
    for place in (given, *given.parents):
        if place.name in POINTERS and place.is_file():
            return place.parent / _name_in(place) / given.relative_to(place)
    return given


def point(pointer: Path, checkpoint: Path) -> None:
    """Write the file `pointer`, which names a checkpoint in the same folder."""
    atomic.write_text(pointer, checkpoint.name + "\n")


def _local(path: str | PathLike[str]) -> Path:
    given = fspath(path) if isinstance(path, str | PathLike) else path
    if not isinstance(given, str):
        raise ValueError(
            f"expected weights as a catalog name, a path or a state dict, got {type(path).__name__}; of a model give "
            f"its state_dict(), of a file its path"
        )
    # A `Path` of an address has one slash left.
    scheme = re.match(r"(file|https?|ftp|s3|gs|hf|hf-hub):/{0,2}", given)
    if scheme and scheme[1] == "file":
        return Path(url2pathname(unquote(urlsplit(re.sub("^file:/+", "file:///", given)).path)))
    if given.startswith(PREFIX):
        return fetch_folder(given.removeprefix(PREFIX))
    if scheme:
        raise ValueError(f"{given} is an address; download the file, then give its path")
    try:
        return Path(given).expanduser()
    except RuntimeError:
        # Without a home folder, `~` is a name like any other.
        return Path(given)


def _name_in(pointer: Path) -> str:
    with pointer.open("rb") as file:
        name = file.read(_MOST_BYTES).decode(errors="replace").strip()
    # Never a path out of the folder.
    return Path(name).name or pointer.name
