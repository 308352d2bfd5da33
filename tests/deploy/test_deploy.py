"""Deployed copies answer as the models that they were made from, or say why they do not."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import globalvit as gv
from globalvit.deploy import deploying, kernel_parts, plain_parts
from globalvit.deploy.deploying import is_deployed
from globalvit.models.gcvit import Block
from globalvit.models.layers import Mlp

TASKS = ["gcvit_xxtiny", "gpvit_l1", "gpvit_l1_upernet", "gcvit_xxtiny_segformer", "gpvit_l1_retinanet"]


def build(name, **words):
    torch.manual_seed(0)
    return gv.create_model(name, num_classes=3, **({} if name == "gpvit_l1" else {"image_size": 64}) | words).eval()


def flat(maps):
    """The tensors of logits or of a dictionary of lists of maps."""
    if isinstance(maps, torch.Tensor):
        return [maps]
    return [x for value in (maps.values() if isinstance(maps, dict) else maps) for x in flat(value)]


def assert_near(ours, exact, bound=1e-5):
    for got, wanted in zip(flat(ours), flat(exact), strict=True):
        assert (got - wanted).abs().max() <= bound * wanted.abs().max().clamp_min(1e-3)


def parts_of(model):
    return [type(module) for module in model.modules() if isinstance(module, deploying.DeployedPart)]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_deployed_whole(name):
    model, images = build(name), torch.randn(2, 3, 64, 96)
    deployed = model.deploy()
    assert parts_of(deployed)
    with torch.inference_mode():
        assert_near(deployed(images), model(images))
    assert not any(parameter.requires_grad for parameter in deployed.parameters())
    assert not deployed.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not is_deployed(model)


def test_grids_that_windows_do_not_divide_are_deployed_too():
    model = build("gcvit_xxtiny", window=(3, 3, 2, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    images = torch.randn(1, 3, 70, 45)
    with torch.inference_mode():
        assert_near(model.deploy()(images), model(images))


# The kernels that are chosen, whether they and oneDNN's operators exist, and a part that the copy then has.
WAYS = {
    "C": ("auto", True, True, kernel_parts.KernelMlp),
    "oneDNN": ("auto", False, True, plain_parts.OneDNNBlock),
    "PyTorch": ("torch", True, True, None),
    "PyTorch without oneDNN": ("auto", False, False, None),
}


@pytest.mark.parametrize(("kernels", "has_c", "has_onednn", "part"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["gcvit_small", "gpvit_l1"])
def test_each_implementation_computes_the_same(name, kernels, has_c, has_onednn, part, monkeypatch):
    if not has_c:
        monkeypatch.setattr(deploying, "computes", lambda _: False)
    monkeypatch.setattr(deploying.pytorch, "has_onednn_operators", lambda: has_onednn)
    model, images = build(name), torch.randn(2, 3, 64, 96)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    with gv.set_kernels(kernels):
        deployed = model.deploy()
    folded = {"gcvit_small": plain_parts.FoldedBlock, "gpvit_l1": plain_parts.FoldedConvReLU}[name]
    assert (part or folded) in parts_of(deployed)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    with torch.inference_mode():
        assert_near(deployed(images), model(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_deployed_as_well(dtype):
    model, images = build("gcvit_small").to(dtype), torch.randn(2, 3, 64, 96, dtype=dtype)
    with torch.inference_mode():
        assert_near(model.deploy()(images).double(), model(images).double(), {torch.float64: 1e-12}.get(dtype, 0.06))


def change(model, kind, make):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                setattr(module, name, make(child))


class OtherBlock(Block):
    def forward(self, x_BHWC, query_BhNd):
        return super().forward(x_BHWC, query_BhNd) + 1


class OtherMlp(Mlp):
    def forward(self, x):
        return 2 * super().forward(x)


class Reads(nn.Module):
    """A module of the user's that reads the weights of what it holds."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return nn.functional.linear(x, self.linear.weight, self.linear.bias)


def subclass(model, kind, other):
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = other


def share(model):
    blocks = model.backbone.stages[0].blocks
    blocks[1].mlp = blocks[0].mlp
    stage = model.backbone.stages[2].blocks
    stage[2] = stage[0]


def tie(model):
    blocks = model.backbone.stages[0].blocks
    blocks[1].norm2.weight = blocks[0].norm2.weight
    blocks[1].mlp.fc1.weight = blocks[0].mlp.fc1.weight


def head_that_reads(model):
    model.head.linear = Reads(model.head.linear)


def half_in_double(model):
    model.head.double()
    model.head.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))


EDITS = {
    "a subclass of Block": lambda model: subclass(model, Block, OtherBlock),
    "a subclass of Mlp": lambda model: subclass(model, Mlp, OtherMlp),
    "shared parts": share,
    "tied weights": tie,
    "a head that reads weights": head_that_reads,
    "two dtypes": half_in_double,
    "SiLU": lambda model: change(model, nn.GELU, lambda _: nn.SiLU()),
    "no activation": lambda model: change(model, nn.GELU, lambda _: nn.Identity()),
    "dropout in place of drop path": lambda model: [
        setattr(block, "drop_path", nn.Dropout(0.5)) for block in model.modules() if type(block) is Block
    ],
    "a Linear without bias": lambda model: change(
        model.backbone, nn.Linear, lambda one: nn.Linear(one.in_features, one.out_features, bias=False)
    ),
    "norms of batches": lambda model: setattr(model.backbone, "norm", Transposed(nn.BatchNorm2d(512))),
}


class Transposed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_BHWC):
        return self.inner(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_models_are_deployed_as_they_are(edit):
    model = build("gcvit_xxtiny")
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    edit(model)
    model.eval()
    images = torch.randn(2, 3, 64, 72)
    with torch.no_grad():
        assert_near(model.deploy()(images), model(images))


def test_hooks_of_the_original_fire_in_the_copy():
    model, seen = build("gcvit_xxtiny"), []
    model.backbone.stages[1].blocks[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    deployed = model.deploy()
    seen.clear()
    with torch.no_grad():
        deployed(torch.randn(1, 3, 64, 64))
    assert seen == [1]


@pytest.mark.parametrize("fault", ["wrong", "failing"])
def test_a_part_that_differs_stays_pytorchs(fault, monkeypatch, caplog):
    right = kernel_parts.KernelMlp.forward

    def wrong(self, x):
        if fault == "failing":
            raise RuntimeError("no")
        return right(self, x) * 1.001

    monkeypatch.setattr(kernel_parts.KernelMlp, "forward", wrong)
    model, images = build("gcvit_xxtiny"), torch.randn(2, 3, 64, 64)
    with caplog.at_level(logging.WARNING):
        deployed = model.deploy()
    assert "deploy(): the fast form of Block differs from the model's own, which is kept" in caplog.text
    assert kernel_parts.KernelBlock not in parts_of(deployed)
    assert kernel_parts.KernelDownsample in parts_of(deployed)
    with torch.no_grad():
        assert_near(deployed(images), model(images))


REFUSED = {
    "autocast": "expected float32, got bfloat16: the copy was deployed for float32 and does not run under autocast",
    "meta": "expected images on the CPU, got meta: the copy was deployed for the CPU; move the model that it was made",
    "gradient": r"a deployed copy has no derivatives; use the model that it was made from, or torch\.no_grad\(\)",
    "jvp": "a deployed copy has no derivatives",
    "vmap": "a deployed copy has no derivatives",
    "double": "expected float32, got float64",
}


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
@pytest.mark.parametrize(("way", "words"), REFUSED.items(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own doing
def test_what_a_copy_cannot_do_is_refused_in_a_line(name, way, words):
    deployed, images = build(name).deploy(), torch.zeros(1, 3, 64, 64)
    calls = {
        "autocast": lambda: autocast(deployed, images),
        "meta": lambda: deployed.to("meta")(images.to("meta")),
        "gradient": lambda: deployed(images.requires_grad_()),
        "jvp": lambda: torch.func.jvp(deployed, (images,), (images,)),
        "vmap": lambda: torch.func.vmap(deployed)(images[None]),
        "double": lambda: deployed.double()(images.double()),
    }
    with pytest.raises(ValueError, match=words):
        calls[way]()


def autocast(deployed, images):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        deployed(images)


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_a_copy_is_not_saved(name, tmp_path):
    deployed = build(name).deploy()
    words = "a deployed copy cannot be saved; save the model that it was made from"
    with pytest.raises(ValueError, match=words):
        gv.save_weights(deployed, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=words):
        deployed.state_dict()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_copied_and_pickled():
    deployed, images = build("gcvit_xxtiny").deploy(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed)), deployed.deploy()):
            assert torch.equal(twin(images), deployed(images))


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_no_image_gives_no_answer(name):
    deployed = build(name).deploy()
    with torch.inference_mode():
        assert deployed(torch.zeros(0, 3, 64, 64)).shape == (0, 3)


def test_gradients_need_not_be_switched_off():
    deployed, images = build("gcvit_xxtiny").deploy(), torch.randn(2, 3, 70, 64)
    logits = deployed(images)
    assert not logits.requires_grad
    with torch.inference_mode():
        assert torch.equal(deployed(images), logits)


def test_deploying_draws_no_random_numbers():
    model = build("gcvit_xxtiny")
    before = torch.get_rng_state()
    model.deploy()
    assert torch.equal(torch.get_rng_state(), before)


def test_operations_of_a_deployed_copy_are_counted():
    model = build("gcvit_xxtiny")
    counts = []
    for one in (model, model.deploy()):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            one(torch.zeros(1, 3, 64, 64))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
