"""How many of the tokens that a backbone works on are padding, exactly, from its windows and the image size. No torch.

GC ViT pads the grid of a stage to multiples of its window in every block, GPViT that of its local blocks to multiples
of a stripe's width; detectors pad images to multiples of 32 pixels first. Padded tokens are attended to like others,
which takes time; what they are projected to is the bias, and nobody asks for their answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from globalvit.models.variants import GCViTConfig, GPViTConfig

GRID_STRIDE = {GCViTConfig: 4, GPViTConfig: 8}


@dataclass(frozen=True, slots=True)
class Grid:
    """The tokens of a stage (of GPViT: of its local blocks).

    Attributes:
        tokens: rows and columns of the grid.
        padded: of the grid that attention works on.
        blocks: that work on it.
    """

    tokens: tuple[int, int]
    padded: tuple[int, int]
    blocks: int

    @property
    def share(self) -> float:
        """Of the tokens that attention works on, the part that is padding."""
        return 1 - _area(self.tokens) / _area(self.padded)


def grids(config: GCViTConfig | GPViTConfig, size: tuple[int, int]) -> list[Grid]:
    """The grids of a backbone for images of `size` (height, width)."""
    first = (_over(size[0], GRID_STRIDE[type(config)]), _over(size[1], GRID_STRIDE[type(config)]))
    if isinstance(config, GPViTConfig):
        return [_grid(first, config.stripe, config.depth - len(config.group_tokens))]
    # Every downsampling halves the grid, rounding up.
    tokens = [(_over(first[0], 2**stage), _over(first[1], 2**stage)) for stage in range(len(config.depths))]
    return [_grid(*stage) for stage in zip(tokens, config.window, config.depths, strict=True)]


def padded_share(of_backbone: Sequence[Grid]) -> float:
    """Of all tokens that attention works on, over all blocks, the part that is padding."""
    padded = sum(grid.blocks * _area(grid.padded) for grid in of_backbone)
    return 1 - sum(grid.blocks * _area(grid.tokens) for grid in of_backbone) / padded


def _grid(tokens: tuple[int, int], window: int, blocks: int) -> Grid:
    rows, columns = (_over(side, window) * window for side in tokens)
    return Grid(tokens, (rows, columns), blocks)


def _over(number: int, divisor: int) -> int:
    """Divided, rounded up."""
    return -(-number // divisor)


def _area(sides: tuple[int, int]) -> int:
    return sides[0] * sides[1]
