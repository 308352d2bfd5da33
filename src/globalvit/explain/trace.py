"""What reaches the blocks of a model that looks at an image, and following attention through them.

A look is a row of weights, one a token, times the attention matrix. The matrix of a window layer is made of blocks, one
a window, of which a few at a time are computed.

Legend: `B` images · `H W` grid · `M` windows · `N` tokens of a window · `h` heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Pixel, Region, Scene
from globalvit.explain.views import View
from globalvit.models.attention_maps import WindowMaps, to_grid, to_windows

# Numbers of attention maps that are held at a time: 64 MiB in float32.
MOST_NUMBERS = 2**24
ROUNDING = 1e-6
Inputs = dict[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What to look from and at; None where it is left to the kind."""

    head: int | None = None
    pixel: Pixel | None = None
    region: Region | None = None
    group: int | None = None
    target: int | None = None


def blocks_of(scene: Scene, view: View) -> list[nn.Module]:
    """The blocks of a view's stage, or of the network where it has no stages; only the one where it names one."""
    blocks = scene.model.backbone.blocks_of(view.stage)
    return blocks if view.block is None else [blocks[view.block]]


def run_backbone(scene: Scene, blocks: Sequence[nn.Module]) -> tuple[Inputs, list[Tensor]]:
    """What reaches each of the blocks when the backbone sees the image, and its maps; in evaluation mode."""
    with torch.no_grad(), _recording(blocks) as inputs:
        maps = scene.model.backbone(scene.padded_images)
    return inputs, maps


@contextmanager
def _recording(blocks: Sequence[nn.Module]) -> Iterator[Inputs]:
    inputs: Inputs = {}
    hooks = [block.register_forward_pre_hook(lambda block, given: inputs.update({block: given})) for block in blocks]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def follow(maps: WindowMaps, weights_HW: Tensor, head: int | None) -> Tensor:
    """Where the tokens of given weights attend: over the padded grid, (H, W) → (H, W) of the same sum."""
    weights_MN = to_windows(weights_HW, maps.rows, maps.columns)
    out_MN = torch.zeros_like(weights_MN)
    asked = weights_MN.any(1).nonzero()[:, 0]
    at_once = max(1, MOST_NUMBERS // (maps.heads * weights_MN.shape[1] ** 2))
    for some in asked.split(at_once):
        map_mhNN = maps.of_windows(some)[0]
        map_mNN = map_mhNN.mean(1) if head is None else map_mhNN[:, head]
        out_MN[some] = torch.einsum("mn,mns->ms", weights_MN[some], map_mNN.to(weights_MN.dtype))
    return to_grid(out_MN, maps.rows, maps.columns, maps.grid)


def follow_all(parts: Sequence[WindowMaps], weights_HW: Tensor, head: int | None) -> Tensor:
    """As `follow`, from a grid without padding to one without: the mean over the parts, each with its own heads."""
    chosen: list[tuple[WindowMaps, int | None]] = [(maps, None) for maps in parts]
    if head is not None:
        chosen = [(parts[head // parts[0].heads], head % parts[0].heads)]
    answers = []
    for maps, one in chosen:
        rows, columns = (padded - real for padded, real in zip(maps.grid, maps.size, strict=True))
        reached_HW = follow(maps, F.pad(weights_HW, (0, columns, 0, rows)), one)
        answers.append(reached_HW[: maps.size[0], : maps.size[1]])
    return torch.stack(answers).mean(0)


def window_maps(block: nn.Module, inputs: tuple[Tensor, ...]) -> list[WindowMaps]:
    """The maps of a window block: one of GC ViT, two of GPViT (vertical and horizontal stripes)."""
    with torch.no_grad():
        found = cast("Callable[..., Any]", block.attention_maps)(*inputs)
    return [found] if isinstance(found, WindowMaps) else list(found)


def in_image(
    scene: Scene, view: View, asked: Asked, grid_HW: Tensor, title: str, *, total: float = 1.0, **known: Any
) -> Explanation:
    """An explanation of the cells of a grid that stand for the image; of `total`, the rest fell on padding."""
    stride = view.stride
    rows, columns = scene.cells(stride)
    values = grid_HW[:rows, :columns].cpu().numpy()
    lost = 1 - float(values.sum()) / total if total > 0 else 0.0
    return Explanation(
        kind=view.kind,
        title=f"{title} · {place(view)}",
        values=values,
        stride=stride,
        offset=scene.offset,
        input_size=scene.input_size,
        crop=scene.crop,
        original_size=scene.original_size,
        # Rounding of float32 leaves a trace where nothing is lost.
        padding_share=lost if lost > ROUNDING else 0.0,
        stage=view.stage,
        block=view.block,
        heads=view.heads,
        head=asked.head,
        **known,
    )


def place(view: View) -> str:
    """Stage and block in words."""
    stage = "" if view.stage is None else f"stage {view.stage} "
    return f"{stage}{'' if view.block is None else f'block {view.block}'}".strip() or "all blocks"
