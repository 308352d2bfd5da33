"""Operations of the networks that may have several implementations; each has a plain PyTorch body here.

A network calls these functions and knows nothing of the implementations in `globalvit.kernels`, which register
themselves when the first tensor of their device arrives. An implementation replaces the plain body only where nobody
can tell the difference: it decides from the types of the modules, hooks, dtypes, devices, shapes and PyTorch's modes
(autocast, function transforms, compilation, export, profiling). `set_kernels` chooses which ones may be used.

Legend: `B` images · `H W` grid · `C` channels · `M` windows an image · `N` tokens of a window · `S` tokens of another
sequence · `h` heads · `d` channels a head · `L` entries of a position table, (2w − 1)² · `K` channels that come out.
Grids are channels-last.
"""

import logging
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, update_wrapper
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import windows
from globalvit.pytorch import is_transformed, is_unchanged

logger = logging.getLogger(__name__)

Kernels = Literal["auto", "torch", "c", "triton"]
KERNELS: tuple[Kernels, ...] = ("auto", "torch", "c", "triton")
# Kernels → the module that registers them. It is imported when they are first needed.
_MODULES = {"c": "globalvit.kernels.cpu.register", "triton": "globalvit.kernels.gpu.register"}
# Device → the kernels that `auto` uses there. Triton's are not proven on GPUs yet and must be asked for.
_AUTOMATIC: dict[str, Kernels] = {"cpu": "c"}
# Kernels → the devices of the tensors that they compute; Triton's interpreter works on the CPU.
_DEVICES = {"c": ("cpu",), "triton": ("cuda", "cpu")}
# What `torch_operations` names: an operation's inputs by dtype and size.
_DTYPES, _SIZES = ("float32", "bfloat16"), ("small", "large")
# Devices with fused attention kernels in PyTorch that are faster than the formula.
FUSED = ("cuda", "mps", "xpu")


class _KernelModule(Protocol):
    def unavailable(self) -> str | None:
        """Return why these kernels cannot be used on this machine, or None if they can."""

    def slower_operations(self, dtype: torch.dtype) -> frozenset[str]:  # pyright: ignore[reportReturnType]
        """Return the operations that PyTorch's operators compute faster on this machine."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One implementation of an operation.

    Attributes:
        accepts: whether it computes what the plain body computes for these arguments, and nobody can tell which ran.
        run: the implementation, with the operation's arguments.
    """

    accepts: Callable[..., bool]
    run: Callable[..., Tensor]


# What the environment chooses until `set_kernels` chooses otherwise.
VARIABLE = "GLOBALVIT_KERNELS"
_torch_operations: frozenset[str] | None = None
_chosen: Kernels = os.environ.get(VARIABLE, "auto")  # pyright: ignore[reportAssignmentType] - checked here
if _chosen not in KERNELS:
    raise ValueError(f"{VARIABLE}={_chosen!r}: expected one of {', '.join(KERNELS)}")


# All operations by name.
OPERATIONS: dict[str, "Operation"] = {}


class Operation:
    """A call takes the first implementation that accepts it, or the plain body.

    Attributes:
        plain: the plain PyTorch body, which takes none of this operation's implementations.
    """

    __name__: str

    def __init__(self, plain: Callable[..., Tensor]) -> None:
        self.plain = plain
        self.implementations: dict[str, Implementation] = {}
        OPERATIONS[plain.__name__] = self
        update_wrapper(self, plain)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the operation on `x`."""
        device = x.device.type
        kernels = _AUTOMATIC.get(device, "torch") if _chosen == "auto" else _chosen
        if kernels in _MODULES and device in _DEVICES[kernels] and _is_available(kernels):
            found = self.implementations.get(kernels)
            if found is not None and found.accepts(x, *args, **kwargs):
                return found.run(x, *args, **kwargs)
        return self.plain(x, *args, **kwargs)

    def implement(self, kernels: str, accepts: Callable[..., bool]) -> Callable[[Callable], Callable]:
        """Register the decorated function as this operation's implementation by `kernels`."""

        def register(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
            self.implementations[kernels] = Implementation(accepts, run)
            return run

        return register


class set_kernels:  # noqa: N801 - a function that is a context manager too, as in torch.set_grad_enabled
    """Choose which kernels compute the networks' operations, in inference, in training and in `deploy()`.

    The choice holds for the whole process until it changes; used as a context manager, until the context ends.
    With `auto`, operations that PyTorch's operators compute faster on this CPU are left to them (`globalvit doctor`
    lists them).

    Args:
        name: `auto` uses the fastest implementations that are proven for the device, `torch` PyTorch's operators only,
            `c` the C kernels on CPUs, `triton` the Triton kernels on NVIDIA GPUs. Calls that the chosen kernels do not
            compute take PyTorch's operators.
        torch_operations: operations left to PyTorch's operators, such as `linear/float32/small` (default: with `auto`
            those that are faster so on this CPU, otherwise none).

    Raises:
        ValueError: a name is unknown, or these kernels cannot be used on this machine; the text says why.
    """

    def __init__(self, name: Kernels, torch_operations: Collection[str] | None = None) -> None:
        check_kernels(name)
        self.former = (_chosen, _torch_operations)
        _choose(name, _excepted(name, torch_operations))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _choose(*self.former)


def _choose(name: Kernels, excepted: frozenset[str] | None) -> None:
    global _chosen, _torch_operations
    _chosen, _torch_operations = name, excepted


def _excepted(name: Kernels, operations: Collection[str] | None) -> frozenset[str] | None:
    if operations is None:
        return None if name == "auto" else frozenset()
    for one in operations:
        operation, *kind = one.split("/")
        if operation not in OPERATIONS or len(kind) != 2 or kind[0] not in _DTYPES or kind[1] not in _SIZES:
            raise ValueError(
                f"torch_operations: {one!r}: expected OPERATION/DTYPE/SIZE, of {', '.join(OPERATIONS)}, "
                f"of {', '.join(_DTYPES)} and of {', '.join(_SIZES)}"
            )
    return frozenset(operations)


def torch_operations() -> frozenset[str] | None:
    """Return the operations that PyTorch's operators compute by choice, or None for those that are faster so."""
    return _torch_operations


def settled_operations(device: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the operations that PyTorch computes on a kind of device although kernels are in use, in order."""
    kernels = kernels_for(device)
    if _torch_operations is not None or kernels == "torch":
        return tuple(sorted(_torch_operations or ()))
    return tuple(sorted(_module(kernels).slower_operations(dtype)))


def check_kernels(name: str) -> None:
    """Refuse a name that is unknown or stands for kernels that cannot be used on this machine.

    Raises:
        ValueError: it is one of these; the text says why.
    """
    if name not in KERNELS:
        raise ValueError(f"kernels={name!r}: expected one of {', '.join(KERNELS)}")
    reason = unavailable(name) if name in _MODULES else None
    if reason is not None:
        raise ValueError(f"kernels={name!r} cannot be used here: {reason}; use kernels='auto' or 'torch'")


def chosen_kernels() -> Kernels:
    """Return the name that `set_kernels` was given last."""
    return _chosen


def kernels_for(device: str) -> Kernels:
    """Return the kernels in use on a kind of device: `torch`, `c` or `triton`."""
    name = _AUTOMATIC.get(device, "torch") if _chosen == "auto" else _chosen
    return name if name in _MODULES and unavailable(name) is None else "torch"


@cache
def unavailable(kernels: str) -> str | None:
    """Return why kernels cannot be used on this machine, or None if they can. Loads them if need be."""
    try:
        reason = _module(kernels).unavailable()
    except Exception as error:  # PyTorch's operators compute the same
        reason = f"loading them failed with {error!r}"
    if reason is not None:
        # Nothing is wrong where these kernels are not expected.
        is_expected = kernels in _AUTOMATIC.values() and sys.platform == "linux"
        level = logging.WARNING if is_expected else logging.DEBUG
        logger.log(level, "the %s kernels cannot be used, PyTorch's operators compute instead: %s", kernels, reason)
    return reason


def _module(kernels: str) -> _KernelModule:
    return cast("_KernelModule", import_module(_MODULES[kernels]))


@torch.compiler.assume_constant_result
def _is_available(kernels: str) -> bool:
    return unavailable(kernels) is None


@Operation
def linear(x: Tensor, layer: nn.Module, norm: nn.Module | None = None) -> Tensor:
    """`layer(norm(x))`: (…, C) → (…, K).

    Args:
        x: (…, C).
        layer: a Linear, or anything in its place.
        norm: a layer norm, or None for `layer(x)`.
    """
    return layer(x if norm is None else norm(x))


@Operation
def norm_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
    """`mlp(norm(x))`: (…, C) → (…, C)."""
    return mlp(norm(x))


@Operation
def window_attention(
    x_BHWC: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    table_Lh: Tensor,
    *,
    window: int,
    query_BhNd: Tensor | None = None,
) -> Tensor:
    """Project a grid and attend inside its windows, which see zeros of the normed grid beyond the lower and right edge.

    Args:
        x_BHWC: (B, H, W, C), any H and W.
        norm: applied to `x_BHWC` first, or None.
        projection: from C to 3C (q, k, v) channels, or to 2C (k, v) when a query is given.
        table_Lh: see `attend_windows`.
        window: side of the window in tokens.
        query_BhNd: see `attend_windows`.

    Returns:
        (B, H, W, C).
    """
    projected_BHWC = _project_padded(x_BHWC, norm, projection, window)
    out_BHWC = attend_windows(projected_BHWC, table_Lh, window=window, query_BhNd=query_BhNd)
    return windows.crop(out_BHWC, x_BHWC.shape[1], x_BHWC.shape[2])


@Operation
def stripe_attention(
    x_BHWC: Tensor,
    norm: nn.Module | None,
    projection: nn.Module,
    vertical: nn.Module,
    horizontal: nn.Module,
    *,
    stripe: int,
    heads: int,
) -> Tensor:
    """Project a grid and attend inside its stripes, as `window_attention` does inside windows.

    Args:
        x_BHWC: (B, H, W, C), any H and W.
        norm: applied to `x_BHWC` first, or None.
        projection: from C to 3C (q, k, v) channels.
        vertical: see `attend_stripes`.
        horizontal: see `attend_stripes`.
        stripe: see `attend_stripes`.
        heads: see `attend_stripes`.

    Returns:
        (B, H, W, C).
    """
    qkv_BHWC = _project_padded(x_BHWC, norm, projection, stripe)
    out_BHWC = attend_stripes(qkv_BHWC, vertical, horizontal, stripe=stripe, heads=heads)
    return windows.crop(out_BHWC, x_BHWC.shape[1], x_BHWC.shape[2])


def _project_padded(x_BHWC: Tensor, norm: nn.Module | None, projection: nn.Module, window: int) -> Tensor:
    """Pad the normed grid with zeros to whole windows and project it."""
    rows, columns = windows.padding(x_BHWC.shape[1], x_BHWC.shape[2], window)
    if windows.is_sure(rows == 0, columns == 0):
        return linear(x_BHWC, projection, norm)
    if is_unchanged(projection, nn.Linear) and isinstance(projection.bias, Tensor):
        # A Linear turns zeros into its bias, so the padding needs no product.
        return windows.fill(linear(x_BHWC, projection, norm), window, projection.bias)
    return projection(windows.pad(x_BHWC if norm is None else norm(x_BHWC), window))


@Operation
def attend_windows(
    projected_BHWC: Tensor, table_Lh: Tensor, *, window: int, query_BhNd: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ/√d + position bias)·v inside non-overlapping windows.

    Args:
        projected_BHWC: (B, H, W, 3C) with q, k, v, or (B, H, W, 2C) with k, v when a query is given; each is cut as
            heads × d. H and W are multiples of `window`.
        table_Lh: ((2w − 1)², h), the bias of every relative position as `position_bias` spreads it.
        window: side w of the window in tokens.
        query_BhNd: one set of N queries an image, used by every window of that image and of no other.

    Returns:
        (B, H, W, C) in `projected_BHWC`'s dtype.
    """
    _, H, W, _ = projected_BHWC.shape
    parts = 3 if query_BhNd is None else 2
    cut = windows.partition(projected_BHWC.unflatten(-1, (parts, -1)), window, window, heads=table_Lh.shape[1])
    k_BMhNd, v_BMhNd = cut[-2:].unbind(0)
    q_BMhNd = cut[0] if query_BhNd is None else query_BhNd.to(cut.dtype).unsqueeze(1).expand_as(k_BMhNd)
    out_BMhNd = _attend(q_BMhNd, k_BMhNd, v_BMhNd, position_bias(table_Lh, window).to(cut.dtype))
    return windows.merge(out_BMhNd, window, window, H, W)


@Operation
def attend_stripes(qkv_BHWC: Tensor, vertical: nn.Module, horizontal: nn.Module, *, stripe: int, heads: int) -> Tensor:
    """softmax(q kᵀ/√d)·v + position(v), by half of the channels in vertical stripes, by the others in horizontal ones.

    Args:
        qkv_BHWC: (B, H, W, 3C) with q, k and v, each of them its vertical half, then its horizontal one, and each half
            cut as heads × d. H and W are multiples of `stripe`.
        vertical: depthwise 3×3 convolution that sees one vertical stripe at a time, zero-padded at the stripe's edge.
        horizontal: the convolution that sees one horizontal stripe at a time.
        stripe: tokens across a stripe; vertical ones are H × stripe, horizontal ones stripe × W.
        heads: attention heads of each direction.

    Returns:
        (B, H, W, C) in `qkv_BHWC`'s dtype: the vertical half, then the horizontal one.
    """
    _, H, W, _ = qkv_BHWC.shape
    halves = qkv_BHWC.unflatten(-1, (3, 2, -1)).unbind(4)
    directions = zip(halves, (vertical, horizontal), ((H, stripe), (stripe, W)), strict=True)
    return torch.cat([_one_direction(half, position, shape, heads) for half, position, shape in directions], dim=-1)


def _one_direction(qkv_BHWPC: Tensor, position: nn.Module, shape: tuple[int, int], heads: int) -> Tensor:
    """(B, H, W, 3, C) → (B, H, W, C) in stripes of `shape`."""
    _, H, W, _, _ = qkv_BHWPC.shape
    rows, columns = shape
    q_BMhNd, k_BMhNd, v_BMhNd = windows.partition(qkv_BHWPC, rows, columns, heads).unbind(0)
    out_BMhNd = _attend(q_BMhNd, k_BMhNd, v_BMhNd, None)
    # The convolution sees every stripe as an image of its own.
    v_BMCRT = v_BMhNd.transpose(3, 4).flatten(2, 3).unflatten(-1, (rows, columns))
    convolved_BMhNd = position(v_BMCRT.flatten(0, 1)).view(v_BMCRT.shape).unflatten(2, (heads, -1)).flatten(4)
    return windows.merge(out_BMhNd + convolved_BMhNd.transpose(3, 4), rows, columns, H, W)


@Operation
def attention(q_BNC: Tensor, k_BSC: Tensor, v_BSC: Tensor, *, heads: int) -> Tensor:
    """softmax(q kᵀ/√d)·v over whole sequences: (B, N, C) and twice (B, S, C) → (B, N, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BNC, k_BSC, v_BSC))
    # On a CPU the fused kernel is the slower one in bfloat16, as measured, and it has no forward-mode derivative.
    is_fused = q.device.type != "cpu" or not (q.dtype == torch.bfloat16 or is_transformed())
    out = F.scaled_dot_product_attention(q, k, v) if is_fused else _formula(q, k, v, None)
    return out.transpose(1, 2).flatten(2)


@Operation
def conv_branch(
    x_BCHW: Tensor, depthwise: nn.Module, activation: nn.Module, squeeze_excite: nn.Module, pointwise: nn.Module
) -> Tensor:
    """A map plus GC ViT's convolutional branch of it (equation 2): (B, C, H, W) → (B, C, H, W)."""
    return x_BCHW + pointwise(squeeze_excite(activation(depthwise(x_BCHW))))


def position_bias(table_Lh: Tensor, window: int) -> Tensor:
    """Spread a table of relative positions over all pairs of tokens of a window.

    Entry (Δrow + w − 1)(2w − 1) + (Δcol + w − 1) of the table belongs to Δ = query − key. Sliding a w×w view over the
    flipped table visits exactly these entries, so no index tensor (N² numbers a block) has to be kept.

    Args:
        table_Lh: ((2w − 1)², h).
        window: side w of the window in tokens.

    Returns:
        (h, N, N), query before key, N = w².
    """
    side = 2 * window - 1
    table = table_Lh.t().reshape(-1, side, side).flip(1, 2)
    pairs = table.unfold(1, window, 1).unfold(2, window, 1).flip(1, 2)
    return pairs.reshape(-1, window * window, window * window)


def _attend(q_BMhNd: Tensor, k_BMhNd: Tensor, v_BMhNd: Tensor, bias_hNN: Tensor | None) -> Tensor:
    if q_BMhNd.device.type in FUSED:
        # PyTorch's fused kernels expect images and windows on one axis.
        q, k, v = (part.flatten(0, 1) for part in (q_BMhNd, k_BMhNd, v_BMhNd))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias_hNN).view(q_BMhNd.shape)
    # On a CPU the fused kernel copies more than it saves, as measured.
    return _formula(q_BMhNd, k_BMhNd, v_BMhNd, bias_hNN)


def _formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q kᵀ/√d + bias)·v: (…, N, d), (…, S, d), (…, S, d) and (…, N, S) → (…, N, d)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1).to(v.dtype) @ v
