"""The formats in which data sets are kept: one is found by what a folder holds, or chosen by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from globalvit.closest import suggest


class Format(Protocol):
    """A form that a folder of labeled images may have.

    Attributes:
        name: what `--format` calls it.
    """

    name: str

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds labels in this format; only names and first bytes of files are looked at."""
        ...

    def describe(self, folder: Path) -> str:
        """What a folder that matches holds, for messages."""
        ...


Kept = TypeVar("Kept", bound=Format)


def choose_format(formats: Sequence[Kept], folder: Path, name: str | None = None) -> Kept | None:
    """Return the format of a folder, or None if it has none of them.

    Args:
        formats: those to choose from.
        folder: of the data set.
        name: the format that the user named.

    Raises:
        ValueError: several formats fit and none was named, or the one named is unknown or does not fit.
    """
    fitting = [one for one in formats if one.matches(folder)]
    found = " and ".join(f"{one.name} ({one.describe(folder)})" for one in fitting)
    if name is None:
        if len(fitting) > 1:
            raise ValueError(f"{folder} fits {len(fitting)} formats: {found}; choose one with --format NAME")
        return fitting[0] if fitting else None
    names = [one.name for one in formats]
    if name not in names:
        raise ValueError(f"unknown format {name!r};{suggest(name, names)} expected one of {', '.join(names)}")
    for one in fitting:
        if one.name == name:
            return one
    raise ValueError(f"{folder} does not hold data in the format {name}; it fits {found or 'none'}")
