"""Read files of `torch.save` with PyTorch's safe reader, after checking their declared sizes."""

import argparse
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from threading import RLock
from typing import Any, BinaryIO

import numpy as np
import torch

from globalvit.weights.names import MOST_SHOWN, RefusedError
from globalvit.weights.pickles import rewrite

# Containers and names of 25,000 tensors fit; a pickle of a few megabytes can ask for gigabytes.
MOST_PICKLED = 4 * 2**20
ZIP_START = b"PK\x03\x04"
PICKLE = "data.pkl"
# The pickled magic number that torch.save wrote before it wrote zip files, in any protocol.
LEGACY_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
LEGACY_PICKLES = 5
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128", "U1", "S1"),
)
# What NumPy's numbers are pickled as; its older releases called the module otherwise.
_NUMBER: Any = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [
    argparse.Namespace,
    _NUMBER,
    (_NUMBER, "numpy.core.multiarray.scalar"),
    np.dtype,
    frozenset,
    # A path of either system is only a name here.
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    *dict.fromkeys(type(np.dtype(name)) for name in _DTYPES),
]
# The list of classes that PyTorch's safe reader takes is one for the whole process.
_lock = RLock()


def is_torch_file(start: bytes) -> bool:
    """Return whether a file that begins with these bytes was written by `torch.save`."""
    return start.startswith(ZIP_START) or LEGACY_START.match(start) is not None


@contextmanager
def content(path: Path) -> Iterator[tuple[Any, bool]]:
    """Yield what a file of `torch.save` holds, and whether its tensors must be copied to outlive this context.

    Raises:
        RefusedError: it was not written by `torch.save`, holds more than weights, or declares more than it holds.
        Exception: whatever PyTorch, zipfile and pickletools raise for damaged files.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_START
        file.seek(0)
        pickles = [_zip_pickle(path)] if is_zip else _legacy_pickles(file, path)
        plain = [rewrite(stream) for stream in pickles]
        _refuse_code(plain, path)
        # Mapped, not read: an official file is half optimizer state that nobody asks for.
        if all(one == stream.getvalue() for one, stream in zip(plain, pickles, strict=True)):
            yield _load(path, mmap=is_zip), False
            return
        with tempfile.TemporaryDirectory(prefix="globalvit-", ignore_cleanup_errors=True) as folder:
            copy = Path(folder) / "weights"
            if is_zip:
                _copy_zip(path, copy, plain[0])
            else:
                file.seek(sum(len(stream.getvalue()) for stream in pickles))
                with copy.open("wb") as target:
                    target.writelines(plain)
                    shutil.copyfileobj(file, target)
            yield _load(copy, mmap=is_zip), is_zip


def _load(path: Path, *, mmap: bool) -> Any:
    with _safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextmanager
def _safe_globals() -> Iterator[None]:
    """Allow our classes in PyTorch's safe reader, in addition to those that the user allowed."""
    with _lock:
        known = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([one for one in SAFE if one not in known]):
            yield


def _zip_pickle(path: Path) -> BytesIO:
    """Return the pickle in a zip file, after checking the sizes that its table of contents declares."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == PICKLE]
        if any(entry.filename.rpartition("/")[2] == "constants.pkl" for entry in entries):
            raise RefusedError(
                f"{path} holds a TorchScript model, which has code; save its state_dict() with torch.save"
            )
        if len(pickles) != 1:
            raise RefusedError(
                f"{path} is a zip file that torch.save did not write: expected one {PICKLE}, got {len(pickles)}; give "
                f"a file of torch.save or safetensors"
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise RefusedError(f"{path} has compressed entries, which torch.save does not write; save it again with it")
        declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
        if declared > size:
            raise RefusedError(f"{path} declares {declared} bytes and has {size}; fetch or copy it again")
        _limit(pickles[0].file_size, path)
        return BytesIO(archive.read(pickles[0]))


def _legacy_pickles(file: BinaryIO, path: Path) -> list[BytesIO]:
    """Return the pickles at the start of a file from before PyTorch 1.6."""
    whole = BytesIO(file.read(MOST_PICKLED + 1))
    found = []
    for _ in range(LEGACY_PICKLES):
        start = whole.tell()
        try:
            rewrite(whole)
        except ValueError:
            _limit(len(whole.getvalue()), path)
            raise
        found.append(BytesIO(whole.getvalue()[start : whole.tell()]))
    return found


def _limit(size: int, path: Path) -> None:
    if size > MOST_PICKLED:
        raise RefusedError(
            f"{path} has more than {MOST_PICKLED} bytes of names and settings beside its tensors; save its state dict "
            f"alone"
        )


def _refuse_code(pickles: list[bytes], path: Path) -> None:
    """Refuse pickles that would import anything but tensors, plain containers and NumPy's numbers; nothing is run."""
    refused: set[str] = set()
    for pickled in pickles:
        archive = BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(f"archive/{PICKLE}", pickled)
            file.writestr("archive/version", "3\n")
        archive.seek(0)
        with _safe_globals():
            refused.update(torch.serialization.get_unsafe_globals_in_checkpoint(archive))
    if refused:
        shown = sorted(refused)[:MOST_SHOWN] + (["…"] if len(refused) > MOST_SHOWN else [])
        raise RefusedError(
            f"{path} holds more than weights: {', '.join(shown)}; it was not opened, since such a file can run code. "
            f"Get it as safetensors, or, if you trust its maker, save its state dict alone"
        )


def _copy_zip(source: Path, target: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            with copy.open(entry.filename, "w", force_zip64=True) as there:
                if entry.filename.rpartition("/")[2] == PICKLE:
                    there.write(pickled)
                else:
                    with archive.open(entry) as here:
                        shutil.copyfileobj(here, there)
