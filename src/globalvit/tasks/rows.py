"""Scores of the pixels of an image, computed a few rows at a time.

At 150 classes the scores of an image of 2000×3000 pixels take 3.6 GB. They are therefore never held: what a head gives
on its coarse grid is, and rows are made of it when they are asked for, by resizing, averaging overlapping windows and
mirroring, each a small object on top of another.

Legend: `B` images · `C` channels · `H W` pixels · `h w` coarse grid · `K` classes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from globalvit.models.layers import resize_bilinear

# Scores in a band of rows: 64 MiB of float32.
BAND = 2**24
# Windows in a forward pass.
WINDOWS = 4


class Rows(Protocol):
    """Scores (K, height, width), computed on request."""

    height: int
    width: int

    def rows(self, top: int, bottom: int) -> Tensor:
        """float32 (K, bottom − top, width). Neither `top` nor `bottom` may be smaller than when last asked."""
        ...


class Held:
    """Scores that are in memory."""

    def __init__(self, scores_KHW: Tensor) -> None:
        self.scores = scores_KHW
        self.height, self.width = scores_KHW.shape[-2:]

    def rows(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        return self.scores[:, top:bottom].float()


class Resized:
    """Other scores, resized bilinearly as `resize_bilinear` does it to all rows at once."""

    def __init__(self, source: Rows, height: int, width: int) -> None:
        self.source = source
        self.height, self.width = height, width

    def rows(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        if (self.height, self.width) == (self.source.height, self.source.width):
            return self.source.rows(top, bottom)
        # In float32, as torch computes it.
        at = (torch.arange(top, bottom) + 0.5) * (torch.tensor(float(self.source.height)) / self.height) - 0.5
        at.clamp_(min=0.0)
        upper = at.long()
        lower = (upper + 1).clamp_(max=self.source.height - 1)
        first = int(upper[0])
        scores_KhW = _widen(self.source.rows(first, int(lower[-1]) + 1), self.width)
        upper_KHW, lower_KHW = (scores_KhW[:, (one - first).to(scores_KhW.device)] for one in (upper, lower))
        return upper_KHW.lerp_(lower_KHW, (at - upper).to(scores_KhW.device)[:, None])


class Mirrored:
    """Other scores, mirrored horizontally."""

    def __init__(self, source: Rows) -> None:
        self.source = source
        self.height, self.width = source.height, source.width

    def rows(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        return self.source.rows(top, bottom).flip(-1)


class Windowed:
    """The mean scores of overlapping windows; windows at the right and lower border are shifted inside.

    Windows are looked at when the first row that they cover is asked for, and forgotten after their last one.

    Args:
        image_CHW: the image as the model takes it.
        crop: side of a window, less where the image is smaller.
        stride: from one window to the next, at most `crop`.
        infer: (B, C, H, W) → scores (B, K, h, w) on a coarse grid.
    """

    def __init__(self, image_CHW: Tensor, crop: int, stride: int, infer: Callable[[Tensor], Tensor]) -> None:
        self.image = image_CHW
        self.infer = infer
        self.height, self.width = image_CHW.shape[-2:]
        self.crop = (min(crop, self.height), min(crop, self.width))
        self.tops = starts(self.height, self.crop[0], stride)
        self.lefts = starts(self.width, self.crop[1], stride)
        self.seen: dict[int, list[Resized]] = {}

    def rows(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        self._look(top, bottom)
        scores_KHW = visits_HW = None
        for row, left, window in self._windows():
            first, last = max(top, row), min(bottom, row + self.crop[0])
            part = window.rows(first - row, last - row)
            if scores_KHW is None or visits_HW is None:
                scores_KHW = part.new_zeros(len(part), bottom - top, self.width)
                visits_HW = part.new_zeros(bottom - top, self.width)
            covered = (slice(first - top, last - top), slice(left, left + self.crop[1]))
            scores_KHW[:, *covered] += part
            visits_HW[covered] += 1
        assert scores_KHW is not None
        assert visits_HW is not None
        return scores_KHW.div_(visits_HW)

    def _look(self, top: int, bottom: int) -> None:
        """Have exactly the windows that cover some row from `top` to `bottom`."""
        self.seen = {row: windows for row, windows in self.seen.items() if row + self.crop[0] > top}
        for row in self.tops:
            if row < bottom and row + self.crop[0] > top and row not in self.seen:
                self.seen[row] = list(self._look_along(row))

    def _look_along(self, row: int) -> Iterator[Resized]:
        height, width = self.crop
        crops = [self.image[:, row : row + height, left : left + width] for left in self.lefts]
        for start in range(0, len(crops), WINDOWS):
            for scores_Khw in self.infer(torch.stack(crops[start : start + WINDOWS])):
                yield Resized(Held(scores_Khw), height, width)

    def _windows(self) -> Iterator[tuple[int, int, Resized]]:
        for row, windows in self.seen.items():
            for left, window in zip(self.lefts, windows, strict=True):
                yield row, left, window


def starts(side: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: a stride apart, the last one so that it ends with the side."""
    return [min(start, side - crop) for start in range(0, side - crop + stride, stride)]


def likeliest(views: Sequence[Rows], num_classes: int) -> Tensor:
    """The label of every pixel, uint8 (H, W): of the highest score, or with several views of the highest mean softmax.

    Args:
        views: scores of one size.
        num_classes: of the scores, at most 255.
    """
    height, width = views[0].height, views[0].width
    band = max(1, BAND // (num_classes * width))
    labels = []
    for top in range(0, height, band):
        scores = [view.rows(top, min(top + band, height)) for view in views]
        mean = scores[0] if len(scores) == 1 else torch.stack([score.softmax(0) for score in scores]).mean(0)
        labels.append(mean.argmax(0).to(torch.uint8))
    return torch.cat(labels)


def whole(scores_Khw: Tensor, seen: tuple[int, int], wanted: tuple[int, int]) -> Rows:
    """Scores on a coarse grid, resized to the size the model saw and from that to the size that is asked for."""
    return Resized(Resized(Held(scores_Khw), *seen), *wanted)


def _widen(scores_KHW: Tensor, width: int) -> Tensor:
    return resize_bilinear(scores_KHW[None], scores_KHW.shape[1], width)[0]
