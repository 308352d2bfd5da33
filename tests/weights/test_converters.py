"""Names there and back: official ↔ ours ↔ timm, as pure functions of dicts."""

import numpy as np
import pytest
import torch

from globalvit.build import create_backbone, create_model
from globalvit.weights import gcvit_official, openmmlab, timm
from globalvit.weights.forms import detect_form, infer_model, infer_spec, windows
from globalvit.weights.names import renamer, swap

CASES = {
    "gcvit_cls_xxtiny": "gcvit_xxtiny",
    "gcvit_cls_tiny": "gcvit_tiny",
    "gcvit_cls_small": "gcvit_small",
    "gcvit_cls_large_384_21k": "gcvit_large_384",
}
DETECTION = "gcvit_backbone_det_tiny_320x416"


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def empty(case):
    """The case's entries without values, so that the largest model costs nothing."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape, _ in case.entries}


@pytest.mark.parametrize(("case", "model"), CASES.items())
def test_every_published_name_is_one_of_ours(golden, case, model):
    with torch.device("meta"):
        own = shapes(create_model(model).state_dict())
    assert shapes(gcvit_official.to_ours(empty(golden(case)))) == own


def test_the_detection_form_is_ours_too(golden):
    with torch.device("meta"):
        own = create_backbone("gcvit_tiny", form="detection").state_dict()
    ours = gcvit_official.to_ours(empty(golden(DETECTION)))
    assert shapes(ours) == {f"backbone.{name}": tuple(value.shape) for name, value in own.items()}


@pytest.mark.parametrize("case", ["gcvit_cls_xxtiny", "gcvit_cls_small"])
def test_official_to_ours_and_back_is_the_same_bit_for_bit(golden, case, is_equal):
    official = golden(case).state_dict()
    assert is_equal(gcvit_official.from_ours(gcvit_official.to_ours(official)), official)


def test_the_detection_form_goes_back_the_same(golden, is_equal):
    official = golden(DETECTION).state_dict()
    assert is_equal(gcvit_official.from_ours(gcvit_official.to_ours(official)), official)


@pytest.mark.parametrize("case", ["gcvit_cls_xxtiny", "gcvit_cls_small"])
def test_ours_to_timm_and_back_is_the_same_bit_for_bit(golden, case, is_equal):
    ours = gcvit_official.to_ours(golden(case).state_dict())
    assert is_equal(timm.to_ours(timm.from_ours(ours)), ours)


def test_arrays_stay_arrays(official):
    arrays = {name: value.numpy() for name, value in official.items()}
    ours = gcvit_official.to_ours(arrays)
    back = gcvit_official.from_ours(timm.to_ours(timm.from_ours(ours)))
    assert back.keys() == arrays.keys()
    assert all(isinstance(value, np.ndarray) for value in back.values())
    assert all(np.array_equal(back[name], arrays[name]) and back[name].dtype == arrays[name].dtype for name in back)


def test_only_the_index_buffers_are_left_out(official):
    left_out = {name for name in official if gcvit_official.dropped(name)}
    assert len(left_out) == 12
    assert {name.rsplit(".", 1)[-1] for name in left_out} == {"relative_position_index"}
    assert len(gcvit_official.to_ours(official)) == len(official) - 12


def test_timm_has_kernels_where_we_have_matrices(official):
    converted = timm.from_ours(gcvit_official.to_ours(official))
    assert converted["stem.down.conv_block.se.fc1.weight"].shape == (16, 64, 1, 1)
    assert converted["stages.1.downsample.reduction.weight"].shape == (128, 64, 3, 3)
    assert "stages.0.downsample.reduction.weight" not in converted


@pytest.mark.parametrize(
    ("convert", "form"),
    [
        (gcvit_official.to_ours, "the official GC ViT form"),
        (gcvit_official.from_ours, "the official GC ViT form"),
        (timm.to_ours, "timm's GC ViT form"),
        (timm.from_ours, "timm's GC ViT form"),
        (openmmlab.to_ours, "the form of OpenMMLab"),
        (openmmlab.from_ours, "the form of OpenMMLab"),
    ],
)
def test_names_of_nobody_are_an_error(convert, form):
    state = {f"layer{i}.weight": np.zeros(1) for i in range(12)}
    with pytest.raises(
        ValueError, match=rf"12 of 12 entries are not of {form}: 'layer0.weight', .*'layer9.weight', …$"
    ):
        convert(state)


def test_timm_has_no_detection_form(golden):
    ours = gcvit_official.to_ours(empty(golden(DETECTION)))
    with pytest.raises(
        ValueError, match=r"8 of 477 entries are not of timm's GC ViT form: 'backbone\.norms\.0\.weight'"
    ):
        timm.from_ours(ours)


def test_a_detector_gives_its_backbone(golden, is_equal):
    official = golden(DETECTION).state_dict()
    detector = {f"backbone.{name}": value for name, value in official.items()}
    detector |= {"rpn_head.rpn_conv.bias": torch.zeros(1), "roi_head.mask_head.conv_logits.bias": torch.zeros(1)}
    assert detect_form(detector).name == "mm"
    ours = openmmlab.to_ours(detector)
    assert ours.keys() - gcvit_official.to_ours(official).keys() == {"rpn.conv.bias", "roi.mask_head.logits.bias"}
    assert is_equal(openmmlab.from_ours(ours), detector)


@pytest.mark.parametrize("case", ["gpvit_seg_l1_upernet", "gpvit_seg_l1_segformer"])
def test_a_segmenter_goes_there_and_back_the_same(golden, case, is_equal):
    published = golden(case).state_dict()
    assert detect_form(published).name == "mm"
    ours = openmmlab.to_ours(published)
    spec = infer_spec(ours)
    assert (spec.backbone, spec.head, spec.num_classes) == ("gpvit_l1", case.rsplit("_", 1)[-1], 150)
    assert is_equal(openmmlab.from_ours(ours), published)


def test_forms_are_told_apart(official):
    ours = gcvit_official.to_ours(official)
    backbone = {name.removeprefix("backbone."): value for name, value in ours.items() if name.startswith("backbone.")}
    kinds = {"gcvit_official": official, "ours": ours, "our_backbone": backbone, "timm": timm.from_ours(ours)}
    assert {name: detect_form(state).name for name, state in kinds.items()} == {name: name for name in kinds}


def test_an_unknown_form_is_an_error():
    names = [f"conv{i}.weight" for i in range(11)]
    message = (
        r"none of its 11 entries is known \('conv0.weight', .*'conv9.weight', …\); expected our form, .*timm's GC ViT"
    )
    with pytest.raises(ValueError, match=message):
        detect_form(names)


@pytest.mark.parametrize("model", ["gcvit_xxtiny", "gcvit_tiny2", "gcvit_small2", "gcvit_large", "gcvit_large_512"])
def test_a_model_is_known_by_its_sizes(model):
    with torch.device("meta"):
        state = create_model(model, num_classes=7, in_channels=4).state_dict()
    assert infer_model(state) == model
    spec = infer_spec(state)
    assert (spec.model, spec.num_classes, spec.in_channels, spec.window) == (model, 7, 4, None)


def test_windows_are_read_off_the_tables():
    with torch.device("meta"):
        state = create_model("gcvit_large", window=(5, 4, 3, 2)).state_dict()
    assert windows(state) == (5, 4, 3, 2)
    assert infer_spec(state).model == "gcvit_large"
    assert infer_spec(state).window == (5, 4, 3, 2)


def test_a_model_of_no_known_sizes_is_an_error():
    with pytest.raises(ValueError, match="no model has the sizes of these 1 entries; name the model they belong to"):
        infer_spec({"backbone.stem.conv.weight": torch.zeros(8, 3, 3, 3)})


def test_a_table_reads_both_ways():
    pairs = [("a{n}.{part}", "b.{n}.{part}"), ("q{even}", "local.{even}"), ("q{odd}", "global.{odd}")]
    there, back = renamer(pairs), renamer(swap(pairs))
    for name in ("a12.weight", "q4", "q13"):
        assert back(there(name) or "") == name
    assert there("q4") == "local.4"
    assert there("q13") == "global.13"
    assert there("a1.gain") is None
