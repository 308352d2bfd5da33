"""From tensors to kernels: which blocks, how many programs, which buffers. Everything here runs outside autograd.

Legend: `B` images · `H W` grid · `C` channels · `N` tokens of a window · `h` heads · `d` channels a head ·
`L` entries of a position table · `S` windows of all images.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from globalvit.kernels.gpu.blocks import backward_keys, backward_queries
from globalvit.kernels.gpu.forward import forward
from globalvit.kernels.gpu.pairs import backward_pairs, fold_pairs
from globalvit.kernels.gpu.support import IS_INTERPRETED
from globalvit.kernels.gpu.tiles import Grid
from globalvit.kernels.gpu.whole import backward_whole

# A window of so many tokens is one tile: 64×64 logits of float32 are 32 registers a thread.
WHOLE_TOKENS = 64
# Enough programs to fill the largest GPUs (132 multiprocessors, four programs each) twice; more windows than that go
# into one program, which then reads the bias once for all of them. The interpreter gets groups in any case, as a test.
FULL = 4 if IS_INTERPRETED else 1056
MOST_WINDOWS_A_PROGRAM = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Attention in windows of one shape, with everything the kernels read.

    Attributes:
        projected: (B, H, W, …), contiguous.
        queries: (B, h, N, d), contiguous, where the windows of an image share them, else None.
        table: (h, L) float32, contiguous, or None.
        weight: (h·d, 1, 3, 3) of the position convolution, contiguous, or None.
        shift: (h·d,), its bias.
        heads: attention heads.
        dim: channels of a head.
        window: rows and columns of a window.
        starts: where the first head's query, key and value begin among a token's channels.
        out_start: where the first head begins among the channels of an output.
        out_channels: channels of an output.
    """

    projected: Tensor
    heads: int
    dim: int
    window: tuple[int, int]
    starts: tuple[int, int, int]
    out_channels: int
    out_start: int = 0
    queries: Tensor | None = None
    table: Tensor | None = None
    weight: Tensor | None = None
    shift: Tensor | None = None

    @property
    def images(self) -> int:
        """Images of the batch."""
        return self.projected.shape[0]

    @property
    def windows(self) -> int:
        """Windows of all images."""
        B, H, W, _ = self.projected.shape
        return B * (H // self.window[0]) * (W // self.window[1])

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.window[0] * self.window[1]

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

    def group(self, programs_a_window: int, *, within_image: bool = False) -> int:
        """How many windows one program takes, on request windows of one image, which share their queries."""
        wanted = self.windows * programs_a_window // FULL
        wanted = max(1, min(MOST_WINDOWS_A_PROGRAM, wanted))
        # Powers of two: each is a kernel of its own to compile.
        wanted = 1 << (wanted.bit_length() - 1)
        return gcd(wanted, self.windows // self.images) if within_image else wanted

    def grid(self) -> Grid:
        """The kernels' numbers."""
        _, H, W, channels = self.projected.shape
        # Everything is a multiple of a head's channels; 8 elements are 16 bytes, the widest load, in half types.
        align = gcd(self.dim, 8)
        q_start, k_start, v_start = (start // align for start in self.starts)
        rows, columns = self.window
        return Grid(
            windows=self.windows,
            height=H,
            width=W,
            heads=self.heads,
            in_step=channels // align,
            out_step=self.out_channels // align,
            q_start=q_start,
            k_start=k_start,
            v_start=v_start,
            out_start=self.out_start // align,
            scale=self.dim**-0.5,
            # The side of a stripe that spans the image takes any value, and must not be compiled in.
            rows=rows if columns < rows else tl.constexpr(rows),
            columns=columns if rows < columns else tl.constexpr(columns),
            tokens=tl.constexpr(self.tokens) if rows == columns else self.tokens,
            align=tl.constexpr(align),
            dim=tl.constexpr(self.dim),
            lanes=tl.constexpr(max(16, triton.next_power_of_2(self.dim))),
            block=tl.constexpr(self.block),
        )

    def constants(self, **others: Any) -> dict[str, Any]:
        """Compile-time constants of a kernel, and how many warps of threads work on a tile."""
        return {"IS_GLOBAL": self.queries is not None, "num_warps": 4 if self.block == 64 else 2, **others}

    def flags(self) -> dict[str, bool]:
        """Which parts a case has."""
        return {"HAS_BIAS": self.table is not None, "HAS_POSITION": self.weight is not None}


def attend(case: Case, out: Tensor, statistics: Tensor | None) -> None:
    """Write the output and, for the backward pass, log₂ Σ 2^logit of every query (S, h, N) float32."""
    group = case.group(case.heads * case.blocks)
    groups = -(-case.windows // group)
    with torch.cuda.device_of(out):
        forward[(case.heads * case.blocks * groups,)](
            case.queries if case.queries is not None else case.projected,
            case.projected,
            case.table,
            case.weight,
            case.shift,
            out,
            statistics,
            case.grid(),
            **case.flags(),
            **case.constants(WITH_STATISTICS=statistics is not None, IS_WHOLE=case.is_whole, GROUP=group),
        )


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


def attend_backward(case: Case, grad: Tensor, out: Tensor, statistics: Tensor, dprojected: Tensor) -> Sums:
    """Write into the projection's gradient and return the others.

    Args:
        case: as in the forward pass.
        grad: gradient of `out`, of the same steps.
        out: what the forward pass wrote.
        statistics: what the forward pass wrote.
        dprojected: gradient of the projection; a stripe's case writes its direction's half.
    """
    with torch.cuda.device_of(grad):
        if case.is_whole:
            return _backward_whole(case, grad, statistics, dprojected)
        return _backward_blocks(case, grad, out, statistics, dprojected)


def _backward_whole(case: Case, grad: Tensor, statistics: Tensor, dprojected: Tensor) -> Sums:
    group = case.group(case.heads, within_image=case.queries is not None)
    groups = -(-case.windows // group)
    queries = _parts(case, groups, case.tokens, case.dim) if case.queries is not None else None
    pairs = None if case.table is None else _parts(case, groups, case.tokens, case.tokens)
    positions = None if case.weight is None else _parts(case, groups, 10, case.dim)
    backward_whole[(case.heads * groups,)](
        grad,
        case.queries if case.queries is not None else case.projected,
        case.projected,
        case.table,
        case.weight,
        statistics,
        dprojected,
        queries,
        pairs,
        positions,
        case.grid(),
        **case.flags(),
        **case.constants(GROUP=group),
    )
    return _sums(case, queries, pairs, positions)


def _backward_blocks(case: Case, grad: Tensor, out: Tensor, statistics: Tensor, dprojected: Tensor) -> Sums:
    means = torch.empty_like(statistics)
    queries = _backward_queries(case, grad, out, statistics, means, dprojected)
    positions = None
    if case.weight is not None:
        positions = _parts(case, case.windows * case.blocks, 10, case.dim)
    backward_keys[(case.heads * case.blocks * case.windows,)](
        grad,
        case.queries if case.queries is not None else case.projected,
        case.projected,
        case.table,
        case.weight,
        statistics,
        means,
        dprojected,
        positions,
        case.grid(),
        **case.flags(),
        **case.constants(),
    )
    pairs = None if case.table is None else _backward_pairs(case, grad, statistics, means)
    return _sums(case, queries, pairs, positions)


def _backward_queries(
    case: Case, grad: Tensor, out: Tensor, statistics: Tensor, means: Tensor, dprojected: Tensor
) -> Tensor | None:
    """Write `means` and the queries' gradient, or return its parts where queries are shared."""
    group = case.group(case.heads * case.blocks, within_image=True) if case.queries is not None else 1
    groups = -(-case.windows // group)
    queries = _parts(case, groups, case.tokens, case.dim) if case.queries is not None else None
    backward_queries[(case.heads * case.blocks * groups,)](
        grad,
        case.queries if case.queries is not None else case.projected,
        case.projected,
        out,
        case.table,
        statistics,
        means,
        dprojected,
        queries,
        case.grid(),
        **case.flags(),
        **case.constants(GROUP=group),
    )
    return queries


def _backward_pairs(case: Case, grad: Tensor, statistics: Tensor, means: Tensor) -> Tensor:
    """Parts of the gradient of the bias: (groups, h, N, N)."""
    tiles = case.heads * case.blocks**2
    group = case.group(tiles)
    groups = -(-case.windows // group)
    pairs = _parts(case, groups, case.tokens, case.tokens)
    backward_pairs[(tiles * groups,)](
        grad,
        case.queries if case.queries is not None else case.projected,
        case.projected,
        case.table,
        statistics,
        means,
        pairs,
        case.grid(),
        **case.constants(GROUP=group),
    )
    return pairs


def _parts(case: Case, parts: int, rows: int, columns: int) -> Tensor:
    """A buffer of which every element is written."""
    return torch.empty(parts, case.heads, rows, columns, dtype=torch.float32, device=case.projected.device)


def _sums(case: Case, queries: Tensor | None, pairs: Tensor | None, positions: Tensor | None) -> Sums:
    return Sums(
        query=None if queries is None else queries.unflatten(0, (case.images, -1)).sum(1),
        table=None if pairs is None else _fold(pairs.sum(0), case.window[1]),
        position=None if positions is None else positions.sum(0),
    )


def _fold(pairs_hNN: Tensor, window: int) -> Tensor:
    """Add up the pairs of each entry of the table: (h, N, N) → (L, h), the adjoint of spreading a table."""
    heads, side = pairs_hNN.shape[0], 2 * window - 1
    table = torch.empty(side * side, heads, dtype=torch.float32, device=pairs_hNN.device)
    constants: dict[str, Any] = {"SIDE": triton.next_power_of_2(window)}
    fold_pairs[(heads * side,)](pairs_hNN, table, window, heads, **constants)
    return table
