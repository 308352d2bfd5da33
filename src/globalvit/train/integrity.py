"""Whether the files of a run are as they were written: checksums of checkpoints, and errors that name an older one."""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKSUMS_FILE = "checksums.json"
# No JSON file of a run comes near this size.
MOST_BYTES = 2**26
BLOCK = 2**20


class DamagedError(ValueError):
    """A file of a run is not what was written there."""


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of all files in the folder of a checkpoint beside them."""
    entries = {path.name: [path.stat().st_size, _crc(path)] for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS_FILE).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def verify(folder: Path, *names: str) -> None:
    """Compare files of a checkpoint with their checksums; checkpoints of older versions have none and pass.

    Raises:
        DamagedError: a file is missing or has another size or content.
    """
    if not (folder / CHECKSUMS_FILE).exists():
        return
    with explained(folder / CHECKSUMS_FILE):
        entries = read_json(folder / CHECKSUMS_FILE)
        expected = {name: (int(entries[name][0]), str(entries[name][1])) for name in names}
    for name, (size, checksum) in expected.items():
        path = folder / name
        with explained(path):
            found = path.stat().st_size
            if found != size:
                raise DamagedError(f"expected {size} bytes, got {found}")
            if _crc(path) != checksum:
                raise DamagedError("its content has another checksum than when it was written")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        ValueError: it is not JSON, or far too large.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, got {size}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file of a checkpoint raises into one error that offers the checkpoint before it.

    Raises:
        DamagedError: the text names the file, the reason, and what to resume from instead.
    """
    try:
        yield
    except DamagedError as error:
        if str(path.parent) in str(error):
            raise
        raise DamagedError(f"{path} is damaged: {error}; {_remedy(path.parent)}") from error
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"no entry {reason}" if isinstance(error, KeyError) else reason
        raise DamagedError(
            f"{path} is damaged or of another version of globalvit: {reason}; {_remedy(path.parent)}"
        ) from error


def _remedy(checkpoint: Path) -> str:
    """What to resume from instead of a checkpoint `step-N`."""
    own = _step_of(checkpoint)
    earlier = [path for path in checkpoint.parent.glob("step-*") if -1 < _step_of(path) < own]
    if not earlier:
        return "it has no earlier checkpoint beside it"
    return f"the checkpoint before it is --resume {max(earlier, key=_step_of)}"


def _step_of(path: Path) -> int:
    match = re.fullmatch(r"step-(\d{1,18})", path.name)
    return int(match[1]) if match else -1


def _crc(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
