"""From tensors to kernels: which blocks, how many programs, which buffers. Everything here runs outside autograd.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head ·
`L` entries of a position table · `S` windows of all images.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from globalvit.kernels.triton.blocks import backward_keys, backward_queries
from globalvit.kernels.triton.forward import forward
from globalvit.kernels.triton.pairs import backward_pairs, fold_pairs
from globalvit.kernels.triton.support import IS_INTERPRETED
from globalvit.kernels.triton.tiles import Grid
from globalvit.kernels.triton.whole import backward_whole

# A window of so many tokens is one tile: 64×64 logits of float32 are 32 registers a thread.
WHOLE_TOKENS = 64
# Enough programs to fill the largest GPUs (132 multiprocessors, four programs each) twice; more windows than that go
# into one program, which then reads the bias once for all of them. The interpreter gets groups in any case, as a test.
FULL = 4 if IS_INTERPRETED else 1056
MOST_WINDOWS_A_PROGRAM = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Attention in windows of one shape, with what the kernels read besides q, k and v.

    Attributes:
        q: view of the projection (B, H, W, h·d), or one set of queries an image (B, h, N, d).
        k: view of the projection (B, H, W, h·d); the step from token to token is `in_step`.
        v: as `k`.
        grid: sizes.
        table: (h, L) float32, or None.
        weight: (h·d, 1, 3, 3) of the position convolution, or None.
        shift: (h·d,), its bias.
        is_global: whether q is a set of queries an image.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grid: Grid
    dim: int
    is_global: bool = False
    table: Tensor | None = None
    weight: Tensor | None = None
    shift: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.grid.rows * self.grid.columns

    @property
    def is_whole(self) -> bool:
        """Whether a window is one tile."""
        return self.tokens <= WHOLE_TOKENS

    @property
    def block(self) -> int:
        """Tokens of a side of a tile: 64, which feeds the tensor cores best, unless 32 spares many padded ones.

        At N = 196 blocks of 64 compute 256² pairs a window and those of 32 only 224², for 196² that count.
        """
        if self.is_whole:
            return max(16, triton.next_power_of_2(self.tokens))
        padded_32, padded_64 = (-(-self.tokens // side) * side for side in (32, 64))
        return 64 if padded_64 <= 1.05 * padded_32 else 32

    @property
    def blocks(self) -> int:
        """Blocks of queries of a window."""
        return -(-self.tokens // self.block)

    def group(self, programs_a_window: int) -> int:
        """How many windows one program takes.

        Where the query is shared, they are windows of one image, so that its gradient can be summed in the program.
        """
        wanted = self.grid.windows * programs_a_window // FULL
        wanted = max(1, min(MOST_WINDOWS_A_PROGRAM, wanted))
        # Powers of two: each is a kernel of its own to compile.
        wanted = 1 << (wanted.bit_length() - 1)
        an_image = self.grid.windows // self.q.shape[0]
        return gcd(wanted, an_image) if self.is_global else wanted

    def constants(self) -> dict[str, Any]:
        """Compile-time constants of every kernel, and how many threads work on a tile."""
        return {
            "IS_GLOBAL": self.is_global,
            "DIM": self.dim,
            "BLOCK_D": max(16, triton.next_power_of_2(self.dim)),
            "BLOCK": self.block,
            "num_warps": 4 if self.block == 64 else 2,
        }


def attend(case: Case, out: Tensor, statistics: Tensor | None) -> None:
    """Write (B, H, W, h·d) and, for the backward pass, log₂ Σ 2^logit of every query (S, h, N) float32."""
    group = case.group(case.grid.heads * case.blocks)
    groups = -(-case.grid.windows // group)
    with torch.cuda.device_of(out):
        forward[(case.grid.heads * case.blocks * groups,)](
            case.q,
            case.k,
            case.v,
            case.table,
            case.weight,
            case.shift,
            out,
            statistics,
            case.grid,
            HAS_BIAS=case.table is not None,
            HAS_POSITION=case.weight is not None,
            WITH_STATISTICS=statistics is not None,
            IS_WHOLE=case.is_whole,
            GROUP=group,
            **case.constants(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradients:
    """Where the backward pass writes.

    Attributes:
        q: view of the projection's gradient; unused where the query is shared.
        k: view of the projection's gradient.
        v: view of the projection's gradient.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Gradients of what windows share, float32; None for what a case does not have.

    Every program writes its own part and the parts are added up afterwards, so that the same inputs give the same bits.

    Attributes:
        query: (B, h, N, d).
        table: (L, h).
        position: (h, 10, d), the nine taps of the convolution's weight and its bias.
    """

    query: Tensor | None
    table: Tensor | None
    position: Tensor | None


def attend_backward(case: Case, grad: Tensor, out: Tensor, statistics: Tensor, into: Gradients) -> Sums:
    """Write the gradients of `into` and return the others.

    Args:
        case: as in the forward pass.
        grad: gradient of `out`, of the same steps.
        out: what the forward pass wrote.
        statistics: what the forward pass wrote.
        into: receives gradients.
    """
    with torch.cuda.device_of(grad):
        if case.is_whole:
            return _backward_whole(case, grad, statistics, into)
        return _backward_blocks(case, grad, out, statistics, into)


def _backward_whole(case: Case, grad: Tensor, statistics: Tensor, into: Gradients) -> Sums:
    group = case.group(case.grid.heads)
    groups = -(-case.grid.windows // group)
    queries = _parts(case, groups, case.tokens, case.dim) if case.is_global else None
    pairs = None if case.table is None else _parts(case, groups, case.tokens, case.tokens)
    positions = None if case.weight is None else _parts(case, groups, 10, case.dim)
    backward_whole[(case.grid.heads * groups,)](
        grad,
        case.q,
        case.k,
        case.v,
        case.table,
        case.weight,
        statistics,
        queries if case.is_global else into.q,
        into.k,
        into.v,
        pairs,
        positions,
        case.grid,
        HAS_BIAS=case.table is not None,
        HAS_POSITION=case.weight is not None,
        GROUP=group,
        **case.constants(),
    )
    return _sums(case, queries, pairs, positions)


def _backward_blocks(case: Case, grad: Tensor, out: Tensor, statistics: Tensor, into: Gradients) -> Sums:
    means = torch.empty_like(statistics)
    queries = _backward_queries(case, grad, out, statistics, means, into.q)
    positions = None
    if case.weight is not None:
        positions = _parts(case, case.grid.windows * case.blocks, 10, case.dim)
    backward_keys[(case.grid.heads * case.blocks * case.grid.windows,)](
        grad,
        case.q,
        case.k,
        case.v,
        case.table,
        case.weight,
        statistics,
        means,
        into.k,
        into.v,
        positions,
        case.grid,
        HAS_BIAS=case.table is not None,
        HAS_POSITION=case.weight is not None,
        **case.constants(),
    )
    pairs = None if case.table is None else _backward_pairs(case, grad, statistics, means)
    return _sums(case, queries, pairs, positions)


def _backward_queries(
    case: Case, grad: Tensor, out: Tensor, statistics: Tensor, means: Tensor, dq: Tensor | None
) -> Tensor | None:
    """Write `means` and `dq`, or return the parts of the shared queries' gradient."""
    group = case.group(case.grid.heads * case.blocks) if case.is_global else 1
    groups = -(-case.grid.windows // group)
    queries = _parts(case, groups, case.tokens, case.dim) if case.is_global else None
    backward_queries[(case.grid.heads * case.blocks * groups,)](
        grad,
        case.q,
        case.k,
        case.v,
        out,
        case.table,
        statistics,
        means,
        queries if case.is_global else dq,
        case.grid,
        HAS_BIAS=case.table is not None,
        HAS_POSITION=case.weight is not None,
        GROUP=group,
        **case.constants(),
    )
    return queries


def _backward_pairs(case: Case, grad: Tensor, statistics: Tensor, means: Tensor) -> Tensor:
    """Parts of the gradient of the bias: (groups, h, N, N)."""
    tiles = case.grid.heads * case.blocks**2
    group = case.group(tiles)
    groups = -(-case.grid.windows // group)
    pairs = _parts(case, groups, case.tokens, case.tokens)
    backward_pairs[(tiles * groups,)](
        grad,
        case.q,
        case.k,
        case.v,
        case.table,
        statistics,
        means,
        pairs,
        case.grid,
        GROUP=group,
        **case.constants(),
    )
    return pairs


def _parts(case: Case, parts: int, rows: int, columns: int) -> Tensor:
    """A buffer of which every element is written."""
    return torch.empty(parts, case.grid.heads, rows, columns, dtype=torch.float32, device=case.k.device)


def _sums(case: Case, queries: Tensor | None, pairs: Tensor | None, positions: Tensor | None) -> Sums:
    return Sums(
        query=None if queries is None else queries.unflatten(0, (case.q.shape[0], -1)).sum(1),
        table=None if pairs is None else _fold(pairs.sum(0), case.grid.columns),
        position=None if positions is None else positions.sum(0),
    )


def _fold(pairs_hNN: Tensor, window: int) -> Tensor:
    """Add up the pairs of each entry of the table: (h, N, N) → (L, h), the adjoint of spreading a table."""
    heads, side = pairs_hNN.shape[0], 2 * window - 1
    table = torch.empty(side * side, heads, dtype=torch.float32, device=pairs_hNN.device)
    fold_pairs[(heads * side,)](pairs_hNN, table, window, heads, SIDE=triton.next_power_of_2(window))
    return table
