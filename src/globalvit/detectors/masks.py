"""Masks of boxes, put where they belong in the image.

Legend: `N` masks · `h w` grid of a mask within its box · `H W` pixels of the image.
"""

import torch
from torch import Tensor

from globalvit.detectors.boxes import Size

THRESHOLD = 0.5
# Pixels of the images that are worked on at a time, 4 bytes each.
PIXELS_AT_ONCE = 2**24
SMALLEST_SIDE = 1e-6


def paste(masks_Nhw: Tensor, boxes_N4: Tensor, size: Size) -> Tensor:
    """Probabilities within boxes → masks of the whole image: (N, H, W) bool, true from 0.5 on.

    Bilinear between the mask's cells, whose centers and the pixels' lie at + 0.5; zero outside the mask.
    Apart from the result, memory does not grow with the number of masks.

    Args:
        masks_Nhw: float, any grid.
        boxes_N4: in pixels of the image.
        size: (height, width) of the image.
    """
    height, width = size
    out = torch.zeros(len(masks_Nhw), height, width, dtype=torch.bool, device=masks_Nhw.device)
    step = max(1, PIXELS_AT_ONCE // max(1, height * width))
    for start in range(0, len(masks_Nhw), step):
        masks, boxes = masks_Nhw[start : start + step].float(), boxes_N4[start : start + step].float()
        rows_NHh = _weights(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
        columns_NWw = _weights(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
        # Under autocast the products would be in half precision, and masks coarser than their cells.
        with torch.autocast(masks.device.type, enabled=False):
            out[start : start + step] = rows_NHh @ masks @ columns_NWw.transpose(1, 2) >= THRESHOLD
    return out


def _weights(starts_N: Tensor, ends_N: Tensor, pixels: int, cells: int) -> Tensor:
    """How much each of a mask's cells counts for each pixel of an axis: (N, pixels, cells)."""
    centers = torch.arange(pixels, device=starts_N.device) + 0.5
    sides_N1 = (ends_N - starts_N).clamp(min=SMALLEST_SIDE)[:, None]
    places_NP = (centers - starts_N[:, None]) / sides_N1 * cells - 0.5
    distances = (places_NP[:, :, None] - torch.arange(cells, device=starts_N.device)).abs()
    return (1 - distances).clamp(min=0)
