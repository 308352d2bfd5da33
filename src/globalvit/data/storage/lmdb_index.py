"""What a database of images knows about itself, and how that is written down.

An image's key is its path below the folder it comes from, with slashes, and its value the file's bytes. No such path
begins with a slash, so the keys of everything else do:

- `/globalvit`: the `Header`, as JSON.
- `/names`: all images' keys, joined by NUL, sorted by class and within a class, as `ImageFolder` does.
- `/records`: a `Record` for each of them: 32 bytes, little-endian.
- `/done/N/names`, `/done/N/records`: those of one batch of a build that is not finished.

Where images have label maps, the keys are `images/PATH` and `labels/PATH`, and `/names` holds each image's key
followed by that of its labels.

The published databases of GPViT have none of these, but a key `total`; see `lmdb_published`.
"""

import json
import re
import shlex
import struct
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from globalvit.data.storage.lmdb import HalfBuilt, check, located, value
from globalvit.data.storage.lmdb_check import CAN_CHECK, Content, DamagedDatabase

OLD_TOTAL = b"total"
HEADER, NAMES, RECORDS, DONE = b"/globalvit", b"/names", b"/records", b"/done/"
# Of databases of classes, and of images with label maps, which older versions must not take for the former.
FORM, MASK_FORM = 1, 2
_RECORD = struct.Struct("<QQ16s")
_COLOR = re.compile("#[0-9a-f]{6}")
_VOID = re.compile(r"\d{1,3}#[0-9a-f]{6}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What stands under `/globalvit`.

    Attributes:
        form: of everything the database says about itself.
        is_complete: whether all images are there.
        source: the image folder, while the database is not complete.
        split: the split's name, likewise; empty where the folder has no splits.
        classes: names of the class folders, sorted by code point; of label maps, the names of their class file.
        counts: images in each of them.
        colors: of the classes, as `#rrggbb`, where label maps have a class file that gives some.
        void: further numbers in label maps that are to be ignored and their colors, as `12#rrggbb`.
        total_bytes: of all images.
        checksum: how `Record.checksum` was made.
    """

    form: int = FORM
    is_complete: bool
    source: str = ""
    split: str = ""
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    colors: tuple[str, ...] = ()
    void: tuple[str, ...] = ()
    total_bytes: int = 0
    checksum: str = "blake2b-128"

    @property
    def has_masks(self) -> bool:
        """Whether the images have label maps, not classes."""
        return self.form == MASK_FORM

    def to_bytes(self) -> bytes:
        """JSON in ASCII."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes, root: Path) -> "Header":
        """Read the JSON of the database `root`; keys of later forms are ignored.

        Raises:
            DamagedDatabase: it is not JSON, or not what `to_bytes` writes.
            ValueError: this version does not know its form.
        """
        try:
            given = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _damaged(root, f"its header is not JSON ({' '.join(str(error).split())})") from error
        form = given.get("form", FORM) if isinstance(given, dict) else None
        if type(form) is not int or form < FORM:
            raise _damaged(root, f"its header says form {form!r}")
        if form > MASK_FORM:
            raise ValueError(
                f"{root} was built by a newer globalvit (form {form}, known {MASK_FORM}); update globalvit"
            )
        known = {item.name for item in fields(cls)}
        values: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in given.items() if key in known
        }
        for name, found in values.items():
            if not _FITS[name](found):
                raise _damaged(root, f"its header says {name} {str(found)[:60]!r}")
        if "is_complete" not in values:
            raise _damaged(root, "its header does not say is_complete")
        header = cls(**values)
        counted = 0 if header.has_masks or not header.is_complete else len(header.classes)
        colored = len(header.classes) if header.colors else 0
        if (len(header.counts), len(header.colors)) != (counted, colored):
            raise _damaged(root, "its header has other numbers of classes, counts and colors")
        return header


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are(values: Any, fits: Callable[[Any], Any]) -> bool:
    return isinstance(values, tuple) and all(map(fits, values))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


# What each part of a header has to be.
_FITS: dict[str, Callable[[Any], bool]] = {
    "form": _is_number,
    "is_complete": lambda value: type(value) is bool,
    "source": _is_text,
    "split": _is_text,
    "classes": lambda values: _are(values, lambda name: _is_text(name) and name) and len(set(values)) == len(values),
    "counts": lambda values: _are(values, _is_number),
    "colors": lambda values: _are(values, lambda color: _is_text(color) and _COLOR.fullmatch(color)),
    "void": lambda values: _are(values, lambda one: _is_text(one) and _VOID.fullmatch(one)),
    "total_bytes": _is_number,
    "checksum": _is_text,
}


class Record(NamedTuple):
    """An image as it was packed: bytes, time of the file's last change in ns, and 16 bytes of BLAKE2b."""

    size: int
    modified: int
    checksum: bytes


class Keys:
    """Keys by position in one block of bytes, which forked processes share and spawned ones are sent quickly."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)
        self._ends = np.append(ends, len(block)) if block else ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"key {index} of {len(self)}")
        start = self._ends[index - 1] + 1 if index else 0
        return self._block[start : self._ends[index]]


def checksum(data: bytes) -> bytes:
    """Sixteen bytes of BLAKE2b."""
    return blake2b(data, digest_size=16).digest()


def pack_keys(keys: Iterable[bytes]) -> bytes:
    """Keys as one block for `Keys`."""
    return b"\0".join(keys)


def pack_records(records: Iterable[Record]) -> bytes:
    """Records as one block."""
    return b"".join(_RECORD.pack(*record) for record in records)


def unpack(names: bytes, records: bytes, root: Path) -> dict[bytes, Record]:
    """Return the blocks of `pack_keys` and `pack_records` as key → record, in their order.

    Raises:
        DamagedDatabase: they do not belong together.
    """
    keys = names.split(b"\0") if names else []
    if len(records) != len(keys) * _RECORD.size:
        raise _damaged(root, f"its index has {len(keys)} names and {len(records)} bytes of records")
    return dict(zip(keys, map(Record._make, _RECORD.iter_unpack(records)), strict=True))


def read_keys(root: Path, header: Header) -> Keys:
    """Return the keys of all files of a complete database, as its index has them.

    Raises:
        DamagedDatabase: the index names other files than the database holds.
    """
    path = located(root)
    keys, there, named = Keys(value(path, NAMES) or b""), check(path), Content()
    for index in range(len(keys)):
        named.add(keys[index])
    is_whole = len(keys) % 2 == 0 if header.has_masks else len(keys) == sum(header.counts)
    if not is_whole or (CAN_CHECK and named != there):
        raise _damaged(
            root, f"its index names {len(keys)} files, other ones than the {there.images} that are in the database"
        )
    return keys


def read_header(root: Path) -> Header | None:
    """The header of a complete database, or None of one in the old published form.

    Raises:
        HalfBuilt: its build was not finished; the text says how that is done.
        DamagedDatabase: what it says about itself is not what was written.
        ValueError: another kind of database, or one of a later form.
    """
    path = located(root)
    data = value(path, HEADER)
    if data is None:
        if value(path, OLD_TOTAL) is None:
            raise HalfBuilt(
                f"{root} is half built, or a database of another kind: it says nothing about itself; finish it by "
                "`globalvit data lmdb build SRC DST`"
            )
        return None
    header = Header.from_bytes(data, root)
    if not header.is_complete:
        target = root.absolute().parent if header.split else root.absolute()
        raise HalfBuilt(
            f"{root} is half built; finish it by `globalvit data lmdb build {shlex.quote(header.source)} "
            f"{shlex.quote(str(target))}`"
        )
    return header


def _damaged(root: Path, what: str) -> DamagedDatabase:
    return DamagedDatabase(
        f"{root} is damaged: {what}; copy it again, or build it again with `globalvit data lmdb build`"
    )
