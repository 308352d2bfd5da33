"""Images of several sizes in one tensor, and back to each one's own pixels.

Legend: `B` images · `C` channels · `H W` pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from globalvit.detectors.boxes import Size
from globalvit.models import windows

# Every stride of a detector's backbone divides it.
MULTIPLE = 32


def padded_size(height: int, width: int) -> Size:
    """Both sides rounded up to multiples of 32."""
    return height + -height % MULTIPLE, width + -width % MULTIPLE


def pad(images_BCHW: Tensor) -> Tensor:
    """Zeros right and below, up to multiples of 32."""
    rows, columns = windows.padding(images_BCHW.shape[2], images_BCHW.shape[3], MULTIPLE)
    return F.pad(images_BCHW, (0, columns, 0, rows))


def stack(images: Sequence[Tensor]) -> Tensor:
    """Images (C, h, w) → (B, C, H, W): zeros right and below, up to the largest sides."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


def scale_boxes(boxes_N4: Tensor, size: Size, to_size: Size) -> Tensor:
    """Boxes of an image of one size (height, width) in the pixels of the same image at another."""
    y, x = to_size[0] / size[0], to_size[1] / size[1]
    return boxes_N4 * boxes_N4.new_tensor([x, y, x, y])
