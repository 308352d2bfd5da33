"""A look at some label maps of a split before it is used: what 255 stands for, and what would not be learned."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from globalvit.data.common.folders import listed
from globalvit.data.common.images import OversizedImage, UnreadableImage
from globalvit.data.segmentation.label_images import IGNORE, LabelReader, shown

logger = logging.getLogger(__name__)

# Label maps looked at, from the first to the last.
MOST_MASKS = 40
BINARY = {0, IGNORE}


def look_over(reader: LabelReader, total: int, load: Callable[[int], bytes]) -> list[set[int]]:
    """The different values in each of some label maps; those that cannot be read are left to whoever reads them all.

    Args:
        reader: reads the values.
        total: label maps there are.
        load: gives the bytes of a label map by its position.
    """
    values: list[set[int]] = []
    for index in np.unique(np.linspace(0, total - 1, MOST_MASKS, dtype=int)).tolist() if total else []:
        try:
            found = reader.values(load(index), str(index))
        except (UnreadableImage, OversizedImage, OSError):
            continue
        if found is not None:
            values.append(set(found))
    return values


def settle_reader(
    reader: LabelReader,
    values: Sequence[set[int]],
    where: object,
    classes: Sequence[str],
    *,
    is_binary: bool | None = None,
) -> LabelReader:
    """The reader that fits the label maps of a split.

    Args:
        reader: as the settings say.
        values: what `look_over` found.
        where: the split, for messages.
        classes: names of the classes.
        is_binary: whether 0 and 255 are the two classes, as decided for the training split; None decides here.

    Raises:
        ValueError: the label maps hold nothing but 0 and 255, and 255 cannot be a class of them; or it is a class in
            training or in other files and not here, or the reverse.
    """
    found: set[int] = set().union(*values) - {reader.ignore}
    if reader.ignore == IGNORE or IGNORE not in found or not found <= BINARY:
        if is_binary and found - BINARY:
            raise ValueError(_unlike(where, found))
        _check_mixed(reader, values, where)
        return replace(reader, is_binary=bool(is_binary))
    if is_binary is False and reader.total == 2:
        raise ValueError(_unlike(where, found))
    _check_binary(reader, where, len(values), found)
    if is_binary is None:
        logger.info(
            "%s: the label maps hold only 0 and %d, read as the classes %r and %r; --ignore-label %d reads %d as "
            "pixels to ignore",
            *(where, IGNORE, classes[0], classes[1], IGNORE, IGNORE),
        )
    return replace(reader, is_binary=True)


def _check_binary(reader: LabelReader, where: object, number: int, found: set[int]) -> None:
    held = f"{where}: all {number} label maps looked at hold only {shown(sorted(found))}"
    ignored = f"use --ignore-label {IGNORE} if {IGNORE} marks pixels to ignore"
    if found == {IGNORE}:
        raise ValueError(f"{held}, so nothing can be learned from them; expected 0 … {reader.total - 1}")
    if reader.reduce_zero_label:
        raise ValueError(f"{held}, and --reduce-zero-label ignores 0; leave it out, or {ignored}")
    if reader.total != 2:
        raise ValueError(
            f"{held}, but there are {reader.total} classes; expected 0 … {reader.total - 1}: name two classes (such as "
            f"background and object) if {IGNORE} marks the object, or {ignored}"
        )


def _unlike(where: object, found: set[int]) -> str:
    return (
        f"{where}: the label maps hold {shown(sorted(found))}, but those of the training split "
        f"{'do not hold only' if found <= BINARY else 'hold only'} 0 and {IGNORE}; make the splits alike, or use "
        f"--ignore-label {IGNORE} if {IGNORE} marks pixels to ignore"
    )


def warn_unlearned(
    reader: LabelReader, values: Sequence[set[int]], total: int, where: object, classes: Sequence[str]
) -> None:
    """Log label maps without a label, a single class, and classes that never occur where all maps were looked at."""
    ignored = reader.ignored_values
    blank = sum(found <= ignored for found in values)
    if blank:
        logger.warning("%s: every pixel is ignored in %d of %d label maps looked at", where, blank, len(values))
    if reader.total == 1:
        logger.warning(
            "%s has a single class, %r: a model learns to tell classes apart from two or more", where, *classes
        )
    if len(values) == total and not reader.colors:
        seen = {int(reader.label_of(value)) for found in values for value in found - ignored if value <= IGNORE}
        unseen = [name for label, name in enumerate(classes) if label not in seen]
        if unseen and len(unseen) < len(classes):
            logger.warning("%s has no pixel of %s; nothing is learned of them", where, listed(unseen))


def _check_mixed(reader: LabelReader, values: Sequence[set[int]], where: object) -> None:
    """Refuse two classes marked by 0 and 255 in some files and by 0 and 1 in others."""
    mixed = sum(found == BINARY for found in values)
    if mixed and reader.total == 2 and reader.ignore != IGNORE and not any({1, IGNORE} <= found for found in values):
        raise ValueError(
            f"{where}: {mixed} of {len(values)} label maps looked at hold only 0 and {IGNORE}, others hold 1; if "
            f"{IGNORE} marks the object, make them alike, or use --ignore-label {IGNORE} if it marks pixels to ignore"
        )
