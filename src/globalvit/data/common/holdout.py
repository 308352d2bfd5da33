"""Hold out part of the training images for validation: the same ones on every machine and whenever a run is resumed."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from inspect import ismethod, signature
from typing import Any

import numpy as np

DEFAULT_FRACTION = 0.1


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

    The choice depends on the images' names below the source's folder and on the seed, not on their order. Images of
    classifiers are chosen class by class, those of detectors by their rarest class: at least one of each class that
    has two.

    Args:
        source: has `root`, `name`, and `label` or `labels` where images have classes.
        fraction: of the images, between 0 and 1.
        seed: another seed gives another choice.

    Raises:
        ValueError: no class has two images.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(_groups(source)):
        groups[group].append(index)
    chosen: list[int] = []
    for members in groups.values():
        number = min(max(int(len(members) * fraction + 0.5), 1), len(members) - 1)
        chosen += sorted(members, key=lambda index: _rank(source, index, seed))[:number]
    if not chosen:
        raise ValueError(
            f"{len(source)} training images are too few to hold some out for validation; add a folder val, or images"
        )
    return sorted(chosen)


def _groups(source: Any) -> Iterator[int]:
    """The class that each sample is chosen in; −1 where samples have none."""
    if hasattr(source, "label"):
        return (source.label(index) for index in range(len(source)))
    if not hasattr(source, "labels"):
        return iter([-1] * len(source))
    counts = Counter(label for index in range(len(source)) for label in set(source.labels(index)))
    return (
        min(source.labels(index), key=lambda label: (counts[label], label), default=-1) for index in range(len(source))
    )


def _rank(source: Any, index: int, seed: int) -> bytes:
    """A number that decides who is held out first: a hash of the name below the source's folder."""
    name = os.path.relpath(source.name(index), source.root).replace(os.sep, "/")
    return blake2b(b"%d/" % seed + os.fsencode(unicodedata.normalize("NFC", name)), digest_size=8).digest()
