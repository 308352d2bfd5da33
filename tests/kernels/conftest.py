"""The C kernels as this CPU runs them, and as CPUs with narrower vectors would."""

import platform
from functools import cache

import pytest
import torch

from globalvit.kernels.cpu import library, variants
from globalvit.kernels.cpu.linear import computes
from globalvit.models import ops

NATIVE = "native"


def narrower():
    """The variant below this CPU's own, and those below that as slow tests."""
    own, *below = [variant for variant in variants.variants_of(platform.machine()) if is_able(variant)]
    return [below[-1].name if own.name.startswith("x86-64-v3") else "x86-64-v3"] if below else []


def is_able(variant):
    from globalvit.hardware import cpu_features

    return variant.features <= cpu_features()


@cache
def handle_of(level):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.LEVEL, level)
        return library.find().handle


def use(level, monkeypatch):
    """Compute with the library of an instruction set, or with this CPU's own."""
    if level != NATIVE:
        handle = handle_of(level)
        monkeypatch.setattr(library, "load", lambda: handle)


@pytest.fixture(params=[NATIVE, *narrower()])
def vectors(request, monkeypatch):
    """This CPU's own vectors, and narrower ones."""
    use(request.param, monkeypatch)


@pytest.fixture(params=["fp32", "bf16", *narrower()])
def dtype(request, monkeypatch):
    """float32 and bfloat16 on this CPU, and float32 with narrower vectors."""
    if request.param == "bf16":
        if not computes(torch.bfloat16):
            pytest.skip("this CPU has no dot products of bfloat16, or oneDNN's are faster")
        return torch.bfloat16
    use(NATIVE if request.param == "fp32" else request.param, monkeypatch)
    return torch.float32


@pytest.fixture(autouse=True)
def _kernels():
    """The tests need the kernels: a machine without a compiler must not pass them by skipping."""
    assert ops.unavailable("c") is None
