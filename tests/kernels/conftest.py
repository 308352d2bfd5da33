"""The compiled library as this CPU has it, and as CPUs with narrower vectors would."""

import ctypes
import platform

import pytest
import torch

from globalvit.kernels.native import dense, library

NARROWER = ["x86-64-v3", pytest.param("x86-64", marks=pytest.mark.slow)] if platform.machine() == "x86_64" else []


def build_for(cpu, monkeypatch, tmp_path_factory):
    """Have the library as another CPU would; as it is here for `native`."""
    if cpu == "native":
        return
    # What vectors hold does not depend on how hard the compiler tries.
    flags = (*library.FLAGS, "-O1", f"-march={cpu}")
    file = library._built(tmp_path_factory.getbasetemp() / "kernels" / f"{cpu}.so", library._compiler(), flags)
    monkeypatch.setattr(library, "load", lambda: ctypes.CDLL(str(file)))


@pytest.fixture(params=["native", *NARROWER])
def vectors(request, monkeypatch, tmp_path_factory):
    """The library as it is here, and as a CPU with narrower vectors would have it."""
    build_for(request.param, monkeypatch, tmp_path_factory)


@pytest.fixture(params=["fp32", "bf16", *NARROWER])
def dtype(request, monkeypatch, tmp_path_factory):
    """float32 and bfloat16 here, and float32 with narrower vectors."""
    if request.param == "bf16":
        if not dense.computes(torch.bfloat16):
            pytest.skip("this CPU has no dot products of bfloat16, or faster ones of oneDNN")
        return torch.bfloat16
    build_for("native" if request.param == "fp32" else request.param, monkeypatch, tmp_path_factory)
    return torch.float32
