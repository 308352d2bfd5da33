"""Labeled images out of tar shards, in place of a folder of them.

The label of an image is what the member `KEY.cls` or `KEY.json` says. In shards without such members it is the first
folder of the image's path or, where images lie in no folder, the name of their shard, as ImageNet-21K has it.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from globalvit.data.classification.formats import match_classes, missing_classes, order_folders
from globalvit.data.common.folders import listed
from globalvit.data.common.images import SUFFIXES
from globalvit.data.common.names import Names
from globalvit.data.storage.lmdb_decode import decode
from globalvit.data.storage.tar_files import check_shards
from globalvit.data.storage.tar_index import FILE_NAME, Shard, Span, WrongShard, index_shards, read_span, split_key

logger = logging.getLogger(__name__)

# Looked for in this order; the position of a name is its label.
CLASS_FILES = ("classes.json", "classes.txt")
# Shards that are numbered are not named after classes.
_NUMBERED = re.compile(r"(.*[-_.])?\d+")
Member = tuple[int, int]


class TarMembers:
    """Members of shards by position; picklable, and read with plain file reads in any process.

    Args:
        shards: the shards.
        chosen: number of the shard and of the member in it, of member 0, 1, …
    """

    def __init__(self, shards: Sequence[Shard], chosen: Sequence[Member]) -> None:
        self._shards = [(shard.path, shard.size, shard.modified) for shard in shards]
        self._names = Names(shards[one].names[at] for one, at in chosen)
        numbers = [(one, shards[one].offsets[at], shards[one].sizes[at]) for one, at in chosen]
        self._spans = np.array(numbers, dtype=np.int64).reshape(-1, 3)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each member."""
        return self._spans[:, 2].tolist()

    def span(self, index: int) -> Span:
        """Where the bytes of a member lie."""
        number, offset, size = self._spans[index].tolist()
        path, shard_size, modified = self._shards[number]
        return Span(path, shard_size, modified, offset, size)

    def place(self, index: int) -> str:
        """Shard and name of a member, for messages."""
        return f"{self._shards[int(self._spans[index, 0])][0]}, member {self._names[index]!r}"

    def data(self, index: int) -> bytes:
        """The bytes of a member; raises what `read_span` raises."""
        return read_span(self.span(index), self.place(index))


class ShardImages:
    """Images of tar shards as a `Source`.

    Args:
        root: what names of images begin with.
        classes: names of the labels.
        members: the images.
        names: of the images below `root`.
        labels: of the images.
    """

    def __init__(
        self, root: Path, classes: Sequence[str], members: TarMembers, names: Sequence[str], labels: Sequence[int]
    ) -> None:
        self.root, self.classes, self.members = root, tuple(classes), members
        self._names, self._labels = Names(names), np.array(labels, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._names)

    def label(self, index: int) -> int:
        """The label of image `index`."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The path that image `index` had before it was packed, below the folder of the shards."""
        return f"{self.root}{os.sep}{self._names[index]}"

    def packed_sizes(self) -> list[str]:
        """Bytes of each image, for fingerprints."""
        return [str(size) for size in self.members.sizes]

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB; raises what `read_span` and `read_image` raise."""
        return decode(self.members.data(index), self.members.place(index))


def open_shards(paths: list[Path], root: Path, classes: Sequence[str] | None = None) -> ShardImages:
    """Open the shards of one split.

    Args:
        paths: the shards, in order.
        root: the folder of the split; class names are looked for in it, and in the folder above it.
        classes: the classes expected, in the order of their labels; None takes the shards'.

    Raises:
        WrongShard: what `index_shards` refuses, images without labels or labels without images.
        ValueError: other classes than those expected.
        OSError: a shard cannot be read.
    """
    check_shards(paths)
    shards = index_shards(paths)
    chosen = [(number, at) for number, shard in enumerate(shards) for at in _images(shard)]
    if not chosen:
        raise WrongShard(f"no images in the {len(paths)} shards of {root}; expected members KEY.jpg and KEY.cls")
    labels = _labels(shards, chosen)
    own, numbers = _numbered(labels, _class_names(root), root, shards, chosen)
    label_of = match_classes(own, classes or own, str(root), is_quiet=True)
    ordered = np.array([label_of[own[number]] for number in numbers])
    missing = missing_classes(classes or own, ordered.tolist(), str(root))
    if missing:
        logger.warning("%s", missing)
    order = np.argsort(ordered, kind="stable")
    chosen = [chosen[at] for at in order.tolist()]
    names = [packed_from(shards[one], at, FILE_NAME) for one, at in chosen]
    return ShardImages(root, classes or own, TarMembers(shards, chosen), names, ordered[order].tolist())


def packed_from(shard: Shard, at: int, kind: str) -> str:
    """The file below the folder of its split that a member was packed from; else its shard and its own name."""
    name = shard.notes.get(split_key(shard.names[at])[0], {}).get(kind)
    return name if isinstance(name, str) else f"{Path(shard.path).name}/{shard.names[at]}"


def images_of(shard: Shard) -> dict[str, list[int]]:
    """Key → numbers of its members that end as images do."""
    found: dict[str, list[int]] = {}
    for at, name in enumerate(shard.names):
        key, suffix = split_key(name)
        if f".{suffix.rpartition('.')[2]}" in SUFFIXES:
            found.setdefault(key, []).append(at)
    return found


def _images(shard: Shard) -> list[int]:
    """Return the numbers of the members that are images, with the label of the same sample if it has one."""
    found = images_of(shard)
    for key, note in shard.notes.items():
        members = found.get(key, [])
        if "label" in note and len(members) != 1:
            names = f"{len(members)} images, {listed([shard.names[at] for at in members])}" if members else "no image"
            raise WrongShard(f"{shard.path}: sample {key!r} has a label and {names}; expected one image per label")
    return [at for members in found.values() for at in members]


def _labels(shards: Sequence[Shard], chosen: Sequence[Member]) -> list[str | int]:
    """The label of each image as the shards state it."""
    stated = [shards[one].notes.get(split_key(shards[one].names[at])[0], {}).get("label") for one, at in chosen]
    labels = [label for label in stated if label is not None]
    if labels:
        if len(labels) < len(stated):
            one, at = chosen[stated.index(None)]
            raise WrongShard(
                f"{len(stated) - len(labels)} of {len(stated)} images have no label, the first is "
                f'{shards[one].place(at)}; expected KEY.cls or KEY.json with "label" for each KEY.jpg'
            )
        return labels
    folders = [shards[one].names[at].split("/") for one, at in chosen]
    if all(len(parts) > 1 for parts in folders):
        return [parts[0] for parts in folders]
    stems = [Path(shards[one].path).stem for one, _ in chosen]
    if any(map(_NUMBERED.fullmatch, stems)) or len(set(stems)) < 2:
        one, at = chosen[next(at for at, parts in enumerate(folders) if len(parts) == 1)]
        raise WrongShard(
            f'{shards[one].place(at)} has no label; expected KEY.cls or KEY.json with "label" for each KEY.jpg, '
            "CLASS/KEY.jpg, or one shard per class, CLASS.tar"
        )
    return list(stems)


def _numbered(
    labels: Sequence[str | int],
    names: tuple[str, ...] | None,
    root: Path,
    shards: Sequence[Shard],
    chosen: Sequence[Member],
) -> tuple[tuple[str, ...], list[int]]:
    """The classes of the shards, and the number of each image's class among them."""
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        one, at = chosen[next(at for at, label in enumerate(labels) if isinstance(label, str))]
        raise WrongShard(f"{shards[one].place(at)} has a class name as its label, and others have numbers; use one")
    numbers = [label for label in labels if isinstance(label, int)]
    if not numbers:
        own = names or tuple(order_folders(sorted(set(map(str, labels))), root))
        label_of = {name: number for number, name in enumerate(own)}
        _check_known([label in label_of for label in labels], labels, own, shards, chosen)
        return own, [label_of[str(label)] for label in labels]
    own = names or tuple(map(str, sorted(set(numbers))))
    if names:
        _check_known([0 <= label < len(own) for label in numbers], labels, own, shards, chosen)
        return own, numbers
    label_of = {name: number for number, name in enumerate(own)}
    return own, [label_of[str(label)] for label in numbers]


def _check_known(
    are_known: Sequence[bool],
    labels: Sequence[str | int],
    classes: Sequence[str],
    shards: Sequence[Shard],
    chosen: Sequence[Member],
) -> None:
    if not all(are_known):
        at = are_known.index(False)
        one, member = chosen[at]
        raise WrongShard(
            f"{shards[one].place(member)} has the label {labels[at]!r}, and the class file has {len(classes)} classes, "
            f"{listed(classes, 3)}; correct the class file"
        )


def _class_names(root: Path) -> tuple[str, ...] | None:
    """The names in the class file in the folder of the split, or above it."""
    files = (folder / name for folder in (root, root.parent) for name in CLASS_FILES)
    path = next(filter(Path.is_file, files), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a class file: {error}") from error
    is_list = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if not is_list or len(set(names)) < len(names):
        raise ValueError(f'{path}: expected the names of the classes, each once, as in ["cat", "dog"]')
    return tuple(names)
