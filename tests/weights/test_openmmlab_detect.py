"""Detectors in OpenMMLab's names: there and back, known by their entries, loaded into others; their sizes."""

import pytest
import torch

from globalvit.build import create_model, load_weights
from globalvit.weights import openmmlab
from globalvit.weights.forms import detect_form, infer_spec

CASES = {
    "gpvit_det_l1_maskrcnn": "gpvit_l1_mask_rcnn",
    "gpvit_det_l1_retinanet": "gpvit_l1_retinanet",
    "gcvit_det_tiny_maskrcnn": "gcvit_tiny_mask_rcnn",
    "gcvit_det_tiny_cascade": "gcvit_tiny_cascade_mask_rcnn",
}
# Parameters of the published systems, counted with their code; in millions where only these are known.
PARAMS = {
    "gpvit_l1_mask_rcnn": 33_518_676,
    "gpvit_l2_mask_rcnn": 50.31,
    "gpvit_l3_mask_rcnn": 64.87,
    "gpvit_l4_mask_rcnn": 109.59,
    "gpvit_l1_retinanet": 21_459_448,
    "gpvit_l2_retinanet": 37.91,
    "gpvit_l3_retinanet": 52.18,
    "gpvit_l4_retinanet": 96.02,
    "gcvit_tiny_mask_rcnn": 48_293_934,
    "gcvit_tiny_cascade_mask_rcnn": 86_129_136,
    "gcvit_small_cascade_mask_rcnn": 109.08,
    "gcvit_base_cascade_mask_rcnn": 148.40,
}
# Of the backbone, the neck, what finds regions or is dense, and what looks at regions.
PARTS = {
    "gpvit_l1_mask_rcnn": (12_078_436, 2_584_576, 593_935, 18_261_729),
    "gpvit_l1_retinanet": (11_877_124, 3_119_104, 6_463_220, 0),
    "gcvit_tiny_mask_rcnn": (28_142_910, 2_607_104, 593_935, 16_949_985),
    "gcvit_tiny_cascade_mask_rcnn": (28_142_910, 2_607_104, 593_935, 54_785_187),
}
MODELS = [
    *PARAMS,
    "gpvit_l2_cascade_mask_rcnn",
    "gcvit_xxtiny_retinanet",
    "gcvit_small_mask_rcnn",
    "gcvit_large_512_retinanet",
]


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def on_meta(name, **arguments):
    with torch.device("meta"):
        return create_model(name, **arguments)


@pytest.mark.parametrize(("case", "name"), list(CASES.items()))
def test_every_published_entry_has_its_place_and_way_back(golden, case, name):
    published = {
        entry: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for entry, shape, dtype in golden(case).entries
    }
    assert detect_form(published).name == "mm"
    ours = openmmlab.to_ours(published)
    assert shapes(ours) == shapes(on_meta(name).state_dict())
    spec = infer_spec(ours)
    assert (spec.model, spec.num_classes, spec.window) == (name, 80, None)
    assert shapes(openmmlab.from_ours(ours)) == shapes(published)


@pytest.mark.parametrize("name", MODELS)
def test_every_detector_goes_there_and_back_and_is_told_by_its_entries(name):
    own = on_meta(name, num_classes=7, in_channels=4).state_dict()
    there = openmmlab.from_ours(own)
    assert detect_form(there).name == "mm"
    back = openmmlab.to_ours(there)
    assert shapes(back) == shapes(own)
    spec = infer_spec(back)
    assert (spec.num_classes, spec.in_channels) == (7, 4)
    assert spec.model == name.replace("large_512", "large")


@pytest.mark.parametrize(("name", "published"), list(PARAMS.items()))
def test_parameters_are_the_published_ones(name, published):
    count = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert (count if isinstance(published, int) else round(count / 1e6, 2)) == published


@pytest.mark.parametrize(("name", "published"), list(PARTS.items()))
def test_parameters_of_each_part_are_the_published_ones(name, published):
    parts = dict(on_meta(name).named_children())
    names = ("backbone", "neck", "dense" if "dense" in parts else "rpn", "roi")
    counts = [sum(p.numel() for p in parts[part].parameters()) if part in parts else 0 for part in names]
    assert tuple(counts) == published


def test_a_classifier_gives_gpvits_detector_its_backbone(golden):
    model = create_model("gpvit_l1_retinanet")
    report = str(load_weights(model, golden("gpvit_cls_L1").state_dict()))
    assert "The head is fresh: that of the weights is classifier, that of the model retinanet." in report
    assert "other parameters are fresh: backbone.adapter.level_embedding, " in report
    assert "Left out by name: 8 entries, " in report


def test_a_classifier_gives_gcvits_detector_its_backbone(golden):
    model = create_model("gcvit_xxtiny_retinanet")
    report = load_weights(model, golden("gcvit_cls_xxtiny").state_dict())
    assert "12 position tables were resized from windows 7, 7, 14, 7 to 24, 24, 24, 24." in str(report)
    assert model.backbone.stages[0].blocks[0].attention.bias_table.shape == (47**2, 2)
    fresh = {name for name in report.fresh if name.startswith("backbone.")}
    assert fresh == {f"backbone.norms.{level}.{part}" for level in range(4) for part in ("weight", "bias")}


@pytest.mark.parametrize(
    ("head", "fresh"),
    [
        ("retinanet", {"dense.logits"}),
        ("mask_rcnn", {"roi.box_head.logits", "roi.box_head.deltas", "roi.mask_head.logits"}),
    ],
)
def test_other_classes_leave_only_the_layers_of_the_classes_fresh(head, fresh):
    name = f"gcvit_xxtiny_{head}"
    source, model = create_model(name), create_model(name, num_classes=3)
    report = load_weights(model, openmmlab.from_ours(source.state_dict()))
    assert {entry.rsplit(".", 1)[0] for entry in report.fresh} == fresh
    assert "fresh: the weights have 80 classes, the model has 3." in str(report)
    first = "neck.laterals.0.conv.weight"
    assert torch.equal(model.state_dict()[first], source.state_dict()[first])
