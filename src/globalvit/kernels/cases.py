"""Calls of every operation that has kernels, and their comparison with PyTorch's operators in float64."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from globalvit.models import ops
from globalvit.models.layers import Mlp, SqueezeExcite
from globalvit.models.ops import Operation

# Largest difference from float64, relative to the largest number of each result and gradient.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A call of an operation.

    Attributes:
        operation: what is called.
        arguments: tensors, modules and None, the first a tensor.
        keywords: further tensors and numbers.
        is_trained: whether gradients are computed as well.
    """

    operation: Operation
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    is_trained: bool

    @property
    def name(self) -> str:
        """The operation's name, and how it is called."""
        return f"{self.operation.__name__}, {'training' if self.is_trained else 'inference'}"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of tensors and modules."""
        return self.arguments[0].dtype

    def copied(self, dtype: torch.dtype, device: torch.device) -> "Case":
        """Return the same call with tensors and modules of another dtype and device."""
        arguments = tuple(_to(one, dtype, device) for one in self.arguments)
        keywords = {name: _to(one, dtype, device) for name, one in self.keywords.items()}
        return Case(operation=self.operation, arguments=arguments, keywords=keywords, is_trained=self.is_trained)

    def leaves(self) -> list[Tensor]:
        """Return everything that gets a gradient: tensors, then parameters."""
        given = [*self.arguments, *self.keywords.values()]
        tensors = [one for one in given if isinstance(one, Tensor)]
        return tensors + [parameter for one in given if isinstance(one, nn.Module) for parameter in one.parameters()]

    def results(self, run: Callable[..., Tensor]) -> list[Tensor]:
        """Return what `run` computes for this call, and the gradients in training."""
        if not self.is_trained:
            with torch.no_grad():
                return [run(*self.arguments, **self.keywords)]
        leaves = self.leaves()
        for leaf in leaves:
            leaf.requires_grad_()
        out = run(*self.arguments, **self.keywords)
        return [out.detach(), *torch.autograd.grad(out, leaves, _cotangent(out.shape, out.dtype, out.device))]

    def error(self, run: Callable[..., Tensor]) -> float:
        """Return the largest relative difference of `run` from PyTorch's operators in float64; infinity for NaN."""
        exact = self.copied(torch.float64, self.arguments[0].device).results(self.operation.plain)
        errors = [_difference(got, wanted) for got, wanted in zip(self.results(run), exact, strict=True)]
        return max(errors)

    def accepts(self, kernels: str) -> bool:
        """Whether the kernels compute this call."""
        found = self.operation.implementations.get(kernels)
        return found is not None and self.is_accepted(found.accepts)

    def is_accepted(self, accepts: Callable[..., bool]) -> bool:
        """Whether `accepts` is true of this call, with gradients if it is one of training."""
        with torch.set_grad_enabled(self.is_trained):
            for leaf in self.leaves():
                leaf.requires_grad_(self.is_trained)
            return accepts(*self.arguments, **self.keywords)


def cases(dtype: torch.dtype, *, side: int, dim: int, images: int = 1, device: str = "cpu") -> Iterator[Case]:
    """Yield a call of every operation on random numbers; the same ones every time.

    Args:
        dtype: of tensors and modules.
        side: of the square grid, a multiple of 14; inference gets a grid that is larger by one column.
        dim: channels, a multiple of 32.
        images: of the batch.
        device: of tensors and modules.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        made = list(_cases(side, dim, images))
    return (case.copied(dtype, torch.device(device)) for case in made)


def _cases(side: int, dim: int, images: int) -> Iterator[Case]:
    heads, window, stripe, wide = dim // 32, 7, 2, side + 1
    norm, mlp = nn.LayerNorm(dim, NORM_EPS), Mlp(dim, 2 * dim)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    qkv, kv = nn.Linear(dim, 3 * dim), nn.Linear(dim, 2 * dim)
    table = 0.5 * torch.randn((2 * window - 1) ** 2, heads)
    query = torch.randn(images, heads, window**2, dim // heads)
    convs = [nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2) for _ in range(2)]
    branch = (
        nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
        nn.GELU(),
        SqueezeExcite(dim),
        nn.Conv2d(dim, dim, 1, bias=False),
    )
    grid, wide_grid = torch.randn(images, side, side, dim), torch.randn(images, side, wide, dim)
    shared = {"window": window, "query_BhNd": query}

    def case(operation: Operation, *arguments: Any, is_trained: bool = True, **keywords: Any) -> Case:
        return Case(operation=operation, arguments=arguments, keywords=keywords, is_trained=is_trained)

    yield case(ops.linear, grid, qkv, norm)
    yield case(ops.norm_mlp, grid, norm, mlp)
    yield case(ops.attend_windows, torch.randn(images, side, side, 3 * dim), table, window=window)
    yield case(ops.attend_windows, torch.randn(images, side, side, 2 * dim), table, **shared)
    yield case(ops.attend_stripes, torch.randn(images, side, side, 3 * dim), *convs, stripe=stripe, heads=heads)
    yield case(ops.conv_branch, grid.permute(0, 3, 1, 2), *branch)
    yield case(ops.window_attention, wide_grid, norm, qkv, table, window=window, is_trained=False)
    yield case(ops.window_attention, wide_grid, norm, kv, table, is_trained=False, **shared)
    yield case(ops.stripe_attention, wide_grid, norm, qkv, *convs, stripe=stripe, heads=heads, is_trained=False)


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Compute with gradients and without autocast, whatever the caller's modes are."""
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        yield


def medians(runs: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Return the median time of each of several runs in seconds; they take turns. A GPU's work is waited for."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for one, run in zip(times, runs, strict=True):
            start = time.perf_counter()
            run()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            one.append(time.perf_counter() - start)
    return [statistics.median(one) for one in times]


@cache
def _cotangent(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64).to(device, dtype)


def _to(one: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(one, nn.Module):
        return copy.deepcopy(one).to(device, dtype)
    return one.detach().to(device, dtype, copy=True) if isinstance(one, Tensor) else one


def _difference(got: Tensor, wanted: Tensor) -> float:
    difference = (got.double() - wanted).abs().max() / wanted.abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")
