"""What a database of images knows about itself, and how that is written down.

An image's key is its path below the folder it comes from, with slashes, and its value the file's bytes. No such path
begins with a slash, so the keys of everything else do:

- `/globalvit`: the `Header`, as JSON.
- `/names`: all images' keys, joined by NUL, sorted by class and within a class, as `ImageFolder` does.
- `/records`: a `Record` for each of them: 32 bytes, little-endian.
- `/done/N/names`, `/done/N/records`: the same for one batch of a build that is not finished.

Where images have label maps, the keys are `images/PATH` and `labels/PATH`, and `/names` holds each image's key
followed by that of its labels.

The published databases of GPViT have none of these, but a key `total`; see `lmdb_published`.
"""

import json
import shlex
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from globalvit.data.lmdb import HalfBuilt, located, value

OLD_TOTAL = b"total"
HEADER, NAMES, RECORDS, DONE = b"/globalvit", b"/names", b"/records", b"/done/"
# Of databases of classes, and of images with label maps, which older versions must not take for the former.
FORM, MASK_FORM = 1, 2
_RECORD = struct.Struct("<QQ16s")


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
    def from_bytes(cls, data: bytes) -> "Header":
        """Read JSON; keys of later forms are left aside, so that `form` can be looked at."""
        known = {item.name for item in fields(cls)}
        given: dict[str, Any] = json.loads(data)
        values: dict[str, Any] = {
            key: tuple(item) if isinstance(item, list) else item for key, item in given.items() if key in known
        }
        return cls(**values)


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


def unpack(names: bytes, records: bytes) -> dict[bytes, Record]:
    """The blocks of `pack_keys` and `pack_records` as key → record, in their order."""
    keys = names.split(b"\0") if names else []
    return dict(zip(keys, map(Record._make, _RECORD.iter_unpack(records)), strict=True))


def read_header(root: Path) -> Header | None:
    """The header of a complete database, or None of one in the old published form.

    Raises:
        HalfBuilt: its build was not finished; the text says how that is done.
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
    header = Header.from_bytes(data)
    check_form(header, root)
    if not header.is_complete:
        target = root.absolute().parent if header.split else root.absolute()
        raise HalfBuilt(
            f"{root} is half built; finish it by `globalvit data lmdb build {shlex.quote(header.source)} "
            f"{shlex.quote(str(target))}`"
        )
    return header


def check_form(header: Header, root: Path) -> None:
    """Refuse a database of a later form.

    Raises:
        ValueError: this version does not know its form.
    """
    if header.form > MASK_FORM:
        raise ValueError(
            f"{root} was built by a newer globalvit (form {header.form}, known {MASK_FORM}); update globalvit"
        )
