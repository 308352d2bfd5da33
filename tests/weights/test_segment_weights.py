"""Weights of segmenters: what another task, another head and other classes leave fresh, and files there and back."""

import pytest
import torch
from safetensors.torch import load_file

import globalvit as gv
from globalvit.build import create_backbone
from globalvit.cli.main import main
from globalvit.weights import openmmlab
from globalvit.weights.forms import detect_form, infer_spec

CLASSIFIER, SEGMENTER = "gpvit_l1", "gpvit_l1_segformer"
SMALL = {"image_size": 64}


@pytest.fixture
def published(golden):
    return golden("gpvit_seg_l1_segformer").state_dict()


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    """Names whose values are not as they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def parts(names):
    return {name.split(".")[0] for name in names}


def test_a_segmenter_takes_a_classifiers_backbone(golden):
    model = gv.create_model(SEGMENTER)
    before = values(model)
    report = gv.load_weights(model, golden("gpvit_cls_L1").state_dict())
    norms = {f"backbone.norms.{block}.{part}" for block in (2, 5, 8) for part in ("weight", "bias")}
    assert parts(changed(model, before)) == {"backbone"}
    assert {name for name in report.fresh if name.startswith("backbone.")} == norms
    assert parts(report.fresh) == {"backbone", "head"}
    text = str(report)
    assert "The head is fresh: that of the weights is classifier, that of the model segformer." in text
    assert "6 other parameters are fresh: backbone.norms.*.weight (3), backbone.norms.*.bias (3)." in text
    assert "Left out by name: 6 entries, head.pool.token" in text


def test_gcvits_output_norms_are_fresh(official):
    model = gv.create_model("gcvit_xxtiny_upernet")
    report = gv.load_weights(model, official)
    assert {name for name in report.fresh if name.startswith("backbone.")} == {
        f"backbone.norms.{stage}.{part}" for stage in range(4) for part in ("weight", "bias")
    }
    assert {"backbone.norm.weight", "head.linear.bias"} <= set(report.dropped)
    assert parts(report.fresh) == {"backbone", "head", "auxiliary_head"}
    assert (report.classes, report.heads) == ((None, 150), ("classifier", "upernet"))


@pytest.mark.parametrize(
    ("model", "source"), [("gpvit_l1", "gpvit_l1_upernet"), ("gcvit_xxtiny", "gcvit_xxtiny_segformer")]
)
def test_a_classifier_takes_a_segmenters_backbone(model, source):
    classifier, segmenter = gv.create_model(model, num_classes=5), gv.create_model(source)
    before = values(classifier)
    report = gv.load_weights(classifier, segmenter.state_dict())
    assert "head.linear.weight" not in changed(classifier, before)
    assert {"head.classifier.weight", "backbone.norms.2.weight"} <= set(report.dropped)
    assert f"that of the weights is {source.split('_')[-1]}, that of the model classifier." in str(report)
    assert all(name.startswith(("backbone.norm.", "head.")) for name in report.fresh)
    own = classifier.backbone.state_dict()
    same = [name for name in own if torch.equal(own[name], segmenter.backbone.state_dict().get(name, torch.empty(0)))]
    assert len(own) - len(same) <= 2


def test_another_segmenter_gives_its_backbone_with_all_norms():
    model, source = gv.create_model("gpvit_l1_upernet"), gv.create_model(SEGMENTER)
    report = gv.load_weights(model, source.state_dict())
    assert parts(report.fresh) == {"head", "auxiliary_head"}
    assert torch.equal(model.backbone.norms["5"].weight, source.backbone.norms["5"].weight)
    assert "that of the weights is segformer, that of the model upernet" in str(report)


def test_a_backbone_takes_no_head(published):
    backbone = create_backbone(CLASSIFIER, form="segmentation")
    report = gv.load_weights(backbone, published)
    assert report.fresh == ()
    assert parts(report.dropped) == {"head"}


def test_other_classes_leave_only_the_classifiers_fresh():
    source = gv.create_model("gpvit_l1_upernet", num_classes=7)
    torch.nn.init.normal_(source.head.merge.conv.weight)
    model = gv.create_model("gpvit_l1_upernet", num_classes=3)
    report = gv.load_weights(model, source.state_dict())
    fresh = {f"{head}.classifier.{part}" for head in ("head", "auxiliary_head") for part in ("weight", "bias")}
    assert set(report.fresh) == fresh
    assert torch.equal(model.head.merge.conv.weight, source.head.merge.conv.weight)
    assert str(report).endswith(
        "The layers of the classes, head.classifier.weight, head.classifier.bias, auxiliary_head.classifier.weight, "
        "auxiliary_head.classifier.bias, are fresh: the weights have 7 classes, the model has 3."
    )


def test_a_segmenter_of_another_size_is_refused():
    with torch.device("meta"):
        source = gv.create_model("gpvit_l2_segformer").state_dict()
    with pytest.raises(ValueError, match=r"than gpvit_l1_segformer: .*; it holds gpvit_l2_segformer, so create that"):
        gv.load_weights(gv.create_model(SEGMENTER), source)


def test_a_missing_entry_is_named_without_another_models_name(published):
    del published["decode_head.fusion_conv.bn.bias"]
    with pytest.raises(ValueError, match=r"1 entry differs: 'head\.fusion\.norm\.bias' is missing$"):
        gv.load_weights(gv.create_model(SEGMENTER), published)


@pytest.mark.parametrize("head", ["upernet", "segformer"])
@pytest.mark.parametrize("backbone", ["gpvit_l1", "gpvit_l4", "gcvit_xxtiny", "gcvit_small"])
def test_every_segmenter_goes_there_and_back(backbone, head):
    with torch.device("meta"):
        own = gv.create_model(f"{backbone}_{head}", num_classes=21, in_channels=4).state_dict()
    state = {name: torch.zeros(value.shape) if "table" in name else value for name, value in own.items()}
    official = openmmlab.from_ours(state)
    assert detect_form(official).name == "mm"
    assert {name.split(".")[0] for name in official} == {"backbone", "decode_head", "auxiliary_head"} - (
        {"auxiliary_head"} if head == "segformer" else set()
    )
    back = openmmlab.to_ours(official)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in own.items()}
    spec = infer_spec(back)
    assert (spec.model, spec.num_classes, spec.in_channels, spec.window) == (f"{backbone}_{head}", 21, 4, None)


def test_a_saved_segmenter_opens_as_it_was(tmp_path):
    model = gv.create_model("gcvit_xxtiny_segformer", classes=["sky", "road"], **SMALL).eval()
    path = tmp_path / "roads.safetensors"
    gv.save_weights(model, path)
    opened = gv.open_checkpoint(path)
    images = torch.randn(1, 3, 64, 40)
    assert torch.equal(opened(images), model(images))
    assert (opened.spec, opened.classes) == (model.spec, model.classes)
    assert opened.preprocessing == model.preprocessing


@pytest.mark.parametrize(("listed", "names"), [(150, 150), (3, None), (0, None)], ids=["all", "too few", "none"])
def test_a_published_file_opens_without_a_name_and_brings_its_classes(published, tmp_path, listed, names):
    path = tmp_path / "iter_160000.pth"
    meta = {"iter": 160_000} | ({"CLASSES": tuple(map(str, range(listed)))} if listed else {})
    torch.save({"meta": meta, "state_dict": published}, path)
    opened = gv.open_checkpoint(path)
    assert (opened.spec.model, opened.spec.num_classes) == (SEGMENTER, 150)
    assert opened.preprocessing.short_side == 512
    assert opened.classes == (names and tuple(map(str, range(names))))


def test_convert_there_and_back(published, tmp_path, is_equal, capsys):
    source, ours, back = tmp_path / "iter.pth", tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    torch.save({"state_dict": published}, source)
    assert main(["convert", str(source), str(ours), "--to", "ours"]) == 0, capsys.readouterr().err
    assert main(["convert", str(ours), str(back), "--to", "official"]) == 0, capsys.readouterr().err
    assert "model: gpvit_l1_segformer, 150 classes" in capsys.readouterr().out
    assert is_equal(load_file(back), published)
    assert main(["convert", str(ours), str(tmp_path / "timm.pth"), "--to", "timm"]) == 1
    assert "timm has no gpvit_l1_segformer; use --to ours or --to official" in capsys.readouterr().err
