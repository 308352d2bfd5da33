"""Databases as GPViT's authors published their tool for: read, never written.

Keys are bare file names, so that of two images of one name only the last was kept; values are JPEGs encoded again;
`total` holds their number. The labels lie in a text file of lines `name label`, where the name may have its class
folder in front. It is looked for beside the database, in this order, for the database DATA/train:

    DATA/meta/train.txt    DATA/../meta/train.txt    DATA/train.txt
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np

from globalvit.data.classification.formats import match_classes
from globalvit.data.common.folders import listed
from globalvit.data.storage.lmdb import keys, located
from globalvit.data.storage.lmdb_index import OLD_TOTAL, Keys, pack_keys

# How a line's name may stand for a key: as it is, without its folder, without folder and ending.
FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: PurePosixPath(name).name,
    lambda name: PurePosixPath(name).stem,
)


def open_labels(root: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], Keys, np.ndarray]:
    """Classes, keys and labels of a database of the old form.

    Args:
        root: the database's folder.
        classes: the classes expected; None takes the class folders of the text file, or the labels' numbers.

    Raises:
        FileNotFoundError: the text file of labels is missing.
        ValueError: it is not as described above, or its names are not the database's.
    """
    file = find_labels(root)
    names, labels = read_labels(file)
    packed = _match_names(names, file, root)
    own = _class_names(names, labels, file)
    if own is None:
        expected = tuple(classes or map(str, range(int(labels.max()) + 1)))
        if len(expected) != labels.max() + 1:
            raise ValueError(f"{file} has labels 0 … {labels.max()}, but {len(expected)} classes are expected")
        return expected, packed, labels
    label_of = match_classes(own, classes or own, str(root))
    return tuple(classes or own), packed, np.array([label_of[name] for name in own], dtype=np.int32)[labels]


def find_labels(root: Path) -> Path:
    """The text file that belongs to a database.

    Raises:
        FileNotFoundError: there is none; the text says where it was looked for.
    """
    root = root.absolute()
    file = f"{root.name}.txt"
    places = [root.parent / "meta" / file, root.parent.parent / "meta" / file, root.parent / file]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{root} has the old published form, whose labels lie in a text file of lines `name label`, and there is none: "
        f"looked for {', '.join(map(str, places))}"
    )


def read_labels(file: Path) -> tuple[list[str], np.ndarray]:
    """Names and labels of all lines.

    Raises:
        ValueError: a line is not a name and a number from 0 on, the file is empty, or a label has none.
    """
    names: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), 1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) < 2 or not words[1].isdecimal():
            raise ValueError(
                f"{file}, line {number}: expected `name label`, the label a number from 0 on; got {line!r}"
            )
        names.append(words[0].strip())
        labels.append(int(words[1]))
    if not names:
        raise ValueError(f"{file} is empty; expected lines of `name label`")
    used = set(labels)
    first_free = next(label for label in count() if label not in used)
    if first_free <= max(used):
        raise ValueError(
            f"{file} has labels up to {max(used)}, but no image of label {first_free}; every class needs images"
        )
    return names, np.array(labels, dtype=np.int32)


def _match_names(names: Sequence[str], file: Path, root: Path) -> Keys:
    """The keys that the lines' names stand for; every line has one and every image one line."""
    present = set(keys(located(root))) - {OLD_TOTAL}
    candidates = [[os.fsencode(form(name)) for name in names] for form in FORMS]
    wanted = max(candidates, key=lambda found: sum(key in present for key in found))
    missing = [name for name, key in zip(names, wanted, strict=True) if key not in present]
    if missing:
        raise ValueError(f"{file} names {len(missing)} images that {root} does not hold: {listed(missing)}")
    twice = [os.fsdecode(key) for key, times in Counter(wanted).items() if times > 1]
    if twice:
        raise ValueError(
            f"{file} names several images {listed(twice)}, of which the old form of {root} kept one; build a new "
            "database from the images by `globalvit data lmdb build`"
        )
    unlabeled = [os.fsdecode(key) for key in sorted(present.difference(wanted))]
    if unlabeled:
        raise ValueError(f"{root} holds {len(unlabeled)} images that {file} does not name: {listed(unlabeled)}")
    return Keys(pack_keys(wanted))


def _class_names(names: Sequence[str], labels: np.ndarray, file: Path) -> list[str] | None:
    """The class folder of each label, or None where the names have no folders."""
    folders: dict[int, set[str]] = defaultdict(set)
    for name, label in zip(names, labels.tolist(), strict=True):
        folders[label].add(PurePosixPath(name).parts[0] if "/" in name else "")
    if set.union(*folders.values()) == {""}:
        return None
    found = [sorted(folders[label]) for label in sorted(folders)]
    if any(len(one) != 1 for one in found) or len({one[0] for one in found}) < len(found):
        raise ValueError(f"{file}: the class folders in its names and its labels do not belong together one to one")
    return [one[0] for one in found]
