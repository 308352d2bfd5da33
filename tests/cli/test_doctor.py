"""`globalvit doctor`: healthy machines, machines that miss something, and kernels that compute something wrong."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from globalvit import doctor, hardware
from globalvit.cli.main import main
from globalvit.kernels.cpu import library, selftest
from globalvit.models import ops
from globalvit.models.ops import Implementation


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(doctor, "SIDE", 14)
    monkeypatch.setattr(doctor, "DIM", 64)
    monkeypatch.setattr(doctor, "IMAGES", 1)
    monkeypatch.setattr(doctor, "REPEATS", 1)
    monkeypatch.setattr(doctor, "MODELS", ())


@pytest.fixture
def _untested():
    """The kernels are compared with PyTorch again, in this test and after it."""
    selftest.faults.cache_clear()
    yield
    selftest.faults.cache_clear()


def examined(capsys):
    status = main(["doctor", "--json"])
    return status, json.loads(capsys.readouterr().out)


def replace(monkeypatch, operation, run):
    whole = operation.implementations["c"]
    monkeypatch.setitem(
        operation.implementations, "c", Implementation(whole.accepts, lambda *args, **kw: run(whole.run(*args, **kw)))
    )


def fail(_):
    raise RuntimeError("no such instruction")


def test_a_healthy_machine(capsys):
    status, report = examined(capsys)
    assert status == 0
    assert report["problems"] == []
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["kernels"]["c"]["variant"] == library.choose_variant().name
    assert report["precision"]["cpu"]["name"] == hardware.choose_precision("auto", "cpu").name
    assert {one["name"].split(",")[0] for one in report["verdicts"]} == {
        operation.__name__
        for operation in vars(ops).values()
        if isinstance(operation, ops.Operation) and operation.implementations
    }
    assert all(one["is_right"] and one["is_used"] and one["seconds"] > 0 for one in report["verdicts"])


@pytest.mark.usefixtures("_untested")
@pytest.mark.parametrize(
    ("run", "text"),
    [
        (lambda out: out + 1e-3, "gives wrong results (it differs from float64 by "),
        (lambda out: out * float("nan"), "wrong results (it differs from float64 by inf, expected at most 1e-05)"),
        (fail, "gives wrong results (RuntimeError: no such instruction)"),
    ],
    ids=["differs", "not a number", "fails"],
)
def test_a_wrong_kernel_is_reported_and_not_used(monkeypatch, capsys, caplog, run, text):
    replace(monkeypatch, ops.norm_mlp, run)
    with caplog.at_level(logging.WARNING):
        assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert text in " ".join(out.split())
    assert "the c kernel of norm_mlp, training in float32" in out
    assert "it is not used" in out
    assert "WRONG" in out
    assert "everything works" not in out
    assert "the C kernel of norm_mlp is not used: it " in caplog.text


@pytest.mark.usefixtures("_untested")
def test_without_kernels_it_says_what_is_missing(monkeypatch, capsys):
    reason = "no C compiler was found (cc, gcc, clang); install gcc, or set CC"
    monkeypatch.setattr(ops, "unavailable", lambda _: reason)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"c kernels       not used: {reason}" in out
    assert "note: the C kernels are not used, which reduces speed: no C compiler was found" in out
    assert "everything works" in out


def test_little_shared_memory_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_memory", lambda: {"total": 8 * 2**30, "available": 2**30, "shared": 2**26})
    assert main(["doctor"]) == 0
    words = "note: /dev/shm has 0.06 GiB; data loading workers may need more (docker run --shm-size 8g)"
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_gpu_is_described(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA H200", 141 * 2**30, 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert doctor._gpu(0) | {"cuda": ""} == {
        "name": "NVIDIA H200",
        "memory": 141 * 2**30,
        "capability": "9.0",
        "cuda": "",
    }


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def run_doctor(**environment):
    """Run the command itself, in the shape of a user's shell."""
    command = [sys.executable, "-m", "globalvit", "doctor", "--json"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(library.choose_variant().name != "x86-64-v4-bf16", reason="emulates AVX2 on AVX-512")
def test_avx2_is_respected():
    status, report, _ = run_doctor(**AVX2)
    assert status == 0
    assert report["precision"]["cpu"]["name"] == "fp32"
    assert report["kernels"]["c"]["variant"] == "x86-64-v3"
    assert report["cpu"]["limits"]["ATEN_CPU_CAPABILITY"] == "avx2"
    assert {one["dtype"] for one in report["verdicts"]} == {"float32"}


@pytest.mark.slow
def test_no_compiler_costs_speed_only(tmp_path):
    status, report, errors = run_doctor(PATH=str(tmp_path), CC="", XDG_CACHE_HOME=str(tmp_path))
    assert status == 0
    assert not report["kernels"]["c"]["is_available"]
    assert "no C compiler was found" in report["notes"][0]
    assert "no C compiler was found" in errors


@pytest.mark.slow
def test_a_damaged_cache_is_repaired(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    run_doctor(**environment)
    (path,) = (tmp_path / "globalvit").glob("*.so")
    path.write_bytes(path.read_bytes()[:5000])
    status, report, errors = run_doctor(**environment)
    assert (status, report["problems"]) == (0, [])
    assert "is damaged or belongs to another user; it is compiled again" in errors


@pytest.mark.slow
def test_c_code_that_computes_something_else_is_found(tmp_path):
    """A GELU that is off by a thousandth, in a copy of the sources."""
    script = f"""
import shutil, sys
from pathlib import Path
from globalvit.kernels.cpu import variants
folder = Path({str(tmp_path)!r}) / "source"
shutil.copytree(variants.SOURCE, folder)
variants.SOURCE = folder
header = folder / "vectors.h"
changed = header.read_text().replace("0.707106781f", "0.708f")
assert changed != header.read_text()
header.write_text(changed)
from globalvit.cli.main import main
sys.exit(main(["doctor", "--json"]))
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    wrong = [one for one in report["verdicts"] if not one["is_right"]]
    assert wrong
    assert not any(one["is_used"] for one in wrong if "deployed" not in one["name"])
    assert all(one["is_right"] for one in report["verdicts"] if "deployed" in one["name"])
