"""Hold out part of the training images for validation: the same ones on every machine and whenever a run is resumed."""

import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from inspect import ismethod, signature
from typing import Any

import numpy as np

from globalvit.data.common.folders import listed

logger = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.1
# Samples whose labels one thread reads at a time.
PART = 64


class Subset:
    """Some samples of a source, in its order: methods with an index, and `sizes`; everything else is the source's.

    Args:
        source: the samples.
        indices: their positions, ascending.
    """

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.source, self.indices = source, np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getattr__(self, name: str) -> Any:
        # Pickle asks for special methods before `source` is set.
        if name.startswith("__") or name in ("source", "indices"):
            raise AttributeError(name)
        value = getattr(self.source, name)
        if not ismethod(value) or "index" not in signature(value).parameters:
            return value
        return lambda index: value(self._at(index))

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image, int (len, 2)."""
        return self.source.sizes[self.indices]

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self.indices[index])


def hold_out(source: Any, fraction: float, seed: int) -> list[int]:
    """Choose the samples of a source to validate with.

    The choice depends on the images' names below the source's folder and on the seed, not on their order. Images are
    chosen class by class, those of several classes by their rarest one, and then for the classes that are still
    missing, rarest first. Every class that has an image keeps one to train on.

    Args:
        source: has `root`, `name`, `classes`, and `label` or `labels` where images have classes.
        fraction: of the images, between 0 and 1.
        seed: another seed gives another choice.

    Raises:
        ValueError: no class has two images.
    """
    labels = _labels(source)
    counts = Counter(label for found in labels for label in found)
    left = Counter(counts)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(labels):
        groups[min(found, key=lambda label: (counts[label], label), default=-1)].append(index)
    chosen: set[int] = set()

    def take(indices: Iterable[int], number: int) -> None:
        for index in indices:
            if number and index not in chosen and all(left[label] > 1 for label in labels[index]):
                chosen.add(index)
                left.subtract(labels[index])
                number -= 1

    for _, members in sorted(groups.items(), key=lambda item: (counts[item[0]], item[0])):
        number = min(max(int(len(members) * fraction + 0.5), 1), len(members) - 1)
        take(sorted(members, key=lambda index: _rank(source, index, seed)), number)
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        if left[label] == counts[label]:
            # Few images for many classes: the held-out part stays small.
            having = [index for index, found in enumerate(labels) if label in found]
            missing = {other for other in counts if left[other] == counts[other]}
            take(sorted(having, key=lambda at: (-len(missing & labels[at]), _rank(source, at, seed))), 1)
    if not chosen:
        raise ValueError(
            f"{len(source)} training images are too few to hold some out for validation; add a folder val, or images"
        )
    without = [source.classes[label] for label in sorted(counts) if left[label] == counts[label]]
    if without:
        logger.warning(
            "%d of %d classes have too few images to hold one out, so validation has none of them: %s",
            *(len(without), len(counts), listed(without)),
        )
    return sorted(chosen)


def _labels(source: Any) -> list[set[int]]:
    """The labels of every sample; those of label maps are read from the files, by several threads."""
    if hasattr(source, "label"):
        return [{source.label(index)} for index in range(len(source))]
    if not hasattr(source, "labels"):
        return [set() for _ in range(len(source))]
    with ThreadPoolExecutor() as pool:
        parts = [range(start, min(start + PART, len(source))) for start in range(0, len(source), PART)]
        found = pool.map(lambda part: [set(source.labels(index)) for index in part], parts)
        return [labels for part in found for labels in part]


def _rank(source: Any, index: int, seed: int) -> bytes:
    """A number that decides who is held out first: a hash of the name below the source's folder."""
    name = os.path.relpath(source.name(index), source.root).replace(os.sep, "/")
    return blake2b(b"%d/" % seed + os.fsencode(unicodedata.normalize("NFC", name)), digest_size=8).digest()
