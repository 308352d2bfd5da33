"""Which label map belongs to which image: by the stem of its name, or by that and a mark such as `_mask`."""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# NAME_mask.png, NAME_gt.png, NAME_labelIds.png, and NAME_L.png as CamVid has it.
_MARKED = re.compile(r"(?P<stem>.+?)[_-](?:masks?|gt|seg|segmentation|L|label[^/]*)")
MOST_LOOKED_AT = 2000


class Pairs(NamedTuple):
    """The label maps of images.

    Attributes:
        labels: stem of an image → its label map.
        unused: label maps of no image.
        several: label maps of one image, where there are several.
    """

    labels: dict[str, str]
    unused: list[str]
    several: list[list[str]]


def stem_of(name: str) -> str:
    """The path of a file without its suffix."""
    return os.path.splitext(name)[0]  # noqa: PTH122 (a million)


def is_map(name: str) -> bool:
    """Whether a file ends as label maps do."""
    return name.lower().endswith(SUFFIXES)


def marked_stem(name: str) -> str | None:
    """The stem of the image that a marked label map is of; None for other files."""
    found = _MARKED.fullmatch(stem_of(name)) if is_map(name) else None
    return found["stem"] if found else None


def pair(stems: Iterable[str], files: Sequence[str]) -> Pairs:
    """Find the label map of each image.

    A PNG file of the image's own stem comes before files with a mark or in another format.

    Args:
        stems: of the images.
        files: those that may be label maps.
    """
    wanted = set(stems)
    found: dict[str, list[str]] = {}
    for name in sorted(filter(is_map, files)):
        stem = stem_of(name) if stem_of(name) in wanted else marked_stem(name)
        found.setdefault(stem if stem in wanted else name, []).append(name)
    pairs = Pairs({}, [], [])
    for stem, names in found.items():
        if stem not in wanted:
            pairs.unused.append(stem)
            continue
        # Of two files that differ in the case of their ending, the one in lower case is taken.
        plain = [name for name in names if stem_of(name) == stem and name.lower().endswith(SUFFIXES[0])]
        kept = plain[-1] if plain else names[0]
        pairs.labels[stem] = kept
        pairs.unused.extend(name for name in names if plain and name != kept and name.lower() != kept.lower())
        if len(names) > 1 and not plain:
            pairs.several.append(names)
    return pairs._replace(unused=sorted(pairs.unused))


def split_beside(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images, and their label maps that lie beside them and have a mark."""
    stems = {stem_of(name) for name in files}
    labels = {name for name in files if marked_stem(name) in stems}
    return [name for name in files if name not in labels], sorted(labels)


def holds_beside(folder: Path) -> bool:
    """Whether label maps lie beside the images of a folder; its first files are looked at."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, MOST_LOOKED_AT)]
    stems = {stem_of(name) for name in names}
    return any(marked_stem(name) in stems for name in names)
