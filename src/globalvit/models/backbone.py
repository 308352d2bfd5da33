"""What every backbone offers to heads, necks, optimizers and the command line."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionView:
    """One thing that `globalvit.explain` can show of a backbone.

    Attributes:
        kind: `local` (windows or stripes), `global`, `groups`, `propagation`, `rollout` or `grad_cam`. The blocks of
            `local` and `global` have a method `attention_maps` that takes what `forward` takes and gives the
            `WindowMaps` of `models.attention_maps`; those of `grad_cam` give their output (B, H, W, C).
        stage: of a hierarchical network, from 0; None where there are no stages.
        block: in the stage, or in the network, from 0; None where all of them or the stage's output is meant.
        heads: how many there are to choose from, 0 where there is no choice.
        stride: pixels of the image to one token of the blocks.
    """

    kind: str
    stride: int
    stage: int | None = None
    block: int | None = None
    heads: int = 0


class Backbone(nn.Module):
    """`backbone(images)`: (B, in_channels, H, W) float → a list of NCHW maps, finest first, for any H and W.

    Attributes:
        channels: channels of the maps.
        strides: pixels of the image to one step on the maps; a map has ⌈H/stride⌉ × ⌈W/stride⌉ steps.
        in_channels: channels of the images.
        is_plain: all blocks work at one width and stride, as in a plain transformer. Detectors then have norms in
            their necks, and the auxiliary head of UPerNet takes the last map instead of the last but one.
        pooling: how a classifier makes one vector of the last map: `mean`, or `group`, one learned query that attends.
        first_center: where the middle of what the first token is computed from lies, in pixels from the image's edge;
            strided 3×3 convolutions with padding 1 keep it at the first pixel, whatever the stride.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    is_plain: bool = False
    pooling: Literal["mean", "group"] = "mean"
    first_center: float = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.is_checkpointed = False

    @abstractmethod
    def init_weights(self) -> None:
        """Draw fresh weights as the paper's code does, from torch's random state."""

    @abstractmethod
    def block_modules(self) -> list[nn.Module]:
        """Every block in order: the parts that checkpointing recomputes and sharding splits."""

    @abstractmethod
    def no_decay_names(self) -> set[str]:
        """Parameters with two axes or more that weight decay should spare; those with fewer are spared anyway."""

    @property
    @abstractmethod
    def num_depths(self) -> int:
        """Steps of layer-wise learning rates: the stem, every block; a head comes after as one more."""

    @abstractmethod
    def depth_of(self, name: str) -> int:
        """Depth of a parameter from 0 (stem) to `num_depths` − 1 (last block and final norm)."""

    def leave_out(self, maps: int) -> None:
        """Freeze what only the first `maps` maps need, which a neck does not take.

        Data-parallel training waits for the gradient of every parameter that is not frozen.
        """

    def attention_views(self) -> list[AttentionView]:
        """What `globalvit.explain` can show, from the first block to the last; nothing without such blocks."""
        return []

    def blocks_of(self, stage: int | None) -> list[nn.Module]:  # noqa: ARG002 - not every network has stages
        """The blocks of a stage that `attention_views` names; all of them where the network has no stages."""
        return self.block_modules()

    def check(self, images: Tensor) -> None:
        """Refuse what is not a batch of images.

        Raises:
            ValueError: the images are not (B, in_channels, H, W), have no pixels, or are integers.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images of shape (batch, {self.in_channels}, height, width), got {tuple(images.shape)}; "
                f"create the model with in_channels= for another number of channels"
            )
        if images.shape[2] == 0 or images.shape[3] == 0:
            raise ValueError(f"expected images of at least one pixel, got shape {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(
                f"expected floating-point images, normalized with the model's mean and std, got "
                f"{str(images.dtype).removeprefix('torch.')}; use model.predict for uint8 images"
            )

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """Call a block, keeping its activations or, under checkpointing, recomputing them in the backward pass."""
        if self.is_checkpointed and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self.is_checkpointed = enabled
