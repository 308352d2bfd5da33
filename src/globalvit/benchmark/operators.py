"""Kinds of operation: which of torch's operators does what. No torch here."""

KINDS = (
    "linear",
    "attention products",
    "softmax",
    "convolution",
    "norm",
    "GELU",
    "copies",
    "elementwise",
    "optimizer",
    "compiled",
    "rest",
    "outside torch",
)
# What a run does outside all operators, such as Python and C of ours, is recorded under this name.
OUTSIDE = "outside torch"
# Kinds that are matrix products, whose floor is the rate of products; that of all others is memory.
PRODUCTS = ("linear", "attention products", "convolution")
# Parts of an operator's name, without library and overload → kind; the first one that fits counts.
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("compiled", ("cpp_fused", "triton_", "compiledfx", "torch-compiled")),
    ("optimizer", ("fused_adam", "foreach", "amp_non_finite", "amp_update")),
    (
        "attention products",
        ("attention", "bmm", "native_windows", "native_stripes", "triton_windows", "triton_stripes"),
    ),
    ("softmax", ("softmax",)),
    ("convolution", ("conv",)),
    ("norm", ("layer_norm", "batch_norm", "group_norm", "rms_norm")),
    ("GELU", ("gelu",)),
    ("linear", ("linear", "addmm", "scaled_mm", "gemm")),
    ("copies", ("copy", "clone", "contiguous", "pad_nd", "unfold_backward", "index_select", "slice_backward")),
)
_WHOLE: dict[str, tuple[str, ...]] = {
    "linear": ("mm", "matmul"),
    "copies": ("cat", "stack", "repeat", "roll", "fill_", "zero_", "index", "gather", "expand", "zeros", "flip"),
    "elementwise": (
        *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "rsub", "pow", "sqrt", "rsqrt", "exp"),
        *("sigmoid", "sigmoid_backward", "relu", "relu_", "threshold_backward", "tanh", "clamp", "where", "bernoulli_"),
        *("sum", "mean", "amax", "max", "ne", "eq", "lt", "gt"),
    ),
}


def kind_of(operator: str) -> str:
    """The kind of an operator by its name: `aten::addmm`, or `aten::add.Tensor` with its overload."""
    if operator == OUTSIDE:
        return OUTSIDE
    library, _, name = operator.rpartition("::")
    name = name.split(".")[0].lower()
    for kind, names in _WHOLE.items():
        if name in names:
            return kind
    # Kernels of ours may be called triton_…, as those of the compiler are.
    places = _PARTS[1:] if library == "globalvit" else _PARTS
    return next((kind for kind, parts in places if any(part in name for part in parts)), "rest")
