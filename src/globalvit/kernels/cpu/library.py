"""Finding, building, checking and loading the compiled C kernels.

A wheel brings a library for each instruction set, in `libraries/` beside this file. An editable install compiles one
for this CPU at first use and keeps it in the user's cache. Every library is compared with its checksum before it is
loaded; a damaged one in the cache is built again. Whatever goes wrong, PyTorch's operators compute the same.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from globalvit import locks
from globalvit.atomic import replace_with
from globalvit.hardware import cpu_features
from globalvit.kernels.cpu import structs, variants
from globalvit.kernels.cpu.variants import UnavailableError, Variant

logger = logging.getLogger(__name__)

PREBUILT = Path(__file__).parent / "libraries"
# Forces an instruction set, for tests and to compare machines.
LEVEL = "GLOBALVIT_CPU_LEVEL"
# PyTorch's own limit → the best variant that respects it.
_LIMITS = {"default": "x86-64-v2", "avx2": "x86-64-v3", "avx512": "x86-64-v4-bf16"}
_OPENMP = ("libgomp", "libiomp5", "libomp")
# Seconds between two notes that another process is still compiling.
NOTE_EVERY = 30
LOCK_LIMIT_S = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """The loaded kernels.

    Attributes:
        handle: to call them.
        variant: instruction set that they were compiled for.
        origin: where they came from, in words.
    """

    handle: ctypes.CDLL
    variant: Variant
    origin: str


def load() -> ctypes.CDLL:
    """Return the kernels.

    Raises:
        UnavailableError: they cannot be used here.
    """
    found = _library()
    if isinstance(found, UnavailableError):
        raise found
    return found.handle


def loaded() -> Library:
    """Return the kernels with what is known of them; raises as `load`."""
    load()
    found = _library()
    assert isinstance(found, Library)
    return found


def unavailable() -> str | None:
    """Return why the kernels cannot be used on this machine, or None if they can. Compiles them if need be."""
    found = _library()
    return str(found) if isinstance(found, UnavailableError) else None


@cache
def _library() -> Library | UnavailableError:
    if sys.platform != "linux":
        return UnavailableError(f"the C kernels are for Linux, this is {sys.platform}")
    try:
        return find()
    except UnavailableError as error:
        return error
    except Exception as error:  # PyTorch's operators compute the same
        return UnavailableError(f"{type(error).__name__}: {error}")


def find() -> Library:
    """Load the library for this CPU: a prebuilt one, one from the cache, or one that is compiled now.

    Raises:
        UnavailableError, OSError: there is none and none can be built.
    """
    variant = choose_variant()
    runtime = _load_openmp()
    prebuilt = PREBUILT / f"{variant.name}.so"
    if _is_intact(prebuilt) and _record(prebuilt).get("sources") == variants.sources_hash():
        return _open(prebuilt, variant, "part of the package")
    compiler = variants.find_compiler(os.environ, may_be_clang=not runtime.startswith("libgomp"))
    try:
        path = _cached(cache_folder(), variant, compiler)
        return _open(path, variant, f"compiled by {' '.join(compiler)}, kept in {path.parent}")
    except UnavailableError:
        raise
    except OSError as error:
        reason = error
    # A folder that cannot be written or trusted, or from which nothing may be loaded.
    logger.warning("every process compiles the C kernels again: %s; set XDG_CACHE_HOME to a folder of yours", reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        variants.compile_variant(variant, compiler, path)
        return _open(path, variant, f"compiled by {' '.join(compiler)} for this process only")


def choose_variant() -> Variant:
    """Return the best variant that this CPU and the user's limits allow.

    Raises:
        UnavailableError: there is none, or the environment asks for one that the CPU cannot run.
    """
    candidates = variants.variants_of(platform.machine())
    features = cpu_features()
    able = [variant for variant in candidates if variant.features <= features]
    wanted = os.environ.get(LEVEL)
    if wanted:
        chosen = next((variant for variant in able if variant.name == wanted), None)
        if chosen is None:
            names = ", ".join(variant.name for variant in able) or "none"
            raise UnavailableError(f"{LEVEL}={wanted}: expected an instruction set that this CPU has ({names})")
        return chosen
    limit = _LIMITS.get(os.environ.get("ATEN_CPU_CAPABILITY", "").lower())
    names = [variant.name for variant in candidates]
    allowed = [variant for variant in able if limit not in names or names.index(variant.name) >= names.index(limit)]
    if not allowed:
        raise UnavailableError(f"there are no C kernels for this CPU ({platform.machine()})")
    return allowed[0]


def cache_folder() -> Path:
    """Return the folder where compiled libraries are kept: `globalvit` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        OSError: the user has no home folder.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():
        return chosen / "globalvit"
    try:
        return Path.home() / ".cache" / "globalvit"
    except RuntimeError as error:
        raise OSError("there is no home folder to keep them in") from error


def _cached(folder: Path, variant: Variant, compiler: tuple[str, ...]) -> Path:
    """Return the library in the cache; compile it if there is none, or if it is damaged."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_owner(folder)
    version = variants.run([*compiler, "--version"])
    parts = (variants.sources_hash(), *variant.flags, *compiler, version)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = folder / f"kernels-{variant.name}-{name}.so"
    if _is_mine(path) and _is_intact(path):
        return path
    with _alone(path.with_suffix(".lock")):
        # Another process may have compiled it meanwhile.
        if not (_is_mine(path) and _is_intact(path)):
            if path.exists():
                logger.warning("%s is damaged or belongs to another user; it is compiled again", path)
            logger.info("compiling the C kernels for %s, once", variant.name)
            path.with_suffix(".json").unlink(missing_ok=True)
            with replace_with(path) as temporary:
                variants.compile_variant(variant, compiler, temporary)
            path.chmod(0o600)
            with replace_with(path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(variants.record(path)) + "\n")
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from compiling at the same time.

    Raises:
        OSError: another process has held the lock for too long.
    """
    lock = FileLock(path)
    for _ in range(LOCK_LIMIT_S // NOTE_EVERY):
        try:
            locks.acquire(lock, NOTE_EVERY)
            break
        except Timeout:
            logger.warning("waiting for another process that compiles the C kernels (lock %s)", path)
    else:
        raise OSError(f"another process has held {path} for {LOCK_LIMIT_S} s")
    try:
        yield
    finally:
        lock.release()


def check_owner(folder: Path) -> None:
    """Refuse a folder that others could have written to.

    Raises:
        OSError: it belongs to another user, or others may write to it.
    """
    about = folder.stat()
    if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} belongs to another user or can be written by others")


def _is_mine(path: Path) -> bool:
    """Whether a file is the user's own and nobody else can write it."""
    if not path.is_file() or path.is_symlink():
        return False
    about = path.stat()
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_intact(library: Path) -> bool:
    """Whether a library is there and has the checksum that was written beside it."""
    return library.is_file() and _record(library).get("sha256") == variants.checksum(library)


def _record(library: Path) -> dict[str, str]:
    try:
        found = json.loads(library.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _load_openmp() -> str:
    """Make the OpenMP library that PyTorch uses visible to the kernels; return its file name.

    Raises:
        UnavailableError: PyTorch has none.
    """
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    found = next((path for name in _OPENMP for path in sorted(paths) if Path(path).name.startswith(name)), None)
    if found is None:
        raise UnavailableError("PyTorch uses no OpenMP library here, which the C kernels need")
    ctypes.CDLL(found, mode=ctypes.RTLD_GLOBAL)
    return Path(found).name


def _open(path: Path, variant: Variant, origin: str) -> Library:
    handle = ctypes.CDLL(str(path))
    for name, (result, arguments) in structs.FUNCTIONS.items():
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    for name, structure in structs.STRUCTURES.items():
        size = ctypes.c_int64.in_dll(handle, f"size_of_{name}").value
        if size != ctypes.sizeof(structure):
            raise UnavailableError(f"{path} has another layout of `{name}` ({size} bytes); remove the file")
    return Library(handle=handle, variant=variant, origin=origin)
