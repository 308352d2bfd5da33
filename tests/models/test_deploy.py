"""Deployed tasks answer as the models they came from; what the contract of backbones does not see."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import globalvit as gv
from globalvit.kernels.native import library
from globalvit.models import deploy as deploying
from globalvit.models.packed import PackedBlock


@pytest.mark.parametrize(
    "name", ["gcvit_xxtiny", "gpvit_l1", "gpvit_l1_upernet", "gcvit_xxtiny_segformer", "gpvit_l1_retinanet"]
)
def test_tasks_are_deployed_whole(name):
    model = gv.create_model(name, num_classes=3, image_size=64).eval()
    images = torch.randn(2, 3, 64, 96)
    deployed = model.deploy()
    with torch.inference_mode():
        ours, exact = flat(deployed(images)), flat(model(images))
    for got, wanted in zip(ours, exact, strict=True):
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1e-3)
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert not deployed.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_grids_that_windows_do_not_divide_are_deployed_too():
    model = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=64, window=(3, 3, 2, 1)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    images = torch.randn(1, 3, 70, 45)
    with torch.inference_mode():
        exact = model(images)
        assert (model.deploy()(images) - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_without_onednn_or_a_compiler_what_can_be_folded_is(monkeypatch):
    monkeypatch.setattr(library, "unavailable", lambda: "no C compiler")
    monkeypatch.setattr(deploying, "can_pack", lambda parameter: False)  # noqa: ARG005
    model = gv.create_model("gpvit_l1", num_classes=3).eval()
    deployed, images = model.deploy(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(deployed(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in deployed.modules())


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_blocks_are_onednns_where_the_library_leaves_them_alone(name, monkeypatch):
    monkeypatch.setattr(deploying.dense, "computes", lambda dtype: False)  # noqa: ARG005
    model, images = gv.create_model(name, num_classes=3, image_size=64).eval(), torch.randn(2, 3, 64, 96)
    deployed = model.deploy()
    assert any(isinstance(module, PackedBlock) for module in deployed.modules())
    with torch.inference_mode():
        exact = model(images)
        assert (deployed(images) - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_another_dtype_is_refused():
    deployed = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=64).deploy()
    words = "bfloat16 came to a model that was deployed for float32; give it float32 images outside autocast, or deploy"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=words):
        deployed(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_no_image_gives_no_answer(name):
    deployed = gv.create_model(name, num_classes=3, image_size=64).deploy()
    with torch.inference_mode():
        assert deployed(torch.zeros(0, 3, 64, 64)).shape == (0, 3)


def test_gradients_need_not_be_switched_off():
    deployed, images = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=64).deploy(), torch.randn(2, 3, 70, 64)
    logits = deployed(images)
    assert not logits.requires_grad
    with torch.inference_mode():
        assert torch.equal(deployed(images), logits)


def test_operations_of_a_deployed_copy_are_counted():
    model = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=64).eval()
    counts = []
    for one in (model, model.deploy()):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            one(torch.zeros(1, 3, 64, 64))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def flat(maps):
    """The tensors of logits or of a dict of lists of maps."""
    if isinstance(maps, torch.Tensor):
        return [maps]
    return [x for value in (maps.values() if isinstance(maps, dict) else maps) for x in flat(value)]
