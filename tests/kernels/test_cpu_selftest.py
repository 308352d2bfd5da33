"""Kernels that compute something wrong, or fail, are not used."""

import logging

import pytest
import torch

from globalvit.build import create_model
from globalvit.kernels.cpu import selftest
from globalvit.models import ops
from globalvit.models.ops import Implementation


@pytest.fixture(autouse=True)
def _untested():
    selftest.faults.cache_clear()
    yield
    selftest.faults.cache_clear()


def crash(*_, **__):
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize("kind", ["differs", "fails"])
def test_pytorch_computes_instead(monkeypatch, caplog, kind):
    model, images = create_model("gcvit_xxtiny").eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), ops.set_kernels("torch"):
        wanted = model(images)
    calls = []
    whole = ops.norm_mlp.implementations["c"]

    def run(*args):
        calls.append(args)
        return crash() if kind == "fails" else whole.run(*args) * 1.001

    monkeypatch.setitem(ops.norm_mlp.implementations, "c", Implementation(whole.accepts, run))
    with caplog.at_level(logging.WARNING), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)
    tested = len(calls)
    with torch.no_grad():
        model(images)
    assert len(calls) == tested
    words = "it fails with RuntimeError('no such instruction')" if kind == "fails" else "it differs from PyTorch by "
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith(f"the C kernel of norm_mlp is not used: {words}")
    assert messages[0].endswith("; see globalvit doctor")


def test_the_kernels_of_this_machine_pass():
    assert selftest.faults() == {}
