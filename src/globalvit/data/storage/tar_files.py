"""Where tar shards lie: in a folder per split, beside each other with the split in their names, or in a list.

Tar files beside folders or images count as the archives that these were unpacked from, and are not read.
"""

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from globalvit.data.common.folders import split_folders
from globalvit.data.common.splits import role_of
from globalvit.data.common.walk import is_image
from globalvit.data.storage.tar_index import WrongShard, compressed

SUFFIX = ".tar"
PACKED = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bzip2", ".tar.xz": "xz", ".tar.zst": "zstd"}
MOST_LISTED = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shard_list(split: str) -> bool:
    """Whether the name of a split is a list of shards, such as `train-{000..003}.tar`."""
    return split.lower().endswith((SUFFIX, *PACKED))


def has_shards(data_dir: Path) -> bool:
    """Whether a folder holds shards of a split with one of the usual names."""
    return any(map(role_of, shard_splits(data_dir)))


def shard_splits(data_dir: Path) -> dict[str, list[Path]]:
    """The shards of every split, sorted by name; the names of splits as the folder has them.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
    """
    found: dict[str, list[Path]] = {}
    for name in split_folders(data_dir):
        inner = shards_in(data_dir / name)
        if inner:
            found[name] = [data_dir / name / one for one in inner]
    for one in shards_in(data_dir):
        role = _role_in(one)
        if role:
            found.setdefault(role, []).append(data_dir / one)
    return found


def listed_shards(data_dir: Path, split: str) -> list[Path]:
    """The shards that a list with braces names, in its order.

    Raises:
        FileNotFoundError: one does not exist.
        WrongShard: one is compressed, the list is too long, or a range runs backward.
    """
    paths = [data_dir / name for name in _expanded(split)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} shards of {split!r} do not exist, the first is {missing[0]}"
        )
    return paths


def check_shards(paths: list[Path]) -> None:
    """Refuse compressed shards by their names."""
    for path in paths:
        for suffix, kind in PACKED.items():
            if path.name.lower().endswith(suffix):
                raise compressed(path, kind)


def shards_in(folder: Path) -> list[str]:
    """Names of the shards in a folder, also of those that are compressed, sorted; none beside folders or images."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_shard_list(entry.name):
                    names.append(entry.name)
                elif is_image(entry.name) or entry.is_dir():
                    return []
    except OSError:
        return []
    return sorted(names)


def _role_in(name: str) -> str | None:
    """The part of a shard's name that names a split, as in `imagenet-train-000000.tar`."""
    return next((part for part in re.split(r"[-_.]", name) if role_of(part)), None)


def _expanded(text: str) -> Iterator[str]:
    """The texts that a text with braces stands for; `{000..003}` counts with leading zeros, `{a,b}` lists."""
    parts = _BRACES.split(text)
    choices = [_choices(part) if at % 2 else [part] for at, part in enumerate(parts)]
    total = 1
    for one in choices:
        total *= len(one)
    if total > MOST_LISTED:
        raise WrongShard(f"{text!r} stands for {total} shards; expected at most {MOST_LISTED}")
    return ("".join(one) for one in product(*choices))


def _choices(inner: str) -> list[str]:
    matched = _RANGE.fullmatch(inner)
    if not matched:
        return inner.split(",")
    first, last = map(int, matched.groups())
    if last < first or last - first >= MOST_LISTED:
        raise WrongShard(
            f"expected a range from a lower to a higher number, of at most {MOST_LISTED} shards, got {{{inner}}}"
        )
    return [f"{number:0{len(matched[1])}}" for number in range(first, last + 1)]
