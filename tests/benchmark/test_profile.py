"""Kinds of operation, floors, and the account of what moves."""

from types import SimpleNamespace

import pytest
import torch

from globalvit.benchmark.operators import KINDS, kind_of
from globalvit.benchmark.profile import Traffic, by_kind, profile, work_of
from globalvit.benchmark.roofline import Rates, Work, floor_seconds, product_limit
from globalvit.benchmark.steps import make_step
from globalvit.build import create_model

NAMES = {
    "linear": ["aten::addmm", "aten::mm", "aten::linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"],
    "attention products": [
        *["aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_flash_attention_for_cpu"],
        *["globalvit::triton_window_attention", "globalvit::native_stripes", "globalvit::native_windows_backward"],
        *["globalvit::window_attention", "aten::_scaled_dot_product_efficient_attention_backward"],
    ],
    "softmax": ["aten::_softmax", "aten::_softmax_backward_data", "aten::_log_softmax"],
    "convolution": ["aten::convolution_backward", "aten::mkldnn_convolution", "aten::_conv_depthwise2d"],
    "norm": ["aten::native_layer_norm", "aten::native_layer_norm_backward", "aten::native_batch_norm"],
    "GELU": ["aten::gelu", "aten::gelu_backward"],
    "copies": ["aten::copy_", "aten::_to_copy", "aten::clone", "aten::constant_pad_nd", "aten::cat"],
    "elementwise": ["aten::add.Tensor", "aten::mul_", "aten::sigmoid", "aten::sum.dim_IntList"],
    "optimizer": ["aten::_fused_adamw_", "aten::_foreach_add_.Scalar"],
    "compiled": ["triton_poi_fused_add_3", "graph_0_cpp_fused_add_gelu_native_layer_norm_7"],
    "outside torch": ["outside torch"],
    "rest": ["aten::max_pool2d_with_indices", "aten::empty", "aten::upsample_bicubic2d", "Optimizer.step#AdamW.step"],
}


@pytest.mark.parametrize(("kind", "names"), NAMES.items())
def test_operators_are_of_their_kind(kind, names):
    assert [kind_of(name) for name in names] == [kind] * len(names)
    assert kind in KINDS


def test_the_slower_of_products_and_memory_is_the_floor():
    rates = Rates(flops=1e12, bandwidth=1e11)
    assert floor_seconds("linear", Work(flops=2e12, bytes=1e11), rates) == 2
    assert floor_seconds("linear", Work(flops=1e11, bytes=4e11), rates) == 4
    assert floor_seconds("softmax", Work(flops=9e12, bytes=5e10), rates) == 0.5


def test_the_limit_counts_all_products_and_nothing_else():
    work = {"linear": Work(flops=6e9), "convolution": Work(flops=2e9), "softmax": Work(flops=1e12, bytes=1e12)}
    assert product_limit(work, Rates(flops=4e10, bandwidth=1.0), batch_size=8) == 40
    assert product_limit({"softmax": Work(bytes=1)}, Rates(1.0, 1.0), batch_size=8) is None


def event(key, *, cpu=0.0, gpu=0.0, device="CPU"):
    device_type = SimpleNamespace(name=device)
    return SimpleNamespace(key=key, self_cpu_time_total=cpu, self_device_time_total=gpu, device_type=device_type)


def test_times_are_summed_by_kind_largest_first():
    events = [event("aten::mm", cpu=3e6), event("aten::gelu", cpu=1e6), event("aten::addmm", cpu=2e6)]
    assert by_kind([*events, event("aten::view")], 2, is_gpu=False) == {"linear": 2.5, "GELU": 0.5}


def test_kernels_that_no_operator_owns_are_the_compilers():
    events = [event("aten::mm", cpu=9e6, gpu=3e6), event("cublas_gemm", gpu=3e6, device="CUDA")]
    assert by_kind([*events, event("triton_a", gpu=1e6, device="CUDA")], 1, is_gpu=True) == {"linear": 3, "compiled": 1}


def test_traffic_counts_inputs_and_outputs_but_no_views():
    x = torch.ones(10, 10)
    with Traffic() as traffic:
        y = x.t()[:5] + 1  # reads 5×10 of it
        y += 1  # reads and writes the same
        x[:1].expand(10, 10).clone()  # reads one row, writes ten
    assert traffic.bytes == {"elementwise": 4 * (50 + 50 + 50 + 50), "copies": 4 * (100 + 100)}


def test_the_work_of_a_linear_layer_is_known(make_cell):
    cell = make_cell(batch_size=5)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 7))
    work = work_of(make_step(network, cell, cell.entries[0], "cpu"))
    assert set(work) == {"linear"}
    assert work["linear"].flops == 2 * 5 * 3 * 32 * 32 * 7
    assert work["linear"].bytes == 4 * (5 * 3072 + 3072 * 7 + 7 + 5 * 7)


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_a_profile_says_where_the_time_goes(make_cell, toy, mode, monkeypatch):
    monkeypatch.setattr("globalvit.benchmark.profile.rates", lambda *_: Rates(flops=1e11, bandwidth=1e10))
    cell = make_cell(mode=mode)
    step = make_step(create_model(toy, image_size=32), cell, cell.entries[0], "cpu")
    made = profile(step, step)
    assert {"linear", "convolution", "norm", "GELU", "copies", "outside torch"} <= set(made.seconds)
    assert ("optimizer" in made.seconds) == (mode == "train")
    assert made.limit == pytest.approx(2 * 1e11 / sum(work.flops for work in made.work.values()))
    assert made.floors.keys() <= made.seconds.keys()
    assert set(made.to_dict()) >= {"ms", "floor_ms", "limit_images_per_second"}
