"""Devices and precisions: what `auto` chooses, what is refused, and the warning about emulation."""

import logging

import pytest
import torch

from globalvit import hardware
from globalvit.hardware import autocast, choose_device, choose_precision, native_bf16

CPU_FEATURES = {
    "AVX2 only": ({"avx2": True, "avx512_bf16": False}, None),
    "AVX-512 without bfloat16": ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, None),
    "AVX512-BF16": ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, "AVX512-BF16"),
    "AMX": ({"avx512_bf16": True, "amx_bf16": True}, "AMX-BF16"),
    "Arm without bfloat16": ({"neon": True, "bf16": False}, None),
    "Arm BF16": ({"neon": True, "bf16": True, "sve_max_length": 16}, "Arm BF16"),
}


@pytest.fixture
def cpu(monkeypatch):
    """A function that makes PyTorch report these CPU features."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(hardware, "_warned", set())
    return lambda features: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes PyTorch report an NVIDIA GPU with or without bfloat16."""

    def report(has_bf16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)

    return report


@pytest.mark.parametrize(("features", "found"), CPU_FEATURES.values(), ids=CPU_FEATURES)
def test_auto_takes_bf16_on_cpus_that_multiply_it(cpu, features, found):
    cpu(features)
    assert native_bf16("cpu") == found
    assert choose_precision("auto", "cpu").name == ("bf16" if found else "fp32")


@pytest.mark.parametrize(("limit", "chosen"), [("AVX2", "fp32"), ("AVX512_CORE", "fp32"), ("AVX512_CORE_BF16", "bf16")])
def test_limits_on_onednn_count(cpu, monkeypatch, limit, chosen):
    cpu({"avx512_bf16": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_precision("auto", "cpu").name == chosen


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_what_it_has(gpu, has_bf16, chosen):
    gpu(has_bf16)
    assert choose_precision("auto", "cuda").name == chosen
    assert choose_device("auto") == "cuda"


def test_auto_on_an_apple_gpu_is_fp32():
    assert choose_precision("auto", "mps").name == "fp32"


def test_an_emulated_precision_works_and_is_warned_of_once(cpu, caplog):
    cpu({"avx2": True})
    with caplog.at_level(logging.WARNING):
        assert [choose_precision("bf16", "cpu").is_native for _ in range(2)] == [False, False]
    (record,) = caplog.records
    assert "bf16 is emulated on this CPU: a product took" in record.getMessage()
    assert "times as long as in fp32; use --precision auto" in record.getMessage()


def test_precisions_that_a_device_does_not_have_are_refused():
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU, and the device is cpu; use --precision auto"):
        choose_precision("fp16", "cpu")
    with pytest.raises(ValueError, match="precision=tf32 needs an NVIDIA GPU since Ampere, and the device is cpu; use"):
        choose_precision("tf32", "cpu")


@pytest.mark.parametrize(("device", "name"), [("cuda", "NVIDIA GPU"), ("mps", "Apple GPU")])
def test_devices_that_are_not_here_are_refused(monkeypatch, device, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    words = f"device={device}, but PyTorch finds no {name} here; use --device cpu or auto"
    with pytest.raises(ValueError, match=words):
        choose_device(device)
    assert choose_device("auto") == "cpu"


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match="device='tpu': expected auto, cpu, cuda, mps"):
        choose_device("tpu")


def test_autocast_computes_products_in_the_precision():
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast("cpu", precision):
            assert (a @ a).dtype == dtype


@pytest.mark.parametrize(("precision", "is_short"), [("fp32", False), ("tf32", True)])
def test_float32_on_a_gpu_is_float32_unless_tf32_is_asked_for(precision, is_short):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with autocast("cuda", precision):
        assert torch.backends.cudnn.allow_tf32 is is_short
        assert torch.get_float32_matmul_precision() == ("high" if is_short else "highest")
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
