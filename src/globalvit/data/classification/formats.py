"""Class folders: which folders of a split are classes, in which order, and how they match the classes expected."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from globalvit.data.classification.imagenet import imagenet_names, imagenet_synsets, readable
from globalvit.data.common.folders import listed, split_folders
from globalvit.data.common.walk import Found, is_image, search

logger = logging.getLogger(__name__)


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in the folder of one split, sorted by code point.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: there are none in it.
    """
    folders = split_folders(root)
    if not folders:
        loose = _loose(root)
        held = f"{loose} images outside class folders" if loose else "no images"
        raise ValueError(f"{root} holds no class folders, but {held}; expected {root}/CLASS/IMAGE.jpg")
    return folders


def scan_classes(root: Path, *, nested: bool = False) -> dict[str, Found]:
    """The images of every class, in the order of the labels.

    Args:
        root: the folder of one split.
        nested: every folder that directly holds images is a class, named by its path below `root`; else the folders
            in `root` are the classes.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        ValueError: no class folders, or an order that cannot be known.
    """
    folders = class_folders(root)
    if not nested:
        _warn_of_loose(root, _loose(root))
        return {name: search(root, name) for name in order_folders(folders, root)}
    whole = search(root)
    by_folder: dict[str, Found] = {name: Found(children={name: count}) for name, count in whole.children.items()}
    for name in whole.images:
        by_folder[name.rpartition("/")[0]].images.append(name)
    loose = by_folder.pop("", None)
    _warn_of_loose(root, len(loose.images) if loose else 0)
    whole.warn()
    return {name: by_folder[name] for name in order_folders(sorted(by_folder), root)}


def _loose(root: Path) -> int:
    """How many images lie directly in a folder."""
    with os.scandir(root) as entries:
        return sum(is_image(entry.name) for entry in entries)


def _warn_of_loose(root: Path, number: int) -> None:
    if number:
        logger.warning("%s: %d images outside class folders are left out", root, number)


def order_folders(folders: Sequence[str], where: object) -> list[str]:
    """Order class folders by their labels: numbers by value, all others by code point.

    Raises:
        ValueError: two folders have the same number.
    """
    if not all(name.isascii() and name.isdecimal() for name in folders):
        return sorted(folders)
    ordered = sorted(folders, key=int)
    for one, other in pairwise(ordered):
        if int(one) == int(other):
            raise ValueError(
                f"{where} has class folders {one!r} and {other!r} of the same number, so their order is not known; "
                "rename or merge them"
            )
    if ordered != sorted(folders):
        label = next(label for label, name in enumerate(sorted(folders)) if name != ordered[label])
        logger.info(
            "%s: the class folders are numbers and are ordered by value: label %d is folder %r",
            *(where, label, ordered[label]),
        )
    return ordered


def question_folders(found: Mapping[str, Found], where: object) -> str | None:
    """Ask which folders are the classes, where class folders hold nothing but folders with images; None if clear."""
    bare = [name for name, inside in found.items() if inside.images and name not in inside.children]
    deeper = [folder for name in bare for folder in found[name].children]
    if 2 * len(bare) < len(found) or len(deeper) <= len(bare):
        return None
    return (
        f"{where}: {len(bare)} of {len(found)} class folders ({listed(bare, 3)}) hold images only in folders below "
        f"them, {len(deeper)} in all ({listed(deeper, 3)}); the upper folders are taken as the classes, so use "
        "--nested-classes if every lower folder is a class"
    )


def similar_folders(folders: Iterable[str]) -> list[list[str]]:
    """Groups of class folders that differ only in case or in Unicode normalization."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in folders:
        groups[_plain(name)].append(name)
    return [sorted(names) for names in groups.values() if len(names) > 1]


def alike(names: Sequence[str]) -> str:
    """What to say of class folders that differ only in case."""
    return f"class folders {listed(names)} differ only in case; merge them if they are one class"


def match_classes(
    found: Sequence[str], expected: Sequence[str], where: str, *, is_quiet: bool = False
) -> dict[str, int]:
    """The label of each class in `found`: its position in `expected`.

    Unless `is_quiet`, classes that are missing in `found` are logged: their scores cannot be measured.

    Raises:
        ValueError: `found` has a class that is not expected; the text names them.
    """
    plain = {name: label for label, name in enumerate(expected)}
    composed = {_composed(name): label for name, label in plain.items()}
    attempts = [
        (found, plain),
        (readable(found), plain),
        ([_composed(name) for name in found], composed),
        (found, _imagenet_numbers(found, expected, where)),
    ]
    for names, label_of in attempts:
        if found and set(names) <= label_of.keys() and len(set(names)) == len(found):
            labels = [label_of[name] for name in names]
            missing = missing_classes(expected, labels, where)
            if missing and not is_quiet:
                logger.warning("%s", missing)
            return dict(zip(found, labels, strict=True))
    missing = [name for name in expected if name not in set(found)]
    foreign = [name for name in found if name not in set(expected)]
    parts = [f"unexpected {listed(foreign)}"] * bool(foreign) + [f"missing {listed(missing)}"] * bool(missing)
    twins = [names for names in similar_folders({*foreign, *missing}) if len(names) == 2]
    hint = f" ({' and '.join(map(repr, twins[0]))} differ only in case)" if twins else ""
    raise ValueError(
        f"the classes of {where} are not the {len(expected)} expected: {'; '.join(parts)}{hint}; "
        "give every split the same class folders, those the model was trained on"
    )


def missing_classes(expected: Sequence[str], labels: Iterable[int], where: str) -> str | None:
    """What to say of the classes expected that none of `labels` is; None if all are there."""
    present = set(labels)
    missing = [name for label, name in enumerate(expected) if label not in present]
    if not missing:
        return None
    return (
        f"{where} has no images of {len(missing)} of the {len(expected)} classes, so their recall cannot be measured: "
        f"{listed(missing)}"
    )


def _plain(name: str) -> str:
    return _composed(name).casefold()


def _composed(name: str) -> str:
    # macOS writes é as e and an accent into archives, other systems as one letter.
    return unicodedata.normalize("NFC", name)


def _imagenet_numbers(found: Sequence[str], expected: Sequence[str], where: str) -> dict[str, int]:
    """Labels of folders `0` … `999`, where ImageNet's classes are expected."""
    numbers = [str(label) for label in range(len(expected))]
    if tuple(expected) not in (imagenet_names(), imagenet_synsets()) or set(found) != set(numbers):
        return {}
    logger.info("%s: folders 0 … %d are taken as ImageNet's labels by their numbers", where, len(expected) - 1)
    return {name: label for label, name in enumerate(numbers)}
