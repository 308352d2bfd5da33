"""An image as a model sees it: what of it went in, and which cell of a grid of tokens stands for which pixels.

Legend: `B` images · `C` channels · `H W` grid or pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from globalvit.data.common.transforms import FitTransform
from globalvit.detectors.padding import pad
from globalvit.models.variants import as_size
from globalvit.tasks.detect import Detector
from globalvit.tasks.inputs import as_image
from globalvit.tasks.task import Preprocessing, Task

Size = tuple[int, int]
Pixel = tuple[int, int]
Region = tuple[int, int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image on its way into a model.

    Attributes:
        model: the task.
        original_size: height and width of the image in its own pixels.
        crop: left, top, right and bottom of what the model sees of it, in its own pixels.
        input_size: height and width of what the model gets, before any padding of its own.
        images: that, as a batch of one: float (1, C, H, W).
    """

    model: Task
    original_size: Size
    crop: Box
    input_size: Size
    images: Tensor

    @classmethod
    def of(cls, model: Task, image: Any, image_size: int | Size | None = None) -> "Scene":
        """Prepare an image as `model.predict` does, at another size where one is given."""
        image = as_image(image, model.preprocessing.channels)
        transform = resized(model.preprocessing, image_size)
        parameter = next(model.parameters())
        image_CHW = transform(image).to(parameter.device, parameter.dtype)
        whole = (0.0, 0.0, float(image.width), float(image.height))
        return cls(
            model=model,
            original_size=(image.height, image.width),
            crop=whole if isinstance(transform, FitTransform) else transform.kept_box(image.width, image.height),
            input_size=(image_CHW.shape[1], image_CHW.shape[2]),
            images=image_CHW[None],
        )

    @property
    def offset(self) -> float:
        """How far the first cell's center is from the image's edge, in pixels of the input."""
        return self.model.backbone.first_center

    @property
    def padded_images(self) -> Tensor:
        """What the backbone gets: detectors pad to multiples of 32 at the right and the bottom."""
        return pad(self.images) if isinstance(self.model, Detector) else self.images

    def cells(self, stride: int) -> Size:
        """Rows and columns of the grid of a stride that stand for pixels of the image."""
        height, width = self.input_size
        return ceil(height / stride), ceil(width / stride)

    def cell_of(self, pixel: Pixel, stride: int) -> tuple[int, int]:
        """Row and column of the cell whose center is nearest to a pixel of the image.

        Raises:
            ValueError: the pixel is not in the image, or was cropped away.
        """
        x, y = pixel
        height, width = self.original_size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"pixel={x},{y} is not in the image; x goes from 0 to {width - 1}, y from 0 to {height - 1}"
            )
        left, top, right, bottom = self.crop
        # A part of the pixel is enough: of a very narrow image less than a whole one is kept.
        if not (x < right and left < x + 1 and y < bottom and top < y + 1):
            raise ValueError(f"pixel={x},{y} was cropped away before the model saw the image; it saw {self._kept()}")
        rows, columns = self.cells(stride)
        row = ((y + 0.5 - top) / (bottom - top) * self.input_size[0] - self.offset) / stride
        column = ((x + 0.5 - left) / (right - left) * self.input_size[1] - self.offset) / stride
        return min(max(int(row + 0.5), 0), rows - 1), min(max(int(column + 0.5), 0), columns - 1)

    def cells_of(self, region: Region, stride: int) -> tuple[slice, slice]:
        """Rows and columns of the cells that a region of the image touches.

        Raises:
            ValueError: the region is empty, not in the image, or was cropped away.
        """
        x0, y0, x1, y1 = region
        height, width = self.original_size
        text = ",".join(map(str, region))
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"region={text} is not in the image; give left,top,right,bottom within 0,0,{width},{height}"
            )
        left, top, right, bottom = self.crop
        x0, x1 = max(x0, int(left)), min(x1, ceil(right))
        y0, y1 = max(y0, int(top)), min(y1, ceil(bottom))
        if x0 >= x1 or y0 >= y1:
            raise ValueError(f"region={text} was cropped away before the model saw the image; it saw {self._kept()}")
        first_row, first_column = self.cell_of((x0, y0), stride)
        last_row, last_column = self.cell_of((x1 - 1, y1 - 1), stride)
        return slice(first_row, last_row + 1), slice(first_column, last_column + 1)

    def center(self) -> Pixel:
        """The pixel in the middle of what the model saw."""
        left, top, right, bottom = self.crop
        return int((left + right) / 2), int((top + bottom) / 2)

    def start(self, stride: int, grid: Size, pixel: Pixel | None, region: Region | None) -> Tensor:
        """Weights of the tokens that a look starts from: 1 at a pixel, or evenly in a region: (H, W), sum 1."""
        weights_HW = torch.zeros(grid, dtype=torch.float64, device=self.images.device)
        if region is not None:
            weights_HW[self.cells_of(region, stride)] = 1
        else:
            weights_HW[self.cell_of(self.center() if pixel is None else pixel, stride)] = 1
        return weights_HW / weights_HW.sum()

    def _kept(self) -> str:
        left, top, right, bottom = (
            round_(edge) for round_, edge in zip((int, int, ceil, ceil), self.crop, strict=True)
        )
        return f"x {left} to {right - 1}, y {top} to {bottom - 1}"


def resized(transform: Preprocessing, image_size: int | Size | None) -> Preprocessing:
    """The transform for inputs of another size; of segmenters and detectors the shorter side is meant."""
    if image_size is None:
        return transform
    height, width = as_size(image_size)
    if isinstance(transform, FitTransform):
        short = min(height, width)
        ratio = transform.long_side / (transform.short_side or transform.long_side)
        return replace(transform, short_side=short, long_side=round(short * ratio))
    return replace(transform, image_size=(height, width))


@contextmanager
def evaluating(model: Task) -> Iterator[None]:
    """Evaluation mode; every module's own mode is what it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
