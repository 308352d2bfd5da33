"""Operations follow their formulas, and kernels replace the formulas only where nobody can tell the difference."""

import copy
import threading

import fill
import pytest
import torch
from gradients import node_names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import globalvit as gv
from globalvit.models import ops
from globalvit.models.ops import attend_windows, position_bias

HEADS, DIM, WINDOW = 2, 8, 3
NAMES = ["gcvit_xxtiny", "gpvit_l1"]
# Nodes of the backward pass that the C kernels leave.
KERNEL_NODES = {"NormMlpBackward", "NormLinearBackward"}


def formula(projected, bias, window, query=None):
    """The definition, window by window and head by head, in float64."""
    B, H, W, width = projected.shape
    C = width // (3 if query is None else 2)
    d = C // bias.shape[0]
    out = projected.new_zeros(B, H, W, C)
    for b in range(B):
        for top in range(0, H, window):
            for left in range(0, W, window):
                here = slice(top, top + window), slice(left, left + window)
                tokens = projected[b][here].reshape(window * window, width)
                k, v = tokens[:, -2 * C : -C], tokens[:, -C:]
                for head in range(bias.shape[0]):
                    part = slice(head * d, (head + 1) * d)
                    q = tokens[:, part] if query is None else query[b, head]
                    weights = (q @ k[:, part].T * d**-0.5 + bias[head]).softmax(-1)
                    out[b][here][..., part] = (weights @ v[:, part]).view(window, window, d)
    return out


def inputs(dtype, *, is_global, batch=2, grid=(6, 9)):
    projected = torch.randn(batch, *grid, DIM * (2 if is_global else 3), dtype=dtype, requires_grad=True)
    table = torch.randn((2 * WINDOW - 1) ** 2, HEADS, dtype=dtype, requires_grad=True)
    query = torch.randn(batch, HEADS, WINDOW**2, DIM // HEADS, dtype=dtype, requires_grad=True) if is_global else None
    return projected, table, query


@pytest.fixture(params=["formula", "PyTorch's fused attention"])
def attended(request, monkeypatch):
    """Windows attend by the formula as on CPUs, or by PyTorch's fused attention as on GPUs."""
    if request.param != "formula":
        monkeypatch.setattr(ops, "FUSED", ("cpu",))


@pytest.mark.usefixtures("attended")
@pytest.mark.parametrize("is_global", [False, True])
def test_windows_follow_the_formula_forward_and_backward(is_global):
    leaves = inputs(torch.float64, is_global=is_global)
    projected, table, query = leaves
    ours = attend_windows(projected, table, window=WINDOW, query_BhNd=query)
    expected = formula(projected, position_bias(table, WINDOW), WINDOW, query)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(ours)
    given = [leaf for leaf in leaves if leaf is not None]
    got = torch.autograd.grad(ours, given, cotangent, retain_graph=True)
    wanted = torch.autograd.grad(expected, given, cotangent)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernels", ["torch", "c"])
def test_an_image_never_attends_with_the_query_of_another(kernels):
    projected, table, query = (leaf.detach() for leaf in inputs(torch.float32, is_global=True, batch=3))
    with gv.set_kernels(kernels):
        together = attend_windows(projected, table, window=WINDOW, query_BhNd=query)
        for i in range(3):
            one = slice(i, i + 1)
            alone = attend_windows(projected[one], table, window=WINDOW, query_BhNd=query[one])
            torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 14])
def test_position_bias_reads_the_entry_of_query_minus_key(window):
    table = torch.randn((2 * window - 1) ** 2, HEADS)
    index = torch.from_numpy(fill.position_index(window))
    assert torch.equal(position_bias(table, window), table[index].permute(2, 0, 1))


def test_kernels_are_chosen_for_good_or_within_a_context():
    assert ops.chosen_kernels() == "auto"
    with gv.set_kernels("torch"):
        assert ops.kernels_for("cpu") == "torch"
        with gv.set_kernels("c"):
            assert ops.kernels_for("cpu") == "c"
        assert ops.chosen_kernels() == "torch"
    gv.set_kernels("c")
    assert ops.chosen_kernels() == "c"
    gv.set_kernels("auto")
    assert ops.kernels_for("cpu") == "c"
    assert ops.kernels_for("cuda") == "torch"


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="kernels='native': expected one of auto, torch, c, triton"):
        gv.set_kernels("native")


def test_kernels_that_cannot_be_used_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(ops, "unavailable", lambda _: "there is no C compiler")
    words = "kernels='c' cannot be used here: there is no C compiler; use kernels='auto' or 'torch'"
    with pytest.raises(ValueError, match=words):
        gv.set_kernels("c")
    assert ops.chosen_kernels() == "auto"


def build(name, **words):
    torch.manual_seed(0)
    model = gv.create_model(name, num_classes=3, image_size=None if name == "gpvit_l1" else 64, **words).eval()
    for parameter in model.parameters():
        # Attention and residuals that matter.
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    return model


def relative(ours, exact):
    return float((ours.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max())


def gradients(model, images):
    model.zero_grad()
    logits = model(images)
    logits.square().sum().backward()
    return logits, [torch.zeros(1) if one.grad is None else one.grad.clone() for one in model.parameters()]


def are_near(ours, exact, bound):
    """Whether gradients agree, relative to their largest; those of the biases of keys are zero but for rounding."""
    largest = max(gradient.abs().max() for gradient in exact)
    pairs = zip(ours, exact, strict=True)
    return all((one - other).abs().max() <= bound * other.abs().max().clamp_min(1e-3 * largest) for one, other in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_training_takes_the_kernels_and_learns_the_same(name):
    model, images = build(name), torch.randn(2, 3, 64, 80)
    logits, ours = gradients(model, images)
    assert node_names(logits) >= KERNEL_NODES
    with gv.set_kernels("torch"):
        logits, plain = gradients(model, images)
        assert not node_names(logits) & KERNEL_NODES
    assert are_near(ours, plain, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_default_dtype_does_not_matter(name, dtype):
    model, images = build(name), torch.randn(2, 3, 64, 72)
    expected = gradients(model, images)[1]
    deployed = model.deploy()(images)
    torch.set_default_dtype(dtype)
    try:
        found = gradients(model, images)[1]
        with torch.no_grad():
            assert torch.equal(model.deploy()(images), deployed)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_device_does_not_matter(name):
    model, images = build(name), torch.randn(2, 3, 64, 72)
    expected, deployed = gradients(model, images)[1], model.deploy()(images)
    with torch.device("meta"):
        assert all(torch.equal(one, other) for one, other in zip(gradients(model, images)[1], expected, strict=True))
        assert torch.equal(model.deploy()(images), deployed)


# Every module that the kernels replace, with the hook's count of calls without them.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["no_grad", "eval", "train"])
def test_hooks_fire_on_every_module(name, mode):
    model, images = build(name, drop_path=0.0), torch.randn(1, 3, 64, 64)
    model.train(mode == "train")
    calls = {"torch": {}, "auto": {}}
    for kernels, counts in calls.items():
        handles = [
            module.register_forward_hook(lambda *_, at=at, counts=counts: counts.update({at: counts.get(at, 0) + 1}))
            for at, module in model.named_modules()
        ]
        with gv.set_kernels(kernels), torch.set_grad_enabled(mode != "no_grad"):
            model(images)
        for handle in handles:
            handle.remove()
    assert calls["auto"] == calls["torch"]
    assert len(calls["torch"]) > 60


def test_one_hook_on_any_module_is_enough():
    block = build("gcvit_xxtiny").backbone.stages[0].blocks[0]
    x, query = torch.randn(1, 4, 4, 64), torch.randn(1, 2, 4, 32)
    assert node_names(block(x, query)) >= KERNEL_NODES
    for at, module in block.named_modules():
        for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            seen = []
            handle = getattr(module, register)(lambda *_, seen=seen: seen.append(1))
            block(x.clone().requires_grad_(), query).sum().backward()
            handle.remove()
            assert seen, f"{register} on {at!r}"


def test_hooks_on_all_modules_fire():
    model, images, seen = build("gcvit_xxtiny"), torch.randn(1, 3, 64, 64), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        assert not node_names(model(images)) & KERNEL_NODES
    finally:
        handle.remove()
    assert {"Linear", "LayerNorm", "Mlp", "GELU", "Conv2d"} <= set(seen)


# What PyTorch's own function transforms warn of.
TRANSFORMS_WARN = (
    "ignore:`torch.jit.script` is deprecated:FutureWarning",
    "ignore:There is a performance drop because we have not yet implemented the batching rule",
)


@pytest.mark.filterwarnings(TRANSFORMS_WARN[0])
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_derivatives_are_right(name):
    model, images, tangent = build(name), torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    exact = copy.deepcopy(model).double()
    _, wanted = torch.func.jvp(exact, (images.double(),), (tangent.double(),))
    model.requires_grad_(requires_grad=False)
    _, found = torch.func.jvp(model, (images,), (tangent,))
    assert relative(found, wanted) < 1e-4
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        out = model(torch.autograd.forward_ad.make_dual(images, tangent))
        assert relative(torch.autograd.forward_ad.unpack_dual(out).tangent, wanted) < 1e-4


@pytest.mark.filterwarnings(TRANSFORMS_WARN[1])
@pytest.mark.parametrize("name", NAMES)
def test_function_transforms_are_right(name):
    model, images = build(name), torch.randn(2, 3, 64, 64)
    parameters = {at: parameter.detach() for at, parameter in model.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="error")(parameters, images)
    for index in range(2):
        model.zero_grad()
        model(images[index : index + 1]).square().sum().backward()
        wanted = {at: parameter.grad for at, parameter in model.named_parameters()}
        assert are_near([each[at][index] for at in wanted], list(wanted.values()), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_several_outputs_may_be_taken_at_once(name):
    model, images = build(name), torch.randn(1, 3, 64, 64).requires_grad_()
    (scores,) = model(images)
    wanted = [torch.autograd.grad(score, images, retain_graph=True)[0] for score in scores]
    (found,) = torch.autograd.grad(scores, images, torch.eye(len(scores)), is_grads_batched=True)
    assert are_near(list(found), wanted, 1e-4)


# GPViT's attention of groups is PyTorch's fused one, whose gradients are not differentiable on a CPU.
def test_gradients_are_differentiable():
    model, images = build("gcvit_xxtiny"), torch.randn(1, 3, 64, 72)

    def penalty(model, images):
        images = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
        (again,) = torch.autograd.grad(gradient.square().sum(), images)
        return again

    assert relative(penalty(model, images), penalty(copy.deepcopy(model).double(), images.double())) < 1e-3


class WithoutBias(nn.Module):
    """A layer in place of a Linear that has neither weight nor bias, as wrappers of low-rank adaptation are."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x):
        return self.wrapped(x)


def replace(model, kind, make):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind and not isinstance(module, WithoutBias):
                setattr(module, name, make(child))
    return model


EDITS = {
    "wrapped Linears": lambda model: replace(model, nn.Linear, WithoutBias),
    "ReLU": lambda model: replace(model, nn.GELU, lambda _: nn.ReLU()),
    "GELU by tanh": lambda model: replace(model, nn.GELU, lambda _: nn.GELU(approximate="tanh")),
    "a replaced forward": lambda model: patch_forward(model),
    "parametrized": lambda model: parametrize(model),
    "a norm without factors": lambda model: replace(
        model, nn.LayerNorm, lambda norm: nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    ),
    "convolutions that wrap around": lambda model: set_padding(model),
}


def patch_forward(model):
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = lambda x, module=module: nn.functional.linear(x, module.weight) + 1
    return model


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrize(model):
    for module in list(model.modules()):
        if type(module) is nn.Linear:
            nn.utils.parametrize.register_parametrization(module, "weight", Halved())
    return model


def set_padding(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [1, 1, 1, 1]
    return model


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("name", NAMES)
def test_edited_models_compute_what_they_say(name, edit):
    model = edit(build(name))
    images = torch.randn(2, 3, 64, 72)
    with gv.set_kernels("torch"):
        logits, plain = gradients(model, images)
    found, ours = gradients(model, images)
    assert relative(found, logits.double()) < 1e-5
    assert are_near(ours, plain, 1e-3)
    with torch.no_grad():
        assert relative(model(images), logits.double()) < 1e-5
        assert relative(model.deploy()(images), logits.double()) < 1e-5


SHAPES = {
    "channels that heads do not divide": ((2, 6, 6, 30), (25, 4), 3, None),
    "a table of another window": ((2, 6, 6, 24), (9, 2), 3, None),
    "a grid that windows do not divide": ((2, 7, 6, 24), (25, 2), 3, None),
    "a query of one image for several": ((2, 6, 6, 16), (25, 2), 3, (1, 2, 9, 4)),
    "a query of other tokens": ((2, 6, 6, 16), (25, 2), 3, (2, 2, 8, 4)),
    "no window": ((2, 6, 6, 24), (1, 2), 0, None),
}


@pytest.mark.parametrize(("shape", "table", "window", "query"), SHAPES.values(), ids=SHAPES)
def test_shapes_that_the_formula_refuses_never_reach_the_kernels(shape, table, window, query):
    projected, table = torch.randn(shape), torch.randn(table)
    query = None if query is None else torch.randn(query)
    outcomes = []
    for kernels in ("torch", "c"):
        with gv.set_kernels(kernels):
            try:
                outcomes.append(attend_windows(projected, table, window=window, query_BhNd=query))
            except Exception as error:  # what PyTorch makes of it
                outcomes.append(type(error))
    assert outcomes[0] is outcomes[1] or torch.equal(*outcomes)


def test_tensors_of_other_kinds_take_pytorch():
    projected, table = torch.randn(1, 3, 3, 24), torch.randn(25, 2)
    with torch.no_grad():
        negated = attend_windows(torch._neg_view(projected), table, window=3)
        torch.testing.assert_close(negated, attend_windows.plain(-projected, table, window=3))
    assert attend_windows(projected.double(), table.double(), window=3).dtype == torch.float64
    assert attend_windows(projected.to("meta"), table.to("meta"), window=3).device.type == "meta"
    assert attend_windows(torch.randn(0, 3, 3, 24), table, window=3).shape == (0, 3, 3, 8)


@pytest.mark.parametrize(("name", "is_trained"), [("gcvit_xxtiny", True), ("gpvit_l1", False)])
def test_counters_see_pytorchs_operators(name, is_trained):
    model, counts = build(name), []
    for kernels in ("torch", "auto"):
        with gv.set_kernels(kernels), FlopCounterMode(display=False) as counter:
            logits = model(torch.zeros(1, 3, 64, 64))
            if is_trained:
                logits.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_threads_share_a_model(name):
    model, deployed = build(name), build(name).deploy()
    images = [torch.randn(1, 3, 64, 64 + 8 * (i % 3)) for i in range(8)]
    expected = [(gradient_of(model, image), deployed(image)) for image in images]
    found = [None] * len(images)

    def work(start):
        for i in range(start, len(images), 4):
            found[i] = gradient_of(model, images[i]), deployed(images[i])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (gradient, logits), (other, others) in zip(found, expected, strict=True):
        assert torch.equal(gradient, other)
        assert torch.equal(logits, others)


def gradient_of(model, image):
    image = image.clone().requires_grad_()
    return torch.autograd.grad(model(image).sum(), image)[0]


def test_threads_leave_no_memory_behind():
    from globalvit.kernels.cpu import library

    model, images = build("gcvit_xxtiny").deploy(), torch.randn(1, 3, 64, 64)
    kept = library.load().arena_bytes_kept
    model(images)
    before = kept()
    for _ in range(20):
        thread = threading.Thread(target=model, args=(images,))
        thread.start()
        thread.join()
    assert kept() == before > 0


@pytest.mark.parametrize("name", NAMES)
def test_autocast_is_what_pytorch_makes_of_it(name):
    model, images = build(name), torch.randn(2, 3, 64, 72)
    found = []
    for kernels in ("torch", "auto"):
        with gv.set_kernels(kernels), torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        assert logits.dtype == torch.bfloat16
        found.append(logits.double())
    assert relative(found[1], found[0]) < 0.05


def test_shared_gelu_and_blocks_train():
    model = build("gcvit_xxtiny")
    blocks = model.backbone.stages[0].blocks
    blocks[1].mlp = blocks[0].mlp
    images = torch.randn(1, 3, 64, 64)
    with gv.set_kernels("torch"):
        plain = gradients(model, images)[1]
    assert are_near(gradients(model, images)[1], plain, 1e-4)
