"""What is said of the machine, and that float32 is float32."""

import pytest
import torch

from globalvit.benchmark import machine, memory
from globalvit.models import ops


def test_the_machine_is_described():
    about = machine.describe("cpu")
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__.partition("+")[0]
    line = machine.in_a_line(about)
    assert about["cpu"] in line
    assert f"torch {about['torch']}" in line
    with ops.set_kernels("torch"):
        assert machine.describe("cpu")["kernels"] == "torch"


def test_settings_are_what_they_were_afterwards():
    torch.set_float32_matmul_precision("medium")
    threads = torch.get_num_threads()
    with machine.computing("cpu", threads + 1):
        assert torch.get_num_threads() == threads + 1
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")


def test_products_in_reduced_precision_are_refused(monkeypatch):
    exact = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, _: exact(exact(x, torch.bfloat16), torch.float32))
    with pytest.raises(ValueError, match=r"float32 products on cpu err by .*unset what switches that on"):
        machine.check_float32("cpu")


@pytest.mark.skipif(not memory.PEAK_RESET.exists(), reason="Linux alone tells")
def test_the_memory_of_a_run_is_what_it_adds_at_its_highest():
    def run():
        # Small enough that the C library may keep it for later.
        torch.ones(2**22)
        torch.ones(2**25)

    assert 0.98 * 2**27 <= memory.run_bytes(run, "cpu") < 1.2 * 2**27
