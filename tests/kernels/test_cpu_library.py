"""Building, checking and loading the C kernels: damage, strangers, several processes, missing parts of the system."""

import ctypes
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from globalvit.kernels.cpu import library, structs, variants
from globalvit.kernels.cpu.variants import VARIANTS, UnavailableError

# A library with every symbol, quick to compile.
STUB = "#include <stdint.h>\n" + "\n".join(
    [f"void {name}(void) {{}}" for name in structs.FUNCTIONS if name != "has_pairs"]
    + ["int has_pairs(void) { return NUMBER; }"]
    + [f"const int64_t size_of_{name} = {ctypes.sizeof(kind)};" for name, kind in structs.STRUCTURES.items()]
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Sources that compile at once, and a function that changes them: `has_pairs` then returns another number."""
    folder = tmp_path / "source"
    folder.mkdir()
    monkeypatch.setattr(variants, "SOURCE", folder)
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "none")

    def write(number):
        variants.sources_hash.cache_clear()
        (folder / "stub.c").write_text(STUB.replace("NUMBER", str(number)))

    write(1)
    yield write
    variants.sources_hash.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "globalvit"


def number_of(found):
    return found.handle.has_pairs()


def files(folder):
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


def test_a_library_is_built_once_and_again_for_other_sources(sources, cache):
    for number in (1, 2):
        sources(number)
        assert [number_of(library.find()) for _ in range(2)] == [number, number]
    assert files(cache) == [".json", ".json", ".so", ".so"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in cache.glob("*.so"))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[:1000] + bytes(5000)),
    "empty": lambda path: path.write_bytes(b""),
    "no checksum": lambda path: path.with_suffix(".json").unlink(),
    "checksum of nothing": lambda path: path.with_suffix(".json").write_text("[]"),
    "writable by others": lambda path: path.chmod(0o622),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_is_built_again(sources, cache, damage, caplog, monkeypatch, tmp_path):
    library.find()
    # A copy, because the library itself is in use here.
    shutil.copytree(cache, tmp_path / "copy" / "globalvit")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copy"))
    (path,) = (tmp_path / "copy" / "globalvit").glob("*.so")
    whole = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert number_of(library.find()) == 1
    assert len(path.read_bytes()) == len(whole)
    assert "is damaged or belongs to another user; it is compiled again" in caplog.text


def test_a_link_in_the_cache_is_not_followed(sources, cache, tmp_path):
    library.find()
    (path,) = cache.glob("*.so")
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")
    library.find()
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_that_others_can_write_is_not_used(sources, cache, mode, caplog):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    with caplog.at_level(logging.WARNING):
        found = library.find()
    assert number_of(found) == 1
    assert found.origin.endswith("for this process only")
    assert list(cache.iterdir()) == []
    words = "every process compiles the C kernels again: .* can be written by others; set XDG_CACHE_HOME to a folder"
    assert re.search(words, caplog.text)


def test_a_relative_cache_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.cache_folder() == tmp_path / ".cache" / "globalvit"


def test_without_a_home_folder_each_process_compiles(sources, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert library.find().origin.endswith("for this process only")


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_of_many_threads_one_compiles(sources, cache, monkeypatch):
    built, compile_variant = [], variants.compile_variant

    def count(*args):
        built.append(args)
        compile_variant(*args)

    monkeypatch.setattr(variants, "compile_variant", count)
    threads = [threading.Thread(target=library.find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


BAD_COMPILERS = {
    "no-such-compiler": r"no C compiler was found \(no-such-compiler\); install gcc, or set CC",
    "false": "false failed: status 1",
    'gcc "': r"CC='gcc \"' is not a command \(No closing quotation\); set CC=gcc",
    "true": "true wrote no library; set CC to a working compiler, such as gcc",
}


@pytest.mark.parametrize(
    ("compiler", "words"), BAD_COMPILERS.items(), ids=["missing", "failing", "unbalanced", "silent"]
)
def test_a_bad_compiler_is_named(sources, cache, monkeypatch, compiler, words):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(UnavailableError, match=words):
        library.find()
    assert not list(cache.glob("*.so"))


def test_a_compiler_may_be_several_words(sources, cache, monkeypatch):
    monkeypatch.setenv("CC", "env cc")
    assert number_of(library.find()) == 1


def test_clang_is_refused_beside_gccs_openmp(sources, cache, tmp_path, monkeypatch):
    clang = tmp_path / "clang"
    clang.write_text("#!/bin/sh\necho '#define __clang__ 1'\n")
    clang.chmod(0o755)
    monkeypatch.setenv("CC", str(clang))
    with pytest.raises(
        UnavailableError, match=r"clang is Clang, whose OpenMP library PyTorch does not use; set CC=gcc"
    ):
        library.find()


def test_a_compiler_may_speak_any_encoding(sources, cache, tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'stub.c: error: \\351t\\351' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(UnavailableError, match=r"failed: stub\.c: error: �t�"):
        variants.run([str(compiler)])


def test_a_hanging_compiler_ends_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(variants, "LIMIT_S", 0.5)
    pid = tmp_path / "pid"
    with pytest.raises(UnavailableError, match=r"sh did not end within 0\.5 s; set CC to another compiler"):
        variants.run(["sh", "-c", f"sleep 60 & echo $! > {pid}; wait"])
    # The signal takes a moment.
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < deadline:
        if psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    assert time.monotonic() < deadline


def test_another_layout_is_refused(sources, cache):
    sources(1)
    path = variants.SOURCE / "stub.c"
    size = ctypes.sizeof(structs.Chain)
    path.write_text(path.read_text().replace(f"size_of_chain = {size}", f"size_of_chain = {size + 8}"))
    variants.sources_hash.cache_clear()
    with pytest.raises(UnavailableError, match=rf"has another layout of `chain` \({size + 8} bytes\); remove the file"):
        library.find()


def test_a_prebuilt_library_is_used_if_it_is_intact(sources, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "prebuilt")
    variant = library.choose_variant()
    path = tmp_path / "prebuilt" / f"{variant.name}.so"
    path.parent.mkdir()
    variants.compile_variant(variant, ("cc",), path)
    path.with_suffix(".json").write_text(json.dumps(variants.record(path)))
    assert library.find().origin == "part of the package"
    monkeypatch.setenv("CC", "no-such-compiler")
    assert library.find().origin == "part of the package"
    damaged = path.read_bytes()[:2000]
    path.unlink()
    path.write_bytes(damaged)
    with pytest.raises(UnavailableError, match="no C compiler was found"):
        library.find()


CPUS = {
    "x86-64-v2": {"sse3", "ssse3", "sse4_1", "sse4_2", "popcnt"},
    "x86-64-v3": VARIANTS["x86-64-v3"].features,
    "x86-64-v4": VARIANTS["x86-64-v4"].features,
    "x86-64-v4-bf16": VARIANTS["x86-64-v4-bf16"].features | {"amx_bf16"},
}


@pytest.fixture
def cpu(monkeypatch):
    """A function that makes the machine have this architecture and these features."""
    for name in (library.LEVEL, "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)

    def become(features, machine="x86_64"):
        monkeypatch.setattr(library, "cpu_features", lambda: frozenset(features))
        monkeypatch.setattr(library.platform, "machine", lambda: machine)

    return become


@pytest.mark.parametrize("name", CPUS)
def test_a_cpu_gets_the_best_variant_that_it_runs(cpu, name):
    cpu(CPUS[name])
    assert library.choose_variant().name == name


def test_arm_has_a_variant_and_other_cpus_have_none(cpu):
    cpu({"neon"}, "aarch64")
    assert library.choose_variant().name == "aarch64"
    for features, machine in ((set(), "riscv64"), ({"sse3"}, "x86_64")):
        cpu(features, machine)
        with pytest.raises(UnavailableError, match=rf"there are no C kernels for this CPU \({machine}\)"):
            library.choose_variant()


@pytest.mark.parametrize(
    ("limit", "name"), [("default", "x86-64-v2"), ("avx2", "x86-64-v3"), ("avx512", "x86-64-v4-bf16")]
)
def test_pytorchs_own_limit_holds(cpu, monkeypatch, limit, name):
    cpu(CPUS["x86-64-v4-bf16"])
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", limit)
    assert library.choose_variant().name == name


def test_a_variant_can_be_forced_if_the_cpu_runs_it(cpu, monkeypatch):
    cpu(CPUS["x86-64-v3"])
    monkeypatch.setenv(library.LEVEL, "x86-64-v2")
    assert library.choose_variant().name == "x86-64-v2"
    for name in ("x86-64-v4", "avx2"):
        monkeypatch.setenv(library.LEVEL, name)
        words = rf"GLOBALVIT_CPU_LEVEL={name}: expected an instruction set that this CPU has \(x86-64-v3, x86-64-v2\)"
        with pytest.raises(UnavailableError, match=words):
            library.choose_variant()


def test_openmp_is_pytorchs():
    loaded = {
        Path(line.split()[-1]).resolve() for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line
    }
    assert len({path for path in loaded if path.name.startswith(("libgomp", "libomp", "libiomp"))}) == 1


# Each forward pass must work, whatever is missing.
ENVIRONMENT = """
import logging, os, sys
{setup}
import torch
import globalvit as gv
logging.basicConfig()
model = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=32).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(1, 3, 32, 32)).shape), tuple(model.deploy()(torch.zeros(1, 3, 32, 32)).shape))
model.train()(torch.zeros(2, 3, 32, 32)).sum().backward()
"""
SETUPS = {
    "no home": "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    "for name in ('HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\nos.environ['CC'] = 'false'",
    "no temporary folder": "import tempfile\ndef none(*_, **__): raise FileNotFoundError('no temporary directory')\n"
    "tempfile.gettempdir = tempfile._get_default_tempdir = none\nos.environ['XDG_CACHE_HOME'] = '/proc/nowhere'",
    "no /proc": "from pathlib import Path\nread = Path.read_text\n"
    "def read_text(self, *a, **k):\n    if str(self).startswith('/proc'): raise FileNotFoundError(str(self))\n"
    "    return read(self, *a, **k)\nPath.read_text = read_text",
    "another system": "import torch\nsys.platform = 'darwin'",
}


@pytest.mark.parametrize("setup", SETUPS)
def test_whatever_is_missing_models_run(setup, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT.format(setup=SETUPS[setup])],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 3) (1, 3)"
    warned = done.stderr.count("the c kernels cannot be used, PyTorch's operators compute instead")
    assert warned == (0 if setup == "another system" else 1), done.stderr


def test_a_pytorch_without_the_private_names_is_named(monkeypatch):
    from globalvit import pytorch
    from globalvit.kernels.cpu import register

    monkeypatch.setattr(pytorch, "missing", lambda: "torch._C.gone")
    assert register.unavailable() == f"PyTorch {torch.__version__} has no torch._C.gone, which the C kernels need"


def test_the_record_beside_a_library_tells_its_content(sources, cache):
    library.find()
    (record,) = cache.glob("*.json")
    assert json.loads(record.read_text()).keys() == {"sha256", "sources"}
