"""The wheel: its kernels are compiled for every instruction set and work where there is no compiler."""

import importlib.util
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from globalvit.kernels.cpu import variants

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels for other systems have no kernels")


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_cannot_be_compiled_is_left_out(hook, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    warnings = []
    assert hook.compile_all(variants, tmp_path, warnings.append) == []
    names = [variant.name for variant in variants.variants_of(platform.machine())]
    reason = "no C compiler was found (no-such-compiler); install gcc, or set CC"
    assert warnings == [f"the wheel has no C kernels for {name}: {reason}" for name in names]


@pytest.mark.parametrize(("symbols", "system"), [("GLIBC_2.2.5 GLIBC_2.28", "manylinux_2_28"), ("GLIBC_2.34", "linux")])
def test_the_tag_says_which_systems_have_every_symbol(hook, tmp_path, symbols, system):
    (tmp_path / "one.so").write_text(symbols)
    assert hook.platform_tag([tmp_path / "one.so"]) == f"{system}_{platform.machine()}"


@pytest.mark.slow
def test_an_unpacked_wheel_needs_no_compiler(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.search(rf"-py3-none-(manylinux_2_28|linux)_{platform.machine()}\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
        found = {Path(name).stem for name in files.namelist() if name.endswith(".so")}
    assert found == {variant.name for variant in variants.variants_of(platform.machine())}
    script = "from globalvit.kernels.cpu import library; print(library.__file__, library.loaded().origin)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PATH": str(tmp_path), "CC": ""}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert printed == f"{tmp_path}/site/globalvit/kernels/cpu/library.py part of the package\n"
