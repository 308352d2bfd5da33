"""Weights into models: what is adapted, what is reported, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from globalvit.build import create_backbone, create_model
from globalvit.weights import catalog, gcvit_official
from globalvit.weights.adapt import adapt_channels, resize_table
from globalvit.weights.load import load_weights
from globalvit.weights.report import LoadReport

MODEL = "gcvit_xxtiny"
TABLE = "backbone.stages.2.blocks.0.attention.bias_table"
STEM = "backbone.stem.conv.weight"


def test_an_official_checkpoint_gives_the_published_logits(golden, official_file):
    case = golden("gcvit_cls_xxtiny")
    model = create_model(MODEL).eval()
    report = load_weights(model, official_file)
    with torch.inference_mode():
        case.check("logits", model(case.images()))
    assert (report.entry, report.passed_over) == ("state_dict_ema", ("state_dict",))
    assert (report.loaded, report.fresh, report.head_is_fresh) == (226, (), False)
    assert len(report.dropped) == 12


def test_the_report_is_a_paragraph(official_file):
    text = str(load_weights(create_model(MODEL, num_classes=10, in_channels=1, image_size=64), official_file))
    assert text == (
        f"Loaded 224 parameters from {official_file} (its state_dict_ema), which has the official GC ViT form; its "
        "state_dict was passed over. 12 position tables were resized from windows 7, 7, 14, 7 to 2, 2, 4, 2. The stem "
        "was adapted from 3 to 1 input channels. The head is fresh: the weights have 1000 classes, the model has 10. "
        "Left out by name: 12 entries, levels.*.blocks.*.attn.relative_position_index (12)."
    )


def test_a_report_can_be_short():
    assert str(LoadReport(source="x", form="our form", loaded=3)) == "Loaded 3 parameters from x, which has our form."


def test_raw_weights_can_be_asked_for(official_file, official):
    model = create_model(MODEL)
    report = load_weights(model, official_file, use_ema=False)
    assert (report.entry, report.passed_over) == ("state_dict", ("state_dict_ema",))
    assert not any(value.any() for value in model.state_dict().values())


def test_another_number_of_classes_leaves_the_head_as_it_is(official):
    model = create_model(MODEL, num_classes=10)
    before = model.head.linear.weight.clone()
    report = load_weights(model, official)
    assert report.head_is_fresh
    assert report.classes == (1000, 10)
    assert set(report.fresh) == {"head.linear.weight", "head.linear.bias"}
    assert torch.equal(model.head.linear.weight, before)
    assert torch.equal(model.backbone.norm.weight, official["norm.weight"])


def test_weights_without_a_head_leave_it_fresh(official):
    ours = gcvit_official.to_ours(official)
    backbone = {name.removeprefix("backbone."): value for name, value in ours.items() if name.startswith("backbone.")}
    report = load_weights(create_model(MODEL), backbone)
    assert report.classes == (None, 1000)
    assert "The head is fresh: the weights have no head, the model has 1000." in str(report)


def test_a_backbone_takes_no_head(official):
    backbone = create_backbone(MODEL)
    report = load_weights(backbone, official)
    assert torch.equal(backbone.norm.bias, official["norm.bias"])
    assert report.dropped[-2:] == ("head.linear.weight", "head.linear.bias")


def test_other_windows_resize_the_tables(official):
    model = create_model(MODEL, window=(7, 7, 12, 7))
    report = load_weights(model, official)
    assert len(report.resized_tables) == 6
    assert report.windows == ((7, 7, 14, 7), (7, 7, 12, 7))
    table = official["levels.2.blocks.0.attn.relative_position_bias_table"]
    grid = table.t().reshape(1, 8, 27, 27)
    expected = F.interpolate(grid, size=(23, 23), mode="bicubic", align_corners=False).reshape(8, -1).t()
    assert torch.equal(model.state_dict()[TABLE], expected)


def test_a_resized_table_is_bicubic_with_a_of_minus_three_quarters():
    """From 2 to 4 steps the center of new step 1 is at 0.25: weights of a = −0.75 at distances 1.25, .25, .75, 1.75."""
    a, rows = -0.75, torch.tensor([0.0, 1.0])

    def near(x):
        return (a + 2) * x**3 - (a + 3) * x**2 + 1

    def far(x):
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    left = far(1.25) + near(0.25)  # the edge is replicated
    table = rows.repeat_interleave(2)[:, None]  # a 2×2 grid that changes along its rows
    resized = resize_table(table, 16).reshape(4, 4)
    assert float(resized[1, 0]) == pytest.approx(1 - left, abs=1e-6)
    assert float(resized[2, 3]) == pytest.approx(left, abs=1e-6)


def test_a_table_keeps_its_dtype_and_heads_apart():
    table = torch.stack([torch.zeros(169), torch.ones(169)], 1).half()
    resized = resize_table(table, 27**2)
    assert resized.dtype == torch.float16
    assert torch.equal(resized[:, 0], torch.zeros(27**2).half())
    assert torch.allclose(resized[:, 1].float(), torch.ones(27**2), atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
def test_input_channels_are_adapted_as_timm_does(official, channels):
    from timm.models import adapt_input_conv

    kernel = official["patch_embed.proj.weight"]
    torch.testing.assert_close(adapt_channels(kernel, channels), adapt_input_conv(channels, kernel))
    model = create_model(MODEL, in_channels=channels)
    report = load_weights(model, official)
    assert report.input_channels == (3, channels)
    torch.testing.assert_close(model.state_dict()[STEM], adapt_channels(kernel, channels))


def test_a_gray_image_is_answered_as_in_color(official):
    color, gray = (create_model(MODEL, in_channels=n, image_size=32).eval() for n in (3, 1))
    for model in (color, gray):
        load_weights(model, official)
    image = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(gray(image), color(image.expand(1, 3, 32, 32)), rtol=1e-4, atol=1e-5)


def test_classification_weights_go_into_the_detection_form(golden):
    published = golden("gcvit_backbone_det_tiny_from_cls_320x416")
    backbone = create_backbone("gcvit_tiny", form="detection").eval()
    fresh = {name: value.clone() for name, value in backbone.state_dict().items() if name.startswith("norms.")}
    report = load_weights(backbone, golden("gcvit_cls_tiny").state_dict())
    assert report.windows == ((7, 7, 14, 7), (24, 24, 24, 24))
    assert len(report.resized_tables) == 31
    assert set(report.fresh) == {f"backbone.{name}" for name in fresh}
    assert {"backbone.norm.weight", "backbone.norm.bias"} <= set(report.dropped)
    own = backbone.state_dict()
    assert all(torch.equal(own[name], value) for name, value in fresh.items())
    for stage in range(4):
        published.check(f"table_level{stage}_block0", own[f"stages.{stage}.blocks.0.attention.bias_table"])


def test_a_detection_checkpoint_brings_its_own_tables(golden):
    case = golden("gcvit_backbone_det_tiny_320x416")
    backbone = create_backbone("gcvit_tiny", form="detection")
    report = load_weights(backbone, {"state_dict": case.state_dict()})
    assert (report.resized_tables, report.fresh) == ((), ())
    assert backbone.stages[0].blocks[0].attention.bias_table.shape == (47**2, 2)


def test_a_detector_gives_its_backbone(golden):
    state = {
        f"backbone.{name}": value for name, value in golden("gcvit_backbone_det_tiny_320x416").state_dict().items()
    }
    state |= {"neck.lateral_convs.0.conv.bias": torch.ones(1)}
    report = load_weights(create_backbone("gcvit_tiny", form="detection"), state)
    assert report.form == "the form of OpenMMLab"
    assert "neck.laterals.0.conv.bias" in report.dropped


def test_a_checkpoint_of_another_model_is_refused_whole(official):
    model = create_model("gcvit_xtiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="is a checkpoint of another model than gcvit_xtiny: 78 entries differ: "
    ) as error:
        load_weights(model, official)
    # Six blocks of thirteen parameters are missing.
    text = str(error.value)
    assert text.count(" is missing") == 10
    assert text.endswith("; …; it holds gcvit_xxtiny, so create that model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), r"1 entry differs: 'backbone\.norm\.bias' is missing$"),
        (
            lambda s: s.update({"levels.0.blocks.9.gamma1": torch.ones(64)}),
            r"1 entry differs: 'backbone\.stages\.0\.blocks\.9\.scale1' is not in the model$",
        ),
        (
            lambda s: s.update({"norm.bias": torch.ones(5)}),
            r"1 entry differs: 'backbone\.norm\.bias' is \(5,\) there and \(512,\) here$",
        ),
        (
            lambda s: s.update({"levels.0.blocks.0.attn.relative_position_bias_table": torch.ones(170, 2)}),
            r"'backbone\.stages\.0\.blocks\.0\.attention\.bias_table' is \(170, 2\) there and \(169, 2\) here$",
        ),
        (
            lambda s: s.update({"surprise": torch.ones(1)}),
            r"1 of 227 entries are not of the official GC ViT form: 'surp",
        ),
    ],
)
def test_a_single_difference_is_named(official, change, message):
    change(official)
    with pytest.raises(ValueError, match=message):
        load_weights(create_model(MODEL), official)


def test_detection_weights_do_not_make_a_classifier(golden):
    with pytest.raises(
        ValueError, match=r"another model than gcvit_tiny: 10 entries differ: 'backbone\.norm\.weight' is"
    ):
        load_weights(create_model("gcvit_tiny"), golden("gcvit_backbone_det_tiny_320x416").state_dict())


def test_half_precision_weights_become_the_models_precision(official):
    model = create_model(MODEL)
    load_weights(model, {name: value.half() for name, value in official.items()})
    assert model.backbone.norm.weight.dtype == torch.float32


def test_a_name_of_the_catalog_is_looked_up_for_the_model(no_hub, official):
    no_hub.mkdir(parents=True)
    torch.save({"state_dict": official}, no_hub / "gcvit_1k_xxtiny.pth.tar")
    for model in (create_model(MODEL, "nvidia_in1k"), create_backbone(MODEL)):
        report = load_weights(model, "nvidia_in1k")
        assert report.source == str(no_hub / "gcvit_1k_xxtiny.pth.tar")
    assert load_weights(create_model(MODEL), catalog.find(MODEL, "nvidia_in1k")).loaded == 226


def test_a_misspelt_name_gives_the_closest_ones():
    with pytest.raises(ValueError, match=r"'gcvit_xxtiny' has no weights 'nvida_in1k'; .* Did you mean 'nvidia_in1k'"):
        load_weights(create_model(MODEL), "nvida_in1k")


def test_a_name_needs_a_model():
    backbone = create_backbone(MODEL)
    backbone.stages = backbone.stages[:2]
    with pytest.raises(
        ValueError, match="weights 'nvidia_in1k' exist for several models; name the model, or give a file"
    ):
        load_weights(backbone, "nvidia_in1k")


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "none.pth"
    with pytest.raises(
        FileNotFoundError, match=r"none\.pth does not exist; give a weight file, a checkpoint folder or a run"
    ):
        load_weights(create_model(MODEL), path)
