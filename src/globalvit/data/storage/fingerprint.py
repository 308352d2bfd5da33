"""Fingerprints of data sets: file names, sizes and labels, without reading a single image.

Two splits with equal fingerprints hold the same files, by name and size, with the same labels in the same order. Where
the files lie and when they were written does not count, so data may move, also from a folder into a database.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from globalvit.data.common.holdout import Subset

# Sizes are asked for by several threads, since a network answers slowly but many at a time.
READERS = 8
CHUNK = 2000
MOST_GROUPS = 5
# Of a file that is missing, and of images without a file.
MISSING, NO_FILE = -1, 0
# Groups of data that have no classes of images.
IMAGES, ANNOTATIONS = "images", "annotations"
_RECORD = np.dtype([("size", "<u8"), ("modified", "<u8"), ("checksum", "V16")])
_WRAP = 2**64


@dataclass(frozen=True)
class Fingerprint:
    """What one split holds.

    Attributes:
        files: images.
        order: digest of names, sizes and labels of all images in their order.
        groups: class, or kind of file → number of files, and a digest of names and sizes that ignores their order.
    """

    files: int
    order: str
    groups: dict[str, tuple[int, str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        groups = {name: list(group) for name, group in self.groups.items()}
        return {"files": self.files, "order": self.order, "groups": groups}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Fingerprint":
        """Read what `to_dict` gives.

        Raises:
            ValueError: it is something else.
        """
        try:
            groups = {str(name): (_whole(count), str(digest)) for name, (count, digest) in values["groups"].items()}
            return cls(_whole(values["files"]), str(values["order"]), groups)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected files, order and groups, got {error!r}") from error


def fingerprint(source: Any) -> Fingerprint:
    """Return the fingerprint of one split, a source of any kind of task; takes about 4 µs per file on a local disk."""
    labels = getattr(source, "label", None)
    names = source.classes if labels else (IMAGES,)
    ordered, counts, sums = blake2b(digest_size=16), [0] * len(names), [0] * len(names)
    for index, (name, size) in enumerate(_files(source)):
        label = labels(index) if labels else 0
        digest = blake2b(f"{name}\0{size}".encode(errors="surrogateescape"), digest_size=8).digest()
        ordered.update(digest + label.to_bytes(4, "little"))
        if getattr(source, "is_multi_label", False):
            ordered.update(repr(source.labels(index)).encode())
        counts[label] += 1
        sums[label] = (sums[label] + int.from_bytes(digest, "little")) % _WRAP
    groups = {name: (count, f"{total:016x}") for name, count, total in zip(names, counts, sums, strict=True)}
    annotations = getattr(source, "annotations", None)
    if annotations:
        groups[ANNOTATIONS] = len(annotations), _content(annotations)
        ordered.update(groups[ANNOTATIONS][1].encode())
    return Fingerprint(len(source), ordered.hexdigest(), groups)


def difference(before: Fingerprint, now: Fingerprint) -> str:
    """Return in words what changed between two fingerprints of one split; empty if nothing did."""
    if before == now:
        return ""
    changed = [name for name in {**before.groups, **now.groups} if before.groups.get(name) != now.groups.get(name)]
    if not changed:
        return "the same files in another order"
    shown = ", ".join(_group(name, before, now) for name in changed[:MOST_GROUPS])
    rest = f" and {len(changed) - MOST_GROUPS} more" if len(changed) > MOST_GROUPS else ""
    counts = f"{now.files} files, {now.files - before.files:+d}" if now.files != before.files else f"{now.files} files"
    return f"{counts} ({shown}{rest})"


def _group(name: str, before: Fingerprint, now: Fingerprint) -> str:
    was, is_now = (side.groups.get(name, (0, ""))[0] for side in (before, now))
    if was == is_now:
        return f"{name!r} has other {'content' if name == ANNOTATIONS else 'file names or sizes'}"
    return f"{name!r} {is_now - was:+d} files, now {is_now}"


def _files(source: Any) -> Iterator[tuple[str, str]]:
    """Name below the split's folder and size in bytes of every image, with its label map where it has one."""
    root = _root(source)
    starts = range(0, len(source), CHUNK)
    sizes = _packed_sizes(source)
    with ThreadPoolExecutor(READERS) as readers:
        if sizes is None:
            chunks: Iterable[list[str]] = readers.map(lambda start: _chunk_sizes(source, start), starts)
        else:
            chunks = (sizes[start : start + CHUNK] for start in starts)
        for start, chunk in zip(starts, chunks, strict=True):
            for offset, size in enumerate(chunk):
                yield source.name(start + offset).removeprefix(root).replace(os.sep, "/"), size


def _root(source: Any) -> str:
    """The folder of the images, with which all their names begin."""
    folders = getattr(source, "folders", None)
    root = folders.images if folders else getattr(source, "root", None)
    if root is None:
        return ""
    # The keys of images with label maps begin with the name of the folder.
    inner = f"{IMAGES}{os.sep}" if hasattr(source, "label_key") else ""
    return f"{root}{os.sep}{inner}"


def _chunk_sizes(source: Any, start: int) -> list[str]:
    label_name = getattr(source, "label_name", None)
    sizes = []
    for index in range(start, min(start + CHUNK, len(source))):
        if not hasattr(source, "root") and not hasattr(source, "folders"):
            sizes.append(str(NO_FILE))
            continue
        size = str(_size(source.name(index)))
        sizes.append(f"{size}+{_size(label_name(index))}" if label_name else size)
    return sizes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a million)
    except OSError:
        return MISSING


def _packed_sizes(source: Any) -> list[str] | None:
    """The sizes in the index of a database or of shards; None for folders."""
    if isinstance(source, Subset):
        whole = _packed_sizes(source.source)
        return None if whole is None else [whole[index] for index in source.indices.tolist()]
    if hasattr(source, "packed_sizes"):
        return source.packed_sizes()
    path = getattr(source, "path", None)
    if not isinstance(path, str):
        return None
    # Imported here, since the package lmdb is an extra.
    from globalvit.data.storage.lmdb import value
    from globalvit.data.storage.lmdb_index import RECORDS

    records = value(path, RECORDS)
    if records is None:
        # The published form has no index: a database that is written again has another size as a whole.
        return [f"{_size(str(Path(source.root) / 'data.mdb'))} in all"] * len(source)
    sizes = np.frombuffer(records, _RECORD)["size"]
    if hasattr(source, "label_key"):
        return [f"{image}+{labels}" for image, labels in sizes.reshape(-1, 2).tolist()]
    return [str(size) for size in sizes[source.order].tolist()]


def _content(paths: Iterable[str | Path]) -> str:
    digest = blake2b(digest_size=8)
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123 (a million)
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is not a number of files")
    return value
