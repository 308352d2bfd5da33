"""The kernels in C: equal to the plain formula in float64, differentiable, the same bits with any number of threads."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from globalvit import create_model
from globalvit.kernels.native import library, operators
from globalvit.models.attention import IMPLEMENTATIONS, choose, window_attention

PLAIN = IMPLEMENTATIONS["plain"]
# Windows of one and of many vectors, counts that fill no register tile, heads of odd and of published widths.
WINDOW_CASES = [
    # H, W, window, heads, channels a head, is global
    (14, 21, 7, 2, 32, False),
    (14, 14, 14, 2, 32, True),
    (24, 24, 24, 1, 24, True),
    (8, 16, 8, 1, 52, False),
    (6, 3, 3, 2, 5, True),
]
STRIPE_CASES = [(8, 12, 3, 18), (14, 6, 2, 29)]  # H, W, heads of a direction, channels a head


@pytest.fixture
def forget_library():
    """Look for the compiler and the library anew, in the test and after it."""
    caches = (library.load, library.unavailable)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def window_leaves(H, W, window, heads, dim, is_global):
    width = heads * dim * (2 if is_global else 3)
    projected, table = torch.randn(2, H, W, width), torch.randn((2 * window - 1) ** 2, heads)
    return projected, table, torch.randn(2, heads, window**2, dim) if is_global else None


def gradients(function, leaves, dtype):
    """The result of a function of tensors and its gradients, all in float64."""
    leaves = [None if leaf is None else leaf.to(dtype, copy=True).requires_grad_() for leaf in leaves]
    torch.manual_seed(1)
    out = function(*leaves)
    out.backward(torch.randn(out.shape).to(dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf is not None)]


def assert_relative(ours, exact, bound):
    for got, wanted in zip(ours, exact, strict=True):
        assert (got - wanted).abs().max() <= bound * wanted.abs().max()


@pytest.mark.parametrize("dims", WINDOW_CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
def test_windows_equal_the_plain_formula_forward_and_backward(dims, dtype, bound):
    window = dims[2]
    leaves = [None if leaf is None else leaf.to(dtype) for leaf in window_leaves(*dims)]
    ours = gradients(lambda x, table, query=None: operators.windows(x, table, window, query), leaves, dtype)
    exact = gradients(lambda x, table, query=None: PLAIN.windows(x, table, window, query), leaves, torch.float64)
    assert_relative(ours, exact, bound)


@pytest.mark.parametrize("dims", STRIPE_CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
def test_stripes_equal_the_plain_formula_forward_and_backward(dims, dtype, bound):
    H, W, heads, dim = dims
    convs = [nn.Conv2d(heads * dim, heads * dim, 3, padding=1, groups=heads * dim) for _ in range(2)]
    leaves = [torch.randn(2, H, W, 6 * heads * dim).to(dtype), *(p.detach() for c in convs for p in c.parameters())]

    def attend(stripes, qkv, *parameters):
        held = [nn.Conv2d(heads * dim, heads * dim, 3, padding=1, groups=heads * dim) for _ in range(2)]
        for conv, weight, bias in zip(held, parameters[::2], parameters[1::2], strict=True):
            del conv.weight, conv.bias
            conv.weight, conv.bias = weight, bias
        return stripes(qkv, *held, 2, heads)

    ours = gradients(lambda *given: attend(operators.stripes, *given), leaves, dtype)
    exact = gradients(lambda *given: attend(PLAIN.stripes, *given), leaves, torch.float64)
    assert_relative(ours, exact, bound)


def test_projections_need_not_be_contiguous():
    projected, table, _ = window_leaves(14, 7, 7, 2, 8, False)
    turned = projected.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(operators.windows(turned, table, 7, None), operators.windows(projected, table, 7, None))


def test_any_number_of_threads_gives_the_same_bits():
    leaves = window_leaves(56, 28, 7, 2, 8, True)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(gradients(lambda x, t, q: operators.windows(x, t, 7, q), leaves, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # a check's own doing
@pytest.mark.parametrize("dims", [WINDOW_CASES[4]])
def test_operators_keep_the_rules_of_pytorch(dims):
    leaves = [None if leaf is None else leaf.requires_grad_() for leaf in window_leaves(*dims)]
    torch.library.opcheck(operators.native_windows, (leaves[0], leaves[1], dims[2], leaves[2]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # a check's own doing
def test_stripes_keep_the_rules_of_pytorch():
    convs = [torch.randn(shape, requires_grad=True) for shape in ((6, 1, 3, 3), (6,)) * 2]
    qkv = torch.randn(1, 4, 6, 36, requires_grad=True)
    torch.library.opcheck(operators.native_stripes, (qkv, *convs, 2, 2))


# PyTorch's own count of a grouped convolution's backward pass is too high: GPViT's stripes are compared forward only.
@pytest.mark.parametrize(("name", "is_trained"), [("gcvit_xxtiny", True), ("gpvit_l1", False)])
def test_operations_are_counted_as_those_of_the_plain_formula(name, is_trained):
    model = create_model(name, image_size=32, num_classes=2)
    counts = []
    for implementation in ("plain", "native"):
        model.backbone.set_attention(implementation)
        with FlopCounterMode(display=False) as counter:
            logits = model(torch.zeros(1, 3, 32, 32))
            if is_trained:
                logits.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_compiled_models_hold_the_operators_in_one_graph():
    table = torch.randn(25, 2)

    def attend(x):
        return window_attention(x, table, window=3, implementation="native") * 2

    x = torch.randn(1, 6, 6, 48)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), attend(x))


def test_what_cannot_be_computed_says_why():
    with pytest.raises(
        ValueError, match=r"'native' cannot be used here: it computes float32 and bfloat16, not float64"
    ):
        window_attention(torch.zeros(1, 2, 2, 6).double(), torch.zeros(9, 1), window=2, implementation="native")


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-compiler", "no C compiler was found (no-such-compiler); install gcc, or set CC"), ("false", "failed")],
)
def test_without_a_compiler_models_run_on_pytorchs_operators(compiler, words, tmp_path, monkeypatch, forget_library):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert words in library.unavailable()
    assert choose("auto", torch.zeros(1), 8) is PLAIN


def test_a_compiler_may_have_words_before_it(tmp_path, monkeypatch, forget_library):
    monkeypatch.setenv("CC", "env cc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "SOURCES", (tmp_path / "one.c",))
    library.SOURCES[0].write_text("int one(void) { return 1; }")
    assert library.unavailable() is None


def test_a_library_is_built_once_and_again_for_other_sources(tmp_path, monkeypatch, forget_library):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for source in ("int attention_forward(void) { return 1; }", "int attention_forward(void) { return 2; }"):
        monkeypatch.setattr(library, "SOURCES", (tmp_path / "attention.c",))
        library.SOURCES[0].write_text(source)
        for _ in range(2):
            library.load.cache_clear()
            assert library.load().attention_forward() == int(source[-4])
    assert len(list((tmp_path / "globalvit").iterdir())) == 2
