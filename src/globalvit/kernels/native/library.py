"""Compiling the C sources beside this file for this machine's CPU, once, and loading the result.

The library is kept in the user's cache, under a name that stands for the sources, the compiler and the CPU: another
version, compiler or machine (with a shared home) gets a library of its own. Nothing else of a build is kept.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from globalvit.atomic import replace_with

logger = logging.getLogger(__name__)
SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
# Sums may be formed with fused multiply-adds; nothing else of IEEE arithmetic is given up.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120


class UnavailableError(OSError):
    """The library cannot be had on this machine; the text says why."""


@cache
def unavailable() -> str | None:
    """Why there is no library on this machine, None where there is one. Compiles it if need be (some five seconds)."""
    try:
        load()
    except UnavailableError as error:
        logger.info("CPU attention uses PyTorch's operators: %s", error)
        return str(error)
    return None


@cache
def load() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        UnavailableError: the system is not Linux or has no C compiler, or that fails.
    """
    if sys.platform != "linux":
        raise UnavailableError(f"kernels in C are built on Linux only, this is {sys.platform}")
    compiler = _compiler()
    flags = (*FLAGS, _for_this_cpu())
    name = f"kernels-{_fingerprint(compiler, flags)}.so"
    try:
        return ctypes.CDLL(str(_built(Path(folder()) / name, compiler, flags)))
    except OSError as error:
        if isinstance(error, UnavailableError):
            raise
        logger.info("%s; building in a temporary folder", error)
    # A home that cannot be written, or from which nothing may be loaded.
    with tempfile.TemporaryDirectory() as temporary:
        try:
            return ctypes.CDLL(str(_built(Path(temporary) / name, compiler, flags)))
        except OSError as error:
            raise UnavailableError(f"the compiled kernels cannot be loaded: {error}") from error


def folder() -> Path:
    """Where compiled libraries are kept: `globalvit` in the user's cache (`XDG_CACHE_HOME`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "globalvit"


def _for_this_cpu() -> str:
    return "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"


def _compiler() -> tuple[str, ...]:
    """The C compiler that `CC` names, with what stands before or after it there, else the first one on the path."""
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = (tuple(wanted),) if wanted else tuple((name,) for name in COMPILERS)
    found = next((words for words in candidates if shutil.which(words[0])), None)
    if found is None:
        names = ", ".join(" ".join(words) for words in candidates)
        raise UnavailableError(f"no C compiler was found ({names}); install gcc, or set CC")
    return found


def _fingerprint(compiler: tuple[str, ...], flags: tuple[str, ...]) -> str:
    version = _run([*compiler, "--version"])
    cpu = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    lines = (line for line in cpu.splitlines() if line.startswith(("flags", "Features", "model name")))
    sources = (path.read_text() for path in (*SOURCES, *HEADERS))
    parts = (*sources, *compiler, version, *flags, platform.machine(), *lines)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _built(path: Path, compiler: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replace_with(path) as temporary:
            _run([*compiler, *flags, *map(str, SOURCES), "-o", str(temporary), "-lm"])
    return path


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip().splitlines()
        raise UnavailableError(f"{command[0]} failed: {words[0] if words else error.returncode}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} failed: {error}") from error
    return done.stdout
