"""What the heads that answer for every pixel share.

Legend: `B` images · `C` channels · `H W` grid · `K` classes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.models import layers

DROPOUT = 0.1
CLASSIFIER_STD = 0.01


class ConvNormReLU(layers.ConvNormReLU):
    """Convolution without bias, batch norm, ReLU; it learns from a single value a channel, too.

    Pools of one image and the smallest maps have but one value, of which no deviation can be taken: there a batch norm
    uses its running statistics, in training as in evaluation.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉)."""
        x = self.conv(x_BCHW)
        # Batch norms of other kinds gather the values of several processes, which this one cannot count.
        is_single = self.norm.training and type(self.norm) is nn.BatchNorm2d and x.numel() == x.shape[1]
        return F.relu(_with_running_statistics(self.norm, x) if is_single else self.norm(x))


class DenseHead(nn.Module):
    """Feature maps → logits on the grid of one of them: (B, K, H, W).

    Args:
        channels: channels of the backbone's maps, finest first.
        strides: their strides.
        width: channels that the classifier sees.
        num_classes: channels of the logits.

    Raises:
        ValueError: `channels` and `strides` are not those of several maps, finest first.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        if (
            len(channels) != len(strides)
            or len(channels) < 2
            or any(fine > coarse for fine, coarse in pairwise(strides))
        ):
            raise ValueError(
                f"got maps of channels={tuple(channels)} and strides={tuple(strides)}, expected two or more, finest "
                "first: create the backbone with form='segmentation'"
            )
        # Whole channels are dropped: neighboring pixels of a map are much alike.
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def classify(self, x_BCHW: Tensor) -> Tensor:
        """(B, width, H, W) → (B, K, H, W)."""
        return self.classifier(self.dropout(x_BCHW))

    def init_weights(self) -> None:
        """Normal 0.01 for the classifier, its bias 0; the other convolutions keep torch's default."""
        nn.init.normal_(self.classifier.weight, std=CLASSIFIER_STD)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)


def resize_like(x_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Resize bilinearly to another map's grid."""
    return layers.resize_bilinear(x_BCHW, other_BCHW.shape[2], other_BCHW.shape[3])


def _with_running_statistics(norm: nn.BatchNorm2d, x_BCHW: Tensor) -> Tensor:
    return torch.batch_norm(
        x_BCHW, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.0, norm.eps, False
    )
