"""GPViT's group tokens: what each gathers, which places take from it, and what a place gets through all of them.

Legend: `H W` grid · `N` tokens of it · `G` group tokens · `h` heads.
"""

from typing import cast

import torch
from torch import Tensor

from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Scene, Size
from globalvit.explain.trace import Asked, blocks_of, in_image, run_backbone
from globalvit.explain.views import View
from globalvit.models.gpvit import GroupBlock


def explain_groups(scene: Scene, view: View, asked: Asked) -> Explanation:
    """Which places a group token collects from: sums to 1. Unless a group is given, the one a pixel takes most from."""
    gathered_GN, scattered_NG, grid = _assignments(scene, view, asked)
    groups = len(gathered_GN)
    pixel = None
    if asked.group is None:
        pixel = asked.pixel or scene.center()
        weights_N = scene.start(view.stride, grid, pixel, None).flatten()
        group = int((weights_N @ scattered_NG).argmax())
    else:
        group = check_group(asked.group, groups, view)
    title = f"group {group} of {groups} gathers"
    return in_image(scene, view, asked, gathered_GN[group].view(grid), title, group=group, pixel=pixel)


def explain_propagation(scene: Scene, view: View, asked: Asked) -> Explanation:
    """What a pixel or region takes from every place through the groups: sums to 1.

    It is the product of scattering (place → groups) and gathering (groups → places), the groups' exchange in between
    left out. With a group given: the share that each place takes from that group, which sums to 1 over the groups.
    """
    gathered_GN, scattered_NG, grid = _assignments(scene, view, asked)
    if asked.group is not None:
        return _taken(scene, view, asked, scattered_NG, grid)
    weights_HW = scene.start(view.stride, grid, asked.pixel, asked.region)
    reached_N = weights_HW.flatten() @ scattered_NG @ gathered_GN
    pixel = None if asked.region else asked.pixel or scene.center()
    title = "through groups"
    return in_image(scene, view, asked, reached_N.view(grid), title, pixel=pixel, region=asked.region)


def _taken(scene: Scene, view: View, asked: Asked, scattered_NG: Tensor, grid: Size) -> Explanation:
    """The share that each place takes from one group."""
    assert asked.group is not None
    group = check_group(asked.group, scattered_NG.shape[1], view)
    title = f"from group {group} of {scattered_NG.shape[1]}"
    # No sum over places that could fall on padding: every place shares out 1 of its own.
    return in_image(scene, view, asked, scattered_NG[:, group].reshape(grid), title, total=0, group=group)


def _assignments(scene: Scene, view: View, asked: Asked) -> tuple[Tensor, Tensor, Size]:
    """Of one head or their mean, (G, N) and (N, G), float64; and the grid of the N tokens."""
    (block,) = blocks_of(scene, view)
    inputs, _ = run_backbone(scene, [block])
    (x_BHWC,) = inputs[block]
    with torch.no_grad():
        gathered_BhGN, scattered_BhNG = cast(GroupBlock, block).attention_maps(x_BHWC)
    chosen = (x[0].mean(0) if asked.head is None else x[0, asked.head] for x in (gathered_BhGN, scattered_BhNG))
    gathered_GN, scattered_NG = (x.double() for x in chosen)
    return gathered_GN, scattered_NG, (x_BHWC.shape[1], x_BHWC.shape[2])


def check_group(group: int, groups: int, view: View) -> int:
    """The group, where there is such a one.

    Raises:
        ValueError: there is not; the text says how many there are.
    """
    if not 0 <= group < groups:
        raise ValueError(f"group={group} is not there; block {view.block} has groups 0 to {groups - 1}")
    return group
