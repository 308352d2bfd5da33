"""Multi-scale deformable attention in plain PyTorch: each query reads a few learned places of each source map.

Paper: Zhu et al., ICLR 2021, arXiv 2010.04159. Nothing here depends on the values of a tensor, so it exports and
compiles as it stands.

Legend: `B` images · `Q` queries · `S` tokens of all source maps · `C` channels · `h` heads · `d` channels a head ·
`L` source maps · `P` points.
"""

from collections.abc import Sequence
from math import cos, pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grids = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Weighted sum of bilinear samples around each query's own place in the image.

    Args:
        dim: channels C of queries, sources and result.
        num_heads: heads, each with its own places and weights.
        levels: source maps L.
        points: places P that a head reads on each map.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, num_heads: int, levels: int, points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide the {dim} channels of deformable attention")
        self.shape = (num_heads, levels, points)
        self.offsets = nn.Linear(dim, 2 * num_heads * levels * points)
        self.weights = nn.Linear(dim, num_heads * levels * points)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, query_BQC: Tensor, places_Q2: Tensor, source_BSC: Tensor, grids: Grids) -> Tensor:
        """Read the source maps.

        Args:
            query_BQC: (B, Q, C).
            places_Q2: (Q, 2) float32, x before y, each query's place as a fraction of the image: see `places`.
            source_BSC: (B, S, C), the tokens of the L maps one after another, each row-major.
            grids: (rows, columns) of each map.

        Returns:
            (B, Q, C).
        """
        heads, levels, points = self.shape
        offsets = self.offsets(query_BQC).float().unflatten(-1, (heads, levels, points, 2))
        weights = self.weights(query_BQC).unflatten(-1, (heads, -1)).softmax(-1).unflatten(-1, (levels, points))
        sampled = sample(self.value(source_BSC), places_Q2, offsets, weights, grids)
        return self.output(sampled.to(query_BQC.dtype))

    def init_weights(self) -> None:
        """At first head k looks in direction 2πk/h, point p at p steps; all places count the same."""
        heads, levels, points = self.shape
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        steps = torch.arange(1.0, points + 1)[:, None] * _directions(heads)[:, None, None]
        with torch.no_grad():
            self.offsets.bias.copy_(steps.expand(heads, levels, points, 2).flatten())


def places(grids: Grids, device: torch.device) -> Tensor:
    """Centers of the tokens of maps, one map after another: (Q, 2) float32, x before y, as fractions of the image."""
    return torch.cat([_centers(rows, columns, device) for rows, columns in grids])


def sample(
    values_BSC: Tensor, places_Q2: Tensor, offsets_BQhLP2: Tensor, weights_BQhLP: Tensor, grids: Grids
) -> Tensor:
    """The weighted sum of bilinear samples at place + offset; zeros lie outside of the maps.

    Args:
        values_BSC: (B, S, C), channels cut as heads × d.
        places_Q2: (Q, 2), fractions of the image.
        offsets_BQhLP2: (B, Q, h, L, P, 2) in steps of the source map, x before y.
        weights_BQhLP: (B, Q, h, L, P).
        grids: (rows, columns) of each source map.

    Returns:
        (B, Q, C) float32: half precision could not tell neighboring tokens of a large map apart.
    """
    B, Q, heads, levels, points, _ = offsets_BQhLP2.shape
    maps = values_BSC.float().unflatten(-1, (heads, -1)).split([rows * columns for rows, columns in grids], dim=1)
    weights = weights_BQhLP.float().transpose(1, 2).reshape(B * heads, 1, Q, levels, points)
    total = 0
    for level, (rows, columns) in enumerate(grids):
        at = places_Q2[:, None, None] + offsets_BQhLP2[:, :, :, level] / _size(rows, columns, places_Q2.device)
        grid = (2 * at - 1).transpose(1, 2).reshape(B * heads, Q, points, 2)
        map_dHW = maps[level].permute(0, 2, 3, 1).reshape(B * heads, -1, rows, columns)
        samples = F.grid_sample(map_dHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (samples * weights[:, :, :, level]).sum(-1)
    assert isinstance(total, Tensor)
    return total.reshape(B, -1, Q).transpose(1, 2)


def _centers(rows: int, columns: int, device: torch.device) -> Tensor:
    y, x = (torch.arange(count, device=device) + 0.5 for count in (rows, columns))
    centers = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1).flatten(0, 1)
    return centers / _size(rows, columns, device)


def _size(rows: int, columns: int, device: torch.device) -> Tensor:
    """(columns, rows) as float32, counted on the device.

    That saves a copy to it, and torch.compile fails on arithmetic of floats with sizes that are symbols.
    """
    return torch.stack([torch.ones(count, device=device).sum() for count in (columns, rows)])


def _directions(heads: int) -> Tensor:
    """(h, 2): one direction a head, on the square of side 2 around the origin."""
    angles = [2 * pi * head / heads for head in range(heads)]
    return torch.tensor(
        [(cos(a) / max(abs(cos(a)), abs(sin(a))), sin(a) / max(abs(cos(a)), abs(sin(a)))) for a in angles]
    )
