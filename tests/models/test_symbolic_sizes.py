"""Graphs for any batch, height and width: torch.compile and torch.export bind none of them to an example's size."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

from globalvit.build import create_model
from globalvit.models import variants
from globalvit.models.windows import is_sure

TINY = {
    "gcvit_xxtiny": {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "width": 16},
    "gpvit_l1": {"width": 24},
}
HEADS = ("", "_upernet", "_segformer", "_mask_rcnn", "_retinanet")
SIZES = ((256, 256), (288, 320), (230, 397), (512, 384), (321, 257))
OTHERS = ((1, 64, 64), (3, 97, 131), (1, 224, 256))


@pytest.fixture
def tiny(monkeypatch):
    """Build a model whose backbone is made tiny."""

    def build(name):
        for backbone, smaller in TINY.items():
            monkeypatch.setitem(variants.VARIANTS, backbone, replace(variants.VARIANTS[backbone], **smaller))
        return create_model(name, num_classes=3).eval()

    return build


def outputs(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [x for maps in found.values() for x in maps]


def assert_near(found, expected):
    for ours, theirs in zip(outputs(found), outputs(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", TINY)
def test_compiled_takes_new_sizes_in_one_graph_without_a_compilation_for_each(backbone, head, tiny):
    model = tiny(backbone + head)
    counter = CompileCounterWithBackend("aot_eager_decomp_partition")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.inference_mode():
        for size in SIZES:
            images = torch.randn(2, 3, *size)
            assert_near(compiled(images), model(images))
    assert counter.frame_count <= 3


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", TINY)
def test_exported_takes_any_batch_and_size(backbone, head, tiny):
    model = tiny(backbone + head)
    axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(model, (torch.zeros(2, 3, 1541, 1861),), dynamic_shapes=(axes,))
    module = program.module(check_guards=False)
    with torch.inference_mode():
        for size in OTHERS:
            images = torch.randn(size[0], 3, *size[1:])
            assert_near(module(images), model(images))


def test_conditions_on_numbers_are_what_they_are():
    assert is_sure(True, True)
    assert not is_sure(True, False)
