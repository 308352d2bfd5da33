"""Attention rollout: what reaches a place, or the whole image's vector, through all blocks one after another.

Abnar and Zuidema, arXiv 2005.00928. Each block hands on half of a token as it is and half of what the token attends
to. Assumed, as in the paper: heads count alike, and what works on single tokens (norms, MLPs) moves nothing. Here
convolutions and GPViT's exchange between groups are taken to move nothing either, and GC ViT's global query to belong
to the place it answers for, so a rollout is a sketch of the flow and not its measure.

Legend: `H W` grid · `G` group tokens · `h` heads.
"""

import torch
from torch import Tensor, nn

from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Scene, Size
from globalvit.explain.trace import Asked, blocks_of, follow_all, in_image, run_backbone, window_maps
from globalvit.explain.views import View
from globalvit.heads.classify import GroupPool
from globalvit.models.gpvit import GroupBlock
from globalvit.tasks.classify import Classifier

# Of what a block hands on, the part that is the token itself (section 3 of the paper).
RESIDUAL = 0.5


def explain_rollout(scene: Scene, view: View, asked: Asked) -> Explanation:
    """From a pixel or region back through the blocks of a stage of GC ViT, or of all of GPViT: sums to 1.

    Without either it starts from what the classifier pools: every place alike, or GPViT's learned token's attention.
    Only rows of the attention matrices are multiplied, so no matrix of all places by all places is made.
    """
    blocks = blocks_of(scene, view)
    inputs, maps = run_backbone(scene, blocks)
    (x_BHWC, *_) = inputs[blocks[-1]]
    grid = (x_BHWC.shape[1], x_BHWC.shape[2])
    weights_HW = _start(scene, view, asked, grid, maps)
    for block in reversed(blocks):
        weights_HW = RESIDUAL * weights_HW + (1 - RESIDUAL) * _back(block, inputs[block], weights_HW)
    what = "rollout" if asked.pixel is None and asked.region is None else "rollout from there"
    return in_image(scene, view, asked, weights_HW, what, pixel=asked.pixel, region=asked.region)


def _start(scene: Scene, view: View, asked: Asked, grid: Size, maps: list[Tensor]) -> Tensor:
    model, stride = scene.model, view.stride
    if asked.pixel is not None or asked.region is not None:
        return scene.start(stride, grid, asked.pixel, asked.region)
    if isinstance(model, Classifier) and isinstance(model.head.pool, GroupPool):
        with torch.no_grad():
            return model.head.pool.attention_map(maps[-1])[0].mean(0).double()
    weights_HW = torch.zeros(grid, dtype=torch.float64, device=scene.images.device)
    rows, columns = scene.cells(stride)
    weights_HW[:rows, :columns] = 1 / (rows * columns)
    return weights_HW


def _back(block: nn.Module, inputs: tuple[Tensor, ...], weights_HW: Tensor) -> Tensor:
    """Where tokens of these weights attend in a block, in the mean over its heads."""
    if not isinstance(block, GroupBlock):
        return follow_all(window_maps(block, inputs), weights_HW, None)
    with torch.no_grad():
        gathered_BhGN, scattered_BhNG = block.attention_maps(*inputs)
    through_G = weights_HW.flatten() @ scattered_BhNG[0].mean(0).double()
    return (through_G @ gathered_BhGN[0].mean(0).double()).view(weights_HW.shape)
