"""`explain`: one look at a model with an image in front of it."""

from collections.abc import Callable
from typing import Any

from globalvit.deploy.deploying import is_deployed
from globalvit.explain.explanation import Explanation
from globalvit.explain.grad_cam import explain_grad_cam
from globalvit.explain.groups import explain_groups, explain_propagation
from globalvit.explain.rollout import explain_rollout
from globalvit.explain.scene import Pixel, Region, Scene, evaluating
from globalvit.explain.trace import Asked
from globalvit.explain.views import View, check_choices, find_view
from globalvit.explain.windows import explain_global, explain_local
from globalvit.tasks.task import Task

_KINDS: dict[str, Callable[[Scene, View, Asked], Explanation]] = {
    "local": explain_local,
    "global": explain_global,
    "groups": explain_groups,
    "propagation": explain_propagation,
    "rollout": explain_rollout,
    "grad_cam": explain_grad_cam,
}


def explain(
    model: Task,
    image: Any,
    kind: str,
    *,
    stage: int | None = None,
    block: int | None = None,
    head: int | None = None,
    pixel: Pixel | None = None,
    region: Region | None = None,
    group: int | None = None,
    target: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Explanation:
    """What a model attends to in an image, or which places raise a score.

    The model's parameters, gradients, modes, hooks and outputs are what they were afterwards.

    Args:
        model: what `create_model` or `open_checkpoint` returned.
        image: a path, a PIL image, or an RGB uint8 array (H, W, 3); it goes through the model's preprocessing.
        kind: one of those that `views(model)` lists.
        stage: of GC ViT, from 0 (default: the last one).
        block: of the stage or, in GPViT, the network, from 0 (default: the last one of the kind).
        head: from 0; None is the mean over heads. GPViT's first half of the local heads are the vertical stripes.
        pixel: (x, y) in the image that `local` and `propagation` start from (default: the center); of `rollout`
            instead of what the classifier pools; of `global` the query token that stands for this part of the image,
            instead of the mean; of `groups` the place whose main group is shown; of a segmenter's or detector's
            `grad_cam` the place whose score is explained.
        region: (left, top, right, bottom) in the image, in place of a pixel; its tokens count alike.
        group: a group token of GPViT: what it gathers, or with `propagation` which places take from it.
        target: class whose score `grad_cam` explains (default: the one that the model says).
        image_size: size of the input in pixels, a side or (height, width), in place of the preprocessing's own.

    Raises:
        ValueError: the model is a deployed copy; something is missing, does not apply to the kind, or lies outside
            the image. The text says what there is.
    """
    if is_deployed(model):
        raise ValueError("a deployed copy tells neither attention nor gradients; explain the model it came from")
    if next(model.parameters()).device.type == "mps":
        raise ValueError("explanations need float64, which Apple GPUs do not have; use --device cpu, or model.cpu()")
    view = find_view(model, kind, stage, block, head)
    check_choices(view, {"pixel": pixel, "region": region, "group": group, "target": target})
    asked = Asked(head=head, pixel=pixel, region=region, group=group, target=target)
    scene = Scene.of(model, image, image_size)
    with evaluating(model):
        return _KINDS[kind](scene, view, asked)
