"""Indexes of tar shards: where the bytes of each member lie, and what the label members say.

Decided here: nothing is ever extracted; a shard is read once from end to end, and its index is kept in a hidden file
beside it, or in the cache folder where that cannot be written. The index is made again when the shard's size or time
changes. As in WebDataset, the key of a sample is its members' path up to the first dot of the file name.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from globalvit import atomic
from globalvit.data.common.images import UnreadableImage
from globalvit.regular import check_regular

logger = logging.getLogger(__name__)

VERSION = 1
READERS = 8
# First bytes of compressed files.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
CLASS, JSON = "cls", "json"
# Names of the values in a JSON member that may be the label.
LABELS = ("label", "cls", "class")
FILE_NAME, LABEL_FILE_NAME = "file_name", "label_file_name"
LONGEST_CLASS, LONGEST_JSON = 4096, 2**24
_BLOCK = tarfile.BLOCKSIZE
_DRIVE = re.compile(r"[A-Za-z]:")
_UNREAD = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)


class WrongShard(ValueError):  # noqa: N818 (it says what is there)
    """A shard that is damaged, or holds what a shard of images must not hold."""


@dataclass(slots=True)
class Shard:
    """What one shard holds.

    Attributes:
        path: of the tar file.
        size: of the file in bytes, when it was read.
        modified: its time, in ns.
        names: of its regular files, in order; hidden ones are left out.
        offsets: of the first byte of each of them.
        sizes: of each of them in bytes.
        notes: key of a sample → its label, and the names of the files it was packed from, as far as they are stated.
    """

    path: str
    size: int
    modified: int
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    notes: dict[str, dict[str, str | int]] = field(default_factory=dict)

    def place(self, at: int) -> str:
        """What to call member number `at` in messages."""
        return place(self.path, self.names[at])

    def data(self, at: int) -> bytes:
        """The bytes of member number `at`; raises what `read_span` raises."""
        return read_span(Span(self.path, self.size, self.modified, self.offsets[at], self.sizes[at]), self.place(at))


@dataclass(frozen=True, slots=True)
class Span:
    """Where the bytes of a member lie, in a shard of this size and time."""

    path: str
    shard_size: int
    modified: int
    offset: int
    size: int


def place(shard: str, member: str) -> str:
    """What to call a member of a shard in messages."""
    return f"{shard}, member {member!r}"


def split_key(name: str) -> tuple[str, str]:
    """The key of the sample that a member belongs to, and the rest of its name in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def read_span(span: Span, name: str) -> bytes:
    """Read a member; `name` is what errors call it.

    Raises:
        UnreadableImage: the shard is not the file that was indexed.
        OSError: it cannot be read.
    """
    with open(span.path, "rb") as stream:  # noqa: PTH123 (a million)
        state = os.fstat(stream.fileno())
        if (state.st_size, state.st_mtime_ns) != (span.shard_size, span.modified):
            raise UnreadableImage(f"{name} cannot be read: the shard was written again meanwhile; start again")
        stream.seek(span.offset)
        return stream.read(span.size)


def index_shards(paths: list[Path]) -> list[Shard]:
    """The indexes of shards, in order; several are read at a time.

    Raises:
        FileNotFoundError: a shard does not exist.
        WrongShard: one is damaged or compressed, or holds links, devices, hostile or repeated names.
        OSError: one cannot be read.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(index_shard, paths))


def index_shard(path: Path) -> Shard:
    """The index of one shard, from its file if there is one; raises what `index_shards` raises."""
    check_regular(path, "give a tar file")
    state = path.stat()
    files = (path.with_name(f".{path.name}.index"), _cache_file(path))
    for file in files:
        shard = _kept(file, path, state)
        if shard is not None:
            return shard
    shard = _scan(path, Shard(str(path), state.st_size, state.st_mtime_ns))
    text = json.dumps(asdict(shard) | {"version": VERSION}, separators=(",", ":"))
    for file in files:
        try:
            atomic.write_text(file, text)
        except OSError as error:
            logger.info("the index of %s is not kept in %s: %s", path, file, error)
        else:
            break
    return shard


def _cache_file(path: Path) -> Path:
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = chosen if chosen.is_absolute() else Path("~/.cache").expanduser()
    digest = blake2b(os.fsencode(path.resolve()), digest_size=12).hexdigest()
    return base / "globalvit" / "shards" / f"{digest}.index"


def _kept(file: Path, path: Path, state: os.stat_result) -> Shard | None:
    """The index in a file, if it is whole and that of this shard."""
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        is_known = values.pop("version") == VERSION
        values["path"] = str(path)
        shard = Shard(**values)
        lengths = {len(shard.names), len(shard.offsets), len(shard.sizes)}
        is_whole = len(lengths) == 1 and isinstance(shard.notes, dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_same = (shard.size, shard.modified) == (state.st_size, state.st_mtime_ns)
    return shard if is_known and is_whole and is_same else None


def _scan(path: Path, shard: Shard) -> Shard:
    seen: set[str] = set()
    with path.open("rb") as stream:
        start = stream.read(6)
        for first, kind in COMPRESSED.items():
            if start.startswith(first):
                raise compressed(path, kind)
        stream.seek(0)
        for member in _members(path, stream):
            name = _checked_name(path, member)
            if not member.isreg() or any(part.startswith(".") for part in name.split("/")):
                continue
            if name in seen:
                raise WrongShard(f"{place(str(path), name)} occurs twice; expected one file per name, pack them again")
            seen.add(name)
            shard.names.append(name)
            shard.offsets.append(member.offset_data)
            shard.sizes.append(member.size)
            _note(shard, stream)
    return shard


def compressed(path: Path, kind: str) -> WrongShard:
    """What to say of a compressed shard."""
    return WrongShard(
        f"{path} is compressed ({kind}), and single images cannot be read from the middle of it; unpack it to a .tar "
        "file: images are compressed already"
    )


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of all members, followed by a check that the archive ends where the file does."""
    last, reason = "its start", ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:
                    raise WrongShard(f"{place(str(path), member.name)} has a negative size; pack it again")
                yield member
                last = f"member {member.name!r}"
            end = archive.offset
    except WrongShard:
        raise
    except _UNREAD as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        stream.seek(end)
        block = stream.read(_BLOCK)
        if block == bytes(_BLOCK):
            _check_rest(path, stream)
            return
        reason = "a header is damaged" if len(block) == _BLOCK else "the end of the archive is missing"
    raise WrongShard(f"{path} is damaged or cut short after {last} ({reason}); copy it or pack it again")


def _check_rest(path: Path, stream: BinaryIO) -> None:
    while chunk := stream.read(2**20):
        if chunk.count(0) != len(chunk):
            raise WrongShard(
                f"{path} goes on after its end, as tar files joined by `cat` do; give the files one by one, or join "
                "them with `tar --concatenate`"
            )


def _checked_name(path: Path, member: tarfile.TarInfo) -> str:
    """The name of a member without a leading `./`; refuses what a shard must not hold."""
    name = member.name
    while name.startswith("./"):
        name = name[2:]
    plain = name.replace("\\", "/")
    where = place(str(path), member.name)
    if plain.startswith("/") or ".." in plain.split("/") or _DRIVE.match(plain):
        raise WrongShard(f"{where} leads out of the shard; expected a relative path without '..'")
    if member.issym() or member.islnk():
        raise WrongShard(f"{where} is a link to {member.linkname!r}; expected regular files: pack with `tar -h`")
    if member.issparse():
        raise WrongShard(f"{where} is stored as a sparse file; pack without `tar -S`")
    if not (member.isreg() or member.isdir()):
        raise WrongShard(f"{where} is a device, a pipe or of an unknown kind; expected regular files")
    return name


def _note(shard: Shard, stream: BinaryIO) -> None:
    """Keep what the member read last says of its sample, if it is one of labels."""
    name, offset, size = shard.names[-1], shard.offsets[-1], shard.sizes[-1]
    key, suffix = split_key(name)
    longest = {CLASS: LONGEST_CLASS, JSON: LONGEST_JSON}.get(suffix)
    if longest is None:
        return
    where = place(shard.path, name)
    if size > longest:
        raise WrongShard(f"{where} has {size} bytes, and a label at most {longest}; pack it again")
    stream.seek(offset)
    data = stream.read(size)
    try:
        text = data.decode("utf-8-sig").strip()
        values = json.loads(text) if suffix == JSON else {"label": int(text) if _is_number(text) else text}
    except (ValueError, RecursionError) as error:
        raise WrongShard(f"{where} is not valid {'JSON' if suffix == JSON else 'UTF-8'}: {error}") from error
    if suffix == CLASS and not text:
        raise WrongShard(f"{where} is empty; expected the number or the name of a class")
    label = next((values[one] for one in LABELS if one in values), None) if isinstance(values, dict) else None
    note = shard.notes.setdefault(key, {})
    if isinstance(label, (str, int)) and not isinstance(label, bool) and (suffix == CLASS or "label" not in note):
        note["label"] = label
    if suffix == JSON and isinstance(values, dict):
        note |= {one: values[one] for one in (FILE_NAME, LABEL_FILE_NAME) if isinstance(values.get(one), str)}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
