"""From the last map to class logits.

Legend: `B` images · `H W` grid · `C` channels · `K` classes.
"""

from torch import Tensor, nn

from globalvit.models.layers import init_linear_


class MeanHead(nn.Module):
    """Mean over all tokens, then a linear layer (GC ViT, section 2)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, K)."""
        return self.linear(x_BCHW.mean((2, 3)))

    def init_weights(self) -> None:
        """Truncated normal 0.02, bias 0."""
        init_linear_(self)
