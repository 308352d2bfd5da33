"""Run the tests of the C kernels with GCC's sanitizers: `python benchmarks/sanitize.py [--only thread] [tests …]`.

`address` finds accesses outside of memory and undefined behavior, `thread` finds data races. AVX-512 is emulated lane
by lane, so that masked accesses are seen and a CPU with AVX2 is enough. Exits with status 1 if anything is found.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from globalvit.kernels.cpu import variants

HERE = Path(__file__).parent / "sanitizers"
ROOT = Path(__file__).parents[1]
TESTS = ("test_cpu_attention.py", "test_cpu_linear.py", "test_cpu_branch.py")
# What to compile with, the runtime to load before Python, and its settings.
SANITIZERS = {
    "address": (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fsanitize-address-use-after-scope"),
        "libasan.so",
        # Python and PyTorch keep memory until the process ends.
        {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    "thread": (
        ("-fsanitize=thread", "-Wl,-Bsymbolic"),
        "libtsan.so",
        {"TSAN_OPTIONS": "exitcode=66:ignore_noninstrumented_modules=1:report_signal_unsafe=0"},
    ),
}
EMULATED = (
    "-march=x86-64-v3",
    f"-I{HERE}",
    "-DGLOBALVIT_EMULATED",
    "-D__AVX512F__",
    "-D__AVX512BW__",
    "-D__AVX512VL__",
)
# Instruction set → flags that compile its code for a CPU with AVX2.
LEVELS = {
    "x86-64-v4-bf16": (*EMULATED, "-D__AVX512BF16__"),
    "x86-64-v4": EMULATED,
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v2": ("-march=x86-64-v2",),
}


def main() -> int:
    """Compile, run the tests once for every sanitizer and instruction set, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SANITIZERS, help="one sanitizer (default: both)")
    parser.add_argument("--level", choices=LEVELS, action="append", help="instruction set; repeatable (default: all)")
    parser.add_argument("tests", nargs="*", help="arguments for pytest (default: the tests of the C kernels)")
    options = parser.parse_args()
    assert platform.machine() == "x86_64", "the emulation is written for x86-64"
    tests = options.tests or [str(ROOT / "tests" / "kernels" / name) for name in TESTS]
    failed = []
    for sanitizer in [options.only] if options.only else SANITIZERS:
        with tempfile.TemporaryDirectory() as folder:
            for level in options.level or LEVELS:
                compile_level(sanitizer, level, Path(folder))
                print(f"== {sanitizer}, {level}", flush=True)
                if run_tests(sanitizer, level, Path(folder), tests):
                    failed.append(f"{sanitizer} with {level}")
    print("found: " + ", ".join(failed) if failed else "nothing found")
    return 1 if failed else 0


def compile_level(sanitizer: str, level: str, folder: Path) -> None:
    """Compile the kernels for an instruction set, and the record that the package expects beside them."""
    flags = ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS[sanitizer][0]]
    if sanitizer == "thread":
        openmp = folder / "openmp.o"
        variants.run(["gcc", *variants.FLAGS, *flags, "-c", str(HERE / "openmp.c"), "-o", str(openmp)])
        flags.append(str(openmp))
    variant = replace(variants.VARIANTS[level], flags=LEVELS[level])
    library = folder / f"{level}.so"
    variants.compile_variant(variant, ("gcc",), library, flags)
    library.with_suffix(".json").write_text(json.dumps(variants.record(library)))


def run_tests(sanitizer: str, level: str, folder: Path, tests: list[str]) -> int:
    """Run the tests in a process with the sanitizer's runtime; return its exit status."""
    _, runtime, settings = SANITIZERS[sanitizer]
    # C++'s library must be there when the sanitizer's runtime looks for exceptions.
    found = [variants.run(["gcc", f"-print-file-name={name}"]).strip() for name in (runtime, "libstdc++.so.6")]
    environment = os.environ | settings | {"SANITIZED": str(folder), "GLOBALVIT_CPU_LEVEL": level}
    environment["LD_PRELOAD"] = " ".join(found)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "plugin",
        "-n",
        "0",
        "--capture=sys",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    # ThreadSanitizer needs its usual addresses.
    return subprocess.run(["setarch", "-R", *command], env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
