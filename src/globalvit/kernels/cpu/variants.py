"""The instruction sets that the C kernels are compiled for, and how to compile them.

Only the standard library is imported here, because the build of the wheel runs this file before the package exists.
"""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
# Sums may use fused multiply-adds; everything else is IEEE arithmetic. libgomp is not linked: the symbols of OpenMP
# come from the library that PyTorch has loaded, so that both share their threads.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
# Compiling takes some ten seconds; a compiler that takes longer than this hangs.
LIMIT_S = 900


class UnavailableError(OSError):
    """The kernels cannot be used on this machine; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An instruction set.

    Attributes:
        name: of the set, and part of the names of its files.
        machine: the architecture, as `platform.machine()` calls it.
        flags: of the compiler.
        features: what the CPU must have, in the words of `torch.cpu.get_capabilities`.
    """

    name: str
    machine: str
    flags: tuple[str, ...]
    features: frozenset[str]


_V2 = frozenset({"sse3", "ssse3", "sse4_1", "sse4_2", "popcnt"})
_V3 = _V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma3", "lzcnt"}
_V4 = _V3 | {"avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl"}


def _x86(name: str, flags: tuple[str, ...], features: frozenset[str]) -> Variant:
    return Variant(name=name, machine="x86_64", flags=flags, features=features)


# The best variant of each architecture comes first.
VARIANTS = {
    variant.name: variant
    for variant in (
        _x86("x86-64-v4-bf16", ("-march=x86-64-v4", "-mavx512bf16"), _V4 | {"avx512_bf16"}),
        _x86("x86-64-v4", ("-march=x86-64-v4",), _V4),
        _x86("x86-64-v3", ("-march=x86-64-v3",), _V3),
        _x86("x86-64-v2", ("-march=x86-64-v2",), _V2),
        Variant(name="aarch64", machine="aarch64", flags=("-march=armv8-a",), features=frozenset()),
    )
}


def variants_of(machine: str) -> list[Variant]:
    """Return the variants of an architecture, the best first."""
    return [variant for variant in VARIANTS.values() if variant.machine == machine]


def sources() -> list[Path]:
    """Return the C files, without their headers."""
    return sorted(SOURCE.glob("*.c"))


@cache
def sources_hash() -> str:
    """Return a checksum of the C files and of the flags that all variants share."""
    texts = [path.read_bytes() for path in sorted(SOURCE.glob("*.[ch]"))]
    return hashlib.sha256(b"\0".join([*texts, *map(str.encode, FLAGS)])).hexdigest()


def checksum(library: Path) -> str:
    """Return the checksum of a library's file."""
    return hashlib.sha256(library.read_bytes()).hexdigest()


def record(library: Path) -> dict[str, str]:
    """Return what is kept beside a library: its checksum and that of its sources."""
    return {"sha256": checksum(library), "sources": sources_hash()}


def find_compiler(environment: Mapping[str, str], *, may_be_clang: bool) -> tuple[str, ...]:
    """Return the command of a C compiler: `CC` if it is set, otherwise the first suitable one on the path.

    Args:
        environment: where `CC` is looked up.
        may_be_clang: whether Clang is suitable. Its code needs Clang's OpenMP library, GCC's code runs on every one.

    Raises:
        UnavailableError: there is none.
    """
    try:
        wanted = shlex.split(environment.get("CC", ""))
    except ValueError as error:
        raise UnavailableError(f"CC={environment['CC']!r} is not a command ({error}); set CC=gcc") from error
    candidates = [tuple(wanted)] if wanted else [(name,) for name in COMPILERS]
    found = [command for command in candidates if shutil.which(command[0])]
    if not found:
        names = ", ".join(" ".join(command) for command in candidates)
        raise UnavailableError(f"no C compiler was found ({names}); install gcc, or set CC")
    suitable = [command for command in found if may_be_clang or not _is_clang(command)]
    if not suitable:
        raise UnavailableError(f"{' '.join(found[0])} is Clang, whose OpenMP library PyTorch does not use; set CC=gcc")
    return suitable[0]


def compile_variant(variant: Variant, compiler: tuple[str, ...], output: Path, more_flags: Iterable[str] = ()) -> None:
    """Compile the sources to a shared library.

    Raises:
        UnavailableError: the compiler fails; the text has its first error.
        OSError: there is no temporary folder, or `output` cannot be written.
    """
    flags = (*FLAGS, *variant.flags, *more_flags)
    with tempfile.TemporaryDirectory() as folder:
        objects = {source: str(Path(folder) / f"{source.stem}.o") for source in sources()}
        commands = [[*compiler, *flags, "-c", str(source), "-o", target] for source, target in objects.items()]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(run, commands))
        library = Path(folder) / "kernels.so"
        run([*compiler, "-shared", *variant.flags, *more_flags, *objects.values(), "-o", str(library), "-lm"])
        if not library.is_file() or library.stat().st_size == 0:
            raise UnavailableError(f"{' '.join(compiler)} wrote no library; set CC to a working compiler, such as gcc")
        shutil.copyfile(library, output)


def run(command: list[str]) -> str:
    """Run a compiler and return what it prints.

    Raises:
        UnavailableError: it fails, cannot be started or hangs.
    """
    try:
        # In a process group of its own, so that a hanging compiler ends together with its children.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    try:
        output, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise UnavailableError(f"{command[0]} did not end within {LIMIT_S} s; set CC to another compiler") from error
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else f"status {process.returncode}")
        raise UnavailableError(f"{command[0]} failed: {first}")
    return output.decode(errors="replace")


def _is_clang(compiler: tuple[str, ...]) -> bool:
    return "__clang__" in run([*compiler, "-dM", "-E", "-x", "c", os.devnull])
