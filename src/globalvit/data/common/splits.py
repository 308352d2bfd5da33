"""Names of splits: which folder or file holds the images to train on, to validate with, and to test with."""

import logging
from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)

# What a split may be called; `test` never stands for `val`, since it must not choose a checkpoint.
ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class NoSplitError(FileNotFoundError):
    """A data set has no such split; the text names those it has."""


def names_of(split: str) -> tuple[str, ...]:
    """Return the names, in lower case, under which a split is looked for."""
    return ROLES.get(split, (split.casefold(),))


def choose_split(split: str, names: Iterable[str], where: object, *, exact: bool = False) -> str | None:
    """Return the name among `names` that holds a split, or None.

    Args:
        split: `train`, `val` or `test`, which have several names in upper or lower case, or any other name.
        names: those there are.
        where: the data set, for messages.
        exact: take `split` itself if it is there, as when the user named it.

    Raises:
        ValueError: several names fit; the text lists them.
    """
    names = list(dict.fromkeys(names))
    fitting = sorted(name for name in names if name.casefold() in names_of(split))
    if split in fitting and (exact or split != "val" or len(fitting) == 1):
        unused = [name for name in fitting if name != split]
        if unused and not exact:
            logger.warning("%s: split %r is used, %s is not", where, split, _listed(unused))
        return split
    if len(fitting) > 1:
        raise ValueError(
            f"{where} has {len(fitting)} splits that may be meant by {split!r}: {_listed(fitting)}; expected one, so "
            f"remove or rename the others, or choose one with {flag_of(split)}"
        )
    if not fitting:
        return None
    if fitting[0] != split:
        logger.info("%s: split %r is read from %r", where, split, fitting[0])
    return fitting[0]


def flag_of(split: str) -> str:
    """Return the option that names another folder for a split."""
    return "--train-split" if split == "train" else "--val-split"


def role_of(name: str) -> str | None:
    """Return the split, `train`, `val` or `test`, that a folder of this name holds, or None."""
    return next((role for role, names in ROLES.items() if name.casefold() in names), None)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
