"""Grad-CAM: which places of a block's output raise a score.

Selvaraju et al., ICCV 2017, arXiv 1610.02391: the channels are summed with the mean gradients of the score as weights,
and what is below 0 is cut off. The score is a classifier's logit, a segmenter's logits of one class over some pixels,
or a detector's logit of one detection (`scores.py`).

Legend: `B` images · `H W` grid · `C` channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Scene
from globalvit.explain.scores import score_of
from globalvit.explain.trace import Asked, blocks_of, in_image
from globalvit.explain.views import View


def explain_grad_cam(scene: Scene, view: View, asked: Asked) -> Explanation:
    """Grad-CAM on the output of a stage of GC ViT (of its last block, before any norm) or of a block of GPViT."""
    block = blocks_of(scene, view)[-1]
    with torch.enable_grad(), _output_of(block) as outputs:
        # Asked of the images, gradients flow through models whose parameters are frozen, too.
        scored = score_of(scene, scene.images.detach().requires_grad_(), asked)
        # The last: a detector runs once more before it, to find its objects.
        x_BHWC = outputs[-1]
        (gradient_BHWC,) = torch.autograd.grad(scored.score, x_BHWC)
    cam_HW = grad_cam(x_BHWC.detach()[0], gradient_BHWC[0])
    name = scene.model.class_names[scored.target]
    return in_image(
        scene,
        view,
        asked,
        cam_HW,
        f"Grad-CAM {name}",
        total=float(cam_HW.sum()),
        target=scored.target,
        name=name,
        pixel=asked.pixel,
        region=scored.region or asked.region,
    )


def grad_cam(x_HWC: Tensor, gradient_HWC: Tensor) -> Tensor:
    """Equations 1 and 2 of the paper: (H, W, C) twice → (H, W), 0 or more, in float32 or wider."""
    dtype = torch.promote_types(x_HWC.dtype, torch.float32)
    weights_C = gradient_HWC.to(dtype).mean((0, 1))
    # Autocast would multiply in half precision.
    with torch.autocast(x_HWC.device.type, enabled=False):
        return (x_HWC.to(dtype) @ weights_C).relu()


@contextmanager
def _output_of(block: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    hook = block.register_forward_hook(lambda _block, _inputs, output: outputs.append(cast(Tensor, output)))
    try:
        yield outputs
    finally:
        hook.remove()
