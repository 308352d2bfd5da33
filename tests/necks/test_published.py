"""Backbones and pyramids of detectors against published maps."""

import pytest
import torch

from globalvit.build import create_backbone
from globalvit.necks.fpn import FPN
from globalvit.weights import openmmlab


def part(state, prefix):
    """The entries of one module."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("case", "name", "form"),
    [
        ("gpvit_det_l1_maskrcnn", "gpvit_l1", "detection"),
        ("gpvit_det_l1_retinanet", "gpvit_l1", "one_stage"),
        ("gcvit_det_tiny_maskrcnn", "gcvit_tiny", "detection"),
        # Its backbone and neck have the names of the case before, and so the same values.
        pytest.param("gcvit_det_tiny_cascade", "gcvit_tiny", "detection", marks=pytest.mark.slow),
    ],
)
def test_maps_of_backbone_and_pyramid(golden, case, name, form):
    published = golden(case)
    published.entries = [entry for entry in published.entries if entry[0].startswith(("backbone.", "neck."))]
    ours = openmmlab.to_ours(published.state_dict())
    backbone = create_backbone(name, form=form).eval()
    backbone.load_state_dict(part(ours, "backbone."))
    extra = "convs" if form == "one_stage" else "pool"
    neck = FPN(backbone.channels, backbone.strides, norm=name.startswith("gpvit"), extra=extra).eval()
    neck.load_state_dict(part(ours, "neck."))
    with torch.inference_mode():
        maps = backbone(published.images())
        for level, x in enumerate(maps):
            published.check(f"backbone{level}", x)
        for level, x in enumerate(neck(maps)):
            published.check(f"fpn{level}", x)
