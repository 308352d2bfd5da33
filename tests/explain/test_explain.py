"""What can be asked, where maps lie in the photo, and that a model is left as it was."""

import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.build import create_model
from globalvit.data.classification.transforms import EvalTransform
from globalvit.data.common.images import read_image
from globalvit.explain import contact_sheet, explain, find_class, overlay, views
from globalvit.explain.explanation import Explanation
from globalvit.explain.scene import Scene

ALL = {
    "gcvit": ("local", "global", "rollout", "grad_cam"),
    "gpvit": ("local", "groups", "propagation", "rollout", "grad_cam"),
}


def kinds(model):
    return list(dict.fromkeys(view.kind for view in views(model)))


def test_views(classifier):
    family = classifier.spec.model.split("_")[0]
    assert sorted(kinds(classifier)) == sorted(ALL[family])
    for view in views(classifier):
        assert (view.stage is None) == (family == "gpvit")
        assert (view.heads > 0) == ("head" in view.takes)
    if family == "gcvit":
        assert [(v.stage, v.block, v.heads) for v in views(classifier) if v.kind == "global"] == [
            (0, 1, 1), (1, 1, 2), (2, 1, 4), (3, 1, 8),
        ]  # fmt: skip
    else:
        assert [v.block for v in views(classifier) if v.kind == "groups"] == [1, 4, 7, 10]


def test_what_has_no_maps_is_no_view():
    model = create_model("gcvit_xxtiny", num_classes=3, image_size=64, ablation="shifted")
    found = views(model)
    assert {view.kind for view in found} == {"local", "grad_cam"}
    assert {view.block for view in found if view.kind == "local"} == {0, 2, 4}


def test_the_model_is_left_as_it_was(classifier, photo):
    classifier.head.eval()
    for parameter in classifier.parameters():
        parameter.grad = torch.ones_like(parameter)
    images = torch.randn(2, 3, 64, 64)
    state = {name: value.clone() for name, value in classifier.state_dict().items()}

    def outputs():
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return classifier(images)

    before, modes = outputs(), [module.training for module in classifier.modules()]
    for name, value in classifier.state_dict().items():
        value.copy_(state[name])
    for kind in kinds(classifier):
        explain(classifier, photo, kind)
    assert [module.training for module in classifier.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in classifier.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in classifier.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())
    assert torch.equal(outputs(), before)


def test_maps_of_half_precision_are_close(classifier, photo):
    # With weights as large as the other tests want them, every rounding is a hundred times larger by the last block.
    for parameter in classifier.backbone.parameters():
        parameter.data.mul_(0.5)
    kind = kinds(classifier)[0]
    known = explain(classifier, photo, kind).values
    found = explain(classifier.bfloat16(), photo, kind).values
    assert found.dtype in (np.float32, np.float64)
    assert np.abs(found - known).max() < 0.01


def seen(values, **changes):
    shape = {"stride": 8, "offset": 4, "input_size": (16, 24), "crop": (0, 0, 24, 16), "original_size": (16, 24)}
    return Explanation(kind="rollout", title="t", values=np.asarray(values, np.float32), **{**shape, **changes})


def test_a_map_lies_where_the_model_looked():
    """Of an image of 40×20 the model saw the middle 20×20 at 16×16, in 2×2 cells."""
    found = seen([[1, 0], [0, 0]], input_size=(16, 16), crop=(10, 0, 30, 20), original_size=(20, 40))
    assert found.map.shape == (20, 40)
    assert not found.map[:, :10].any()
    assert not found.map[:, 30:].any()
    assert (found.map[:5, 10:15] == 1).all()
    assert found.map[10, 20] == pytest.approx(0.45 * 0.45)
    assert not found.map[15:].any()


def test_a_cell_that_overhangs_the_image_keeps_its_size():
    """20 pixels are 2½ cells: the last one begins at pixel 16."""
    found = seen([[0, 0, 1]], input_size=(8, 20), crop=(0, 0, 20, 8), original_size=(8, 20))
    assert found.map[0].argmax() == 19
    assert found.map[0, 12] == pytest.approx(1 / 16)


def strided(model):
    """(stride, convolutions that lead to it) of each grid of a model."""
    if model.spec.model == "gpvit_l1":
        return [(8, [model.backbone.stem.convs[0].conv, model.backbone.stem.projection])]
    stages = model.backbone.stages
    convs = [model.backbone.stem.conv, model.backbone.stem.downsample.reduction]
    convs += [stage.downsample.reduction for stage in stages[:-1]]
    return [(4 * 2**stage, convs[: 2 + stage]) for stage in range(len(stages))]


def test_a_cell_lies_in_the_middle_of_what_it_is_computed_from(classifier, photo):
    for stride, convs in strided(classifier):
        image = torch.zeros(1, 3, 8 * stride, 8 * stride, requires_grad=True)
        x = image
        for conv in convs:
            conv.weight.data.fill_(1.0)
            x = conv(x)
        x[0, 0, 4, 4].backward()
        reach = image.grad.sum((0, 1, 3))
        middle = float((reach * (torch.arange(len(reach)) + 0.5)).sum() / reach.sum())
        assert middle == pytest.approx(4 * stride + Scene.of(classifier, photo).offset, abs=1e-3)


def test_the_preprocessing_is_honoured(gcvit):
    """A bright spot left of the crop is not there for the model, and nothing is painted over it."""
    gcvit.preprocessing = EvalTransform(image_size=(64, 64), crop_ratio=1.0)
    wide = np.zeros((60, 120, 3), np.uint8)
    found = explain(gcvit, wide, "grad_cam")
    assert found.crop == (30, 0, 90, 60)
    drawn = np.asarray(overlay(np.full_like(wide, 200), found))
    assert (drawn[:, :30] == 50).all()
    assert (drawn[:, 90:] == 50).all()
    assert (drawn[:, 30:90] != 50).any()


def test_images_of_which_less_than_a_pixel_is_seen(classifier):
    for size in ((300, 1), (1, 300)):
        found = explain(classifier, np.zeros((*size, 3), np.uint8), "local")
        assert found.values.sum() + found.padding_share == pytest.approx(1, abs=1e-4)


def test_size_of_the_input(classifier, photo):
    assert explain(classifier, photo, "rollout", image_size=(40, 72)).input_size == (40, 72)
    assert explain(classifier, photo, "rollout").input_size == (64, 64)


def test_images_come_as_predict_takes_them(gcvit, photo, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    maps = [explain(gcvit, one, "global").map for one in (photo, Image.fromarray(photo), path)]
    assert (maps[0] == maps[1]).all()
    assert (maps[0] == maps[2]).all()


def test_a_sheet_has_a_tile_for_the_image_and_each_map(classifier, photo):
    found = [explain(classifier, photo, kind) for kind in kinds(classifier)]
    sheet = contact_sheet(photo, found, columns=2)
    tiles = len(found) + 1
    assert sheet.width == 2 * 310 + 10
    assert sheet.height == -(-tiles // 2) * (300 + 42 + 10) + 10


MISTAKES = [
    ("gcvit", {"kind": "groups"}, "gcvit_xxtiny has no kind='groups'; it has local, global, rollout, grad_cam"),
    ("gpvit", {"kind": "gruops"}, "it has local, groups, propagation, rollout, grad_cam. Did you mean 'groups'"),
    ("gcvit", {"kind": "global", "stage": 4}, "stage=4 is not there; kind='global' of gcvit_xxtiny has stage 0 to 3"),
    ("gpvit", {"kind": "groups", "stage": 1}, "stage=1 was given, and kind='groups' of gpvit_l1 has no stages"),
    ("gcvit", {"kind": "global", "stage": 1, "block": 0}, "block=0 is not there; kind='global' of gcvit_xxtiny in"),
    ("gpvit", {"kind": "groups", "block": 2}, "block=2 is not there; kind='groups' of gpvit_l1 has block 1, 4, 7, 10"),
    ("gcvit", {"kind": "rollout", "block": 0}, "in stage 3 has no blocks to choose from; leave it out"),
    ("gcvit", {"kind": "local", "head": 8}, "head=8 is not there;"),
    ("gpvit", {"kind": "grad_cam", "head": 0}, "of gpvit_l1, block 11 has no heads to choose from"),
    ("gcvit", {"kind": "local", "pixel": (101, 3)}, "is not in the image; x goes from 0 to 100, y from 0 to 69"),
    ("gcvit", {"kind": "local", "pixel": (2, 3)}, "was cropped away before the model saw the image; it saw x 15"),
    ("gcvit", {"kind": "local", "region": (0, 0, 4, 4)}, "region=0,0,4,4 was cropped away"),
    ("gcvit", {"kind": "local", "region": (9, 9, 9, 20)}, "is not in the image; give left,top,right,bottom"),
    ("gcvit", {"kind": "local", "pixel": (40, 40), "region": (30, 30, 40, 40)}, "pixel and region were both given"),
    ("gcvit", {"kind": "local", "target": 1}, "target does not apply to kind='local' here; use head,"),
    ("gpvit", {"kind": "groups", "group": 16}, "group=16 is not there; block 10 has groups 0 to 15"),
    ("gpvit", {"kind": "propagation", "group": 1, "pixel": (40, 40)}, "group and pixel or region were given"),
    ("gpvit", {"kind": "groups", "group": 1, "pixel": (40, 40)}, "a group is looked at from everywhere, leave one out"),
    ("gcvit", {"kind": "global", "pixel": 5}, "pixel=5 must be 2 whole numbers: x, y"),
    ("gcvit", {"kind": "local", "region": (1, 2)}, "region=(1, 2) must be 4 whole numbers: left, top, right, bottom"),
    ("gcvit", {"kind": "grad_cam", "target": 3}, "target=3 is not there; the classes are 0 to 2"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "asked", "text"), MISTAKES)
def test_mistakes_say_what_there_is(request, photo, family, asked, text):
    with pytest.raises(ValueError, match=r"\w") as error:
        explain(request.getfixturevalue(family), photo, **asked)
    assert text in str(error.value)


def test_classes_by_name_or_number(gcvit):
    assert find_class(gcvit, "banana") == find_class(gcvit, "1") == 1
    with pytest.raises(ValueError, match=r"class 'banena' is not known. Did you mean 'banana'\?"):
        find_class(gcvit, "banena")
    with pytest.raises(ValueError, match=r"class 'zebra' is not known. Known: apple, banana, cherry"):
        find_class(gcvit, "zebra")


def test_a_deployed_copy_is_refused(gcvit, photo):
    with pytest.raises(ValueError, match="a deployed copy tells neither attention nor gradients; explain the model it"):
        explain(gcvit.deploy(), photo, "global")


def test_drawing_refuses_what_does_not_fit(gcvit, photo):
    found = explain(gcvit, photo, "rollout")
    with pytest.raises(ValueError, match=r"opacity=2 must be in 0 … 1"):
        overlay(photo, found, opacity=2)
    with pytest.raises(ValueError, match="expected the explained image, 101×70, or a resized copy, got 50×50; pass"):
        overlay(np.zeros((50, 50, 3), np.uint8), found)
    with pytest.raises(ValueError, match="no explanations came"):
        contact_sheet(photo, [])


# EXIF's orientation → what turns an upright image into the stored one.
AWAY = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE"}


@pytest.mark.parametrize("orientation", range(2, 9))
def test_maps_of_a_rotated_photograph_lie_on_the_upright_image(gcvit, photo, tmp_path, orientation):
    path, exif = tmp_path / "photo.png", Image.Exif()
    exif[0x0112] = orientation
    method = Image.Transpose[AWAY.get(orientation, "ROTATE_270")]
    Image.fromarray(photo).transpose(method).save(path, exif=exif)
    expected = explain(gcvit, photo, "grad_cam")
    drawn = np.asarray(overlay(photo, expected))
    for image in (path, read_image(path), Image.open(path)):
        found = explain(gcvit, image, "grad_cam")
        np.testing.assert_array_equal(np.asarray(found.values), np.asarray(expected.values))
        np.testing.assert_array_equal(np.asarray(overlay(image, found)), drawn)


@pytest.mark.parametrize("values", [(0.99, 1.01), (0.1, 1.9)])
def test_nearly_uniform_attention_is_not_drawn_over_all_colors(values):
    found = explain_map(values)
    drawn = np.asarray(overlay(np.zeros((64, 64, 3), np.uint8), found, opacity=1), int).sum(-1)
    loud = np.asarray(overlay(np.zeros((64, 64, 3), np.uint8), explain_map((0.0, 2.0)), opacity=1), int).sum(-1)
    share = (drawn.max() - drawn.min()) / (loud.max() - loud.min())
    assert (share < 0.3) == (values == (0.99, 1.01))


def test_a_window_of_one_token_is_noted():
    assert explain_map((1.0, 1.0), window=(1, 1)).note == "one token per window"
    assert explain_map((0.5, 1.5)).note == "0.5–1.5× mean"


def explain_map(values, window=None):
    """A made-up look at an image of 64×64 pixels: two rows of values."""
    grid = np.repeat(np.array(values, np.float32)[:, None], 2, 1)
    sizes = {"input_size": (64, 64), "original_size": (64, 64), "crop": (0, 0, 64, 64)}
    return Explanation(kind="local", title="", values=grid, stride=32, offset=15.5, window=window, **sizes)
