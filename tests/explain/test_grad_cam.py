"""Grad-CAM equals captum's, and a segmenter's or detector's score is the one that was asked for."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from globalvit.explain import explain, views
from globalvit.explain.scene import Scene
from globalvit.explain.trace import blocks_of
from globalvit.models.layers import to_nchw, to_nhwc

PIXEL = (60, 30)
SLOW_CASCADE = pytest.param("gcvit_xxtiny_cascade_mask_rcnn", marks=pytest.mark.slow)


class Shown(nn.Module):
    """A block whose output passes a module of channels-first maps, which is what captum looks at."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.output = nn.Identity()

    def forward(self, *inputs):
        return to_nhwc(self.output(to_nchw(self.block(*inputs))))


def replaced(model, view):
    """Put `Shown` in the place of the view's last block."""
    block = blocks_of(Scene.of(model, np.zeros((64, 64, 3), np.uint8)), view)[-1]
    shown = Shown(block)
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for number, one in enumerate(blocks):
            if one is block:
                blocks[number] = shown
    return shown.output


@pytest.mark.parametrize("size", [64, (75, 102)])
def test_it_equals_captums(classifier, photo, size):
    chosen = [view for view in views(classifier) if view.kind == "grad_cam"]
    chosen = chosen[:: max(1, len(chosen) // 4)]
    given = [{"stage": view.stage, "block": view.block, "target": 2, "image_size": size} for view in chosen]
    ours = [explain(classifier, photo, "grad_cam", **how) for how in given]
    images = Scene.of(classifier, photo, size).images
    classifier.eval()
    for view, found in zip(chosen, ours, strict=True):
        wanted = LayerGradCam(classifier, replaced(classifier, view)).attribute(images, 2, relu_attributions=True)
        wanted = wanted[0, 0].detach().numpy()
        assert wanted.max() > 0
        np.testing.assert_allclose(found.values, wanted, rtol=0, atol=1e-4 * wanted.max())


def test_the_class_is_the_models_own_unless_given(classifier, photo):
    found = explain(classifier, photo, "grad_cam")
    answer = classifier.predict(photo)[0]
    assert (found.target, found.name) == (answer["labels"][0], answer["names"][0])
    assert (found.values >= 0).all()
    assert found.padding_share == 0


def test_it_works_where_parameters_are_frozen_and_activations_recomputed(classifier, photo):
    known = explain(classifier, photo, "grad_cam").values
    classifier.requires_grad_(False)
    classifier.backbone.set_checkpointing(True)
    np.testing.assert_allclose(explain(classifier, photo, "grad_cam").values, known, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gcvit_xxtiny_segformer", "gpvit_l1_segformer"])
def test_a_segmenters_class_over_its_pixels_or_at_a_place(tiny_model, photo, name):
    model = tiny_model(name).eval()
    whole = explain(model, photo, "grad_cam")
    mask = model.predict(photo)[0]["mask"]
    at_place = explain(model, photo, "grad_cam", pixel=PIXEL, target=1)
    assert at_place.target == 1
    assert whole.target in mask.unique().tolist()
    scene = Scene.of(model, photo)
    images = scene.images.clone().requires_grad_()
    block = blocks_of(scene, next(view for view in reversed(views(model)) if view.kind == "grad_cam"))[-1]
    kept = []
    hook = block.register_forward_hook(lambda _, __, output: kept.append(output))
    row, column = scene.cell_of(PIXEL, model.backbone.strides[0])
    model.coarse_logits(images)[0, 1, row, column].backward(inputs=kept)
    hook.remove()
    wanted = (kept[0].detach()[0] @ kept[0].grad[0].mean((0, 1))).relu().numpy()
    np.testing.assert_allclose(at_place.values, wanted, rtol=0, atol=1e-5 * wanted.max())


@pytest.mark.parametrize("name", ["gcvit_xxtiny_retinanet", "gpvit_l1_mask_rcnn", SLOW_CASCADE])
def test_a_detectors_chosen_object(tiny_model, photo, name, monkeypatch):
    model = tiny_model(name).eval()
    left, right = torch.tensor([4.0, 8, 40, 60]), torch.tensor([50.0, 10, 90, 64])
    found = {"boxes": torch.stack([left, right]), "labels": torch.tensor([0, 2]), "names": ["apple", "cherry"]}
    monkeypatch.setattr(model, "predict", lambda _: [found])
    assert explain(model, photo, "grad_cam").target == 0
    by_class, by_place = (explain(model, photo, "grad_cam", **how) for how in ({"target": 2}, {"pixel": (80, 30)}))
    np.testing.assert_array_equal(by_class.values, by_place.values)
    assert by_place.name == "cherry"
    assert explain(model, photo, "grad_cam", region=(70, 5, 101, 70)).target == 2
    assert by_class.values.shape == Scene.of(model, photo).cells(by_class.stride)
    with pytest.raises(ValueError, match="no 'banana' was found in the image; found were apple, cherry"):
        explain(model, photo, "grad_cam", target=1)
    with pytest.raises(ValueError, match="no object was found at pixel=2,2; choose a pixel of one"):
        explain(model, photo, "grad_cam", pixel=(2, 2))
    found["boxes"] = found["boxes"][:0]
    with pytest.raises(ValueError, match="nothing was found in the image, so there is no score to explain"):
        explain(model, photo, "grad_cam")
