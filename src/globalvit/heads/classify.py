"""From the last map to class logits.

Legend: `B` images · `H W` grid · `N` tokens · `C` channels · `K` classes.
"""

import torch
from torch import Tensor, nn

from globalvit.models import ops
from globalvit.models.attention_maps import sequence_map
from globalvit.models.layers import init_linear_, to_nhwc

GROUP_HEADS = 6
GROUP_EPS = 1e-5


class MeanPool(nn.Module):
    """Mean over all tokens."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        return x_BCHW.mean((2, 3))


class GroupPool(nn.Module):
    """One learned token attends to all tokens; keys are projected, values are not (GPViT L1 and L2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, channels))
        self.norm = nn.LayerNorm(channels, eps=GROUP_EPS)
        self.key = nn.Linear(channels, channels, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        x_BNC = to_nhwc(x_BCHW).flatten(1, 2)
        q_B1C = self.norm(self.token).expand(x_BNC.shape[0], -1, -1)
        return ops.attention(q_B1C, self.key(x_BNC), x_BNC, heads=GROUP_HEADS).squeeze(1)

    def attention_map(self, x_BCHW: Tensor) -> Tensor:
        """How much the learned token takes from each place when `forward` gets the same: (B, h, H, W)."""
        x_BNC = to_nhwc(x_BCHW).flatten(1, 2)
        q_B1C = self.norm(self.token).expand(x_BNC.shape[0], -1, -1)
        return sequence_map(q_B1C, self.key(x_BNC), GROUP_HEADS).squeeze(2).unflatten(-1, x_BCHW.shape[-2:])


class ClassifyHead(nn.Module):
    """Pool a map to a vector, then a linear layer."""

    def __init__(self, pool: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        return self.linear(self.pool(x_BCHW))

    def init_weights(self) -> None:
        """Truncated normal 0.02 for Linears, biases 0; a group pool's token starts at 0."""
        init_linear_(self)
