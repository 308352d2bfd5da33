"""What is written: checked numbers, open sizes, metadata, and what is refused."""

import json
import sys

import onnx
import onnxruntime
import pytest
import torch

from globalvit.detectors import found
from globalvit.detectors.masks import paste
from globalvit.detectors.regions import CANDIDATES, best_of
from globalvit.export import check, export_model
from globalvit.export.check import SIZES, cases
from globalvit.export.graph import Graph
from globalvit.export.plan import Plan

HEADS = ("", "_upernet", "_segformer", "_mask_rcnn", "_cascade_mask_rcnn", "_retinanet")
FAMILIES = ("gcvit_xxtiny", "gpvit_l1")


def properties(path):
    return {one.key: one.value for one in onnx.load(path, load_external_data=False).metadata_props}


def test_an_onnx_file_takes_any_batch_and_size_and_says_what_it_is(tiny, tmp_path):
    model = tiny("gpvit_l1", classes=("a", "b", "c"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_model(model, tmp_path / "tiny.onnx", license="MIT")
    assert report.difference < 1e-4
    assert {(one.batch, (one.height, one.width)) for one in report.checks} == {(b, s) for b in (1, 2, 3) for s in SIZES}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3]
    images = torch.randn(1, 3, 75, 230)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images), rtol=1e-4, atol=1e-5)
    said = properties(report.path)
    assert json.loads(said["classes"]) == ["a", "b", "c"]
    assert json.loads(said["mean"]) == list(model.preprocessing.mean)
    assert (said["model"], said["weights_license"]) == ("gpvit_l1", "MIT")
    assert list(tmp_path.iterdir()) == [report.path]


def enliven(detector):
    """Fresh detectors give every box nearly the same score."""
    with torch.no_grad():
        for name, weight in detector.named_parameters():
            if name.endswith(("logits.weight", "deltas.weight")):
                weight.mul_(30)
            elif "_convs." in name:
                weight.mul_(8)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("postprocessing", [False, True])
def test_every_task_is_exported_with_open_sizes(family, head, postprocessing, tiny, tmp_path):
    torch.manual_seed(0)
    model, options = tiny(family + head), {"preprocessing": "nhwc", "postprocessing": postprocessing}
    enliven(model)
    report = export_model(model, tmp_path / "tiny.onnx", score_threshold=0.0, **options)
    assert report.difference <= (2e-2 if postprocessing and head else 1e-4)
    assert len(report.checks) == 12
    if postprocessing and head.endswith(("rcnn", "retinanet")):
        assert report.objects > 24 * 10


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "retinanet"])
def test_boxes_of_a_graph_are_those_of_predict(head, tiny):
    torch.manual_seed(0)
    model = tiny(f"gcvit_xxtiny_{head}").eval()
    enliven(model)
    graph = Graph(model, Plan(format="onnx", has_postprocessing=True, score_threshold=0.1))
    images = graph.noise(3, 97, 131)
    with torch.inference_mode():
        rows = zip(*graph(images), strict=True)
    for row, answer in zip(rows, model.predict(list(images), score_threshold=0.1), strict=True):
        found = dict(zip(graph.names, row, strict=True))
        count = len(answer["scores"])
        assert count > 10
        assert torch.equal(found["scores"] > 0, torch.arange(100) < count)
        torch.testing.assert_close(found["scores"][:count], answer["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["boxes"][:count], answer["boxes"], rtol=0, atol=1e-2)
        assert torch.equal(found["labels"][:count], answer["labels"])
        if "masks" in found:
            masks = paste(found["masks"][:count], found["boxes"][:count], (97, 131))
            assert (masks != answer["masks"]).float().mean() < 1e-4


def test_a_graph_holds_as_many_boxes_as_are_asked_for(tiny):
    torch.manual_seed(0)
    model = tiny("gcvit_xxtiny_mask_rcnn").eval()
    enliven(model)
    graph = Graph(model, Plan(format="onnx", has_postprocessing=True, score_threshold=0.0, max_detections=7))
    images = graph.noise(2, 97, 131)
    with torch.inference_mode():
        found = dict(zip(graph.names, graph(images), strict=True))
    assert (found["boxes"].shape, found["masks"].shape[:2]) == ((2, 7, 4), (2, 7))
    answers = model.predict(list(images), score_threshold=0.0, max_detections=7)
    torch.testing.assert_close(found["scores"], torch.stack([one["scores"] for one in answers]), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="expected max_detections from 1 to 1000, got 0"):
        Plan(format="onnx", max_detections=0)


def test_a_low_threshold_leaves_a_bounded_number_of_boxes_to_suppress(monkeypatch):
    def nms(boxes, scores, overlap):
        assert len(boxes) == 2 * CANDIDATES
        return suppress(boxes, scores, overlap)

    suppress = found.nms
    monkeypatch.setattr(found, "nms", nms)
    torch.manual_seed(0)
    starts, sides = 200 * torch.rand(2, 1000, 2), 100 * torch.rand(2, 1000, 2)
    proposals = torch.cat([starts, starts + sides], dim=-1)
    probabilities_RK = (5 * torch.randn(2000, 21)).softmax(1)[:, :-1]
    boxes_RK4 = proposals.flatten(0, 1)[:, None].expand(-1, 20, -1)
    limits = found.limits_of([(300, 300)] * 2, proposals.device)
    fixed, free = (
        best_of(probabilities_RK, boxes_RK4, found.stacked(list(proposals)), limits, 0.0, is_fixed=is_fixed)
        for is_fixed in (True, False)
    )
    torch.testing.assert_close(fixed.scores, free.scores, rtol=0, atol=0)
    torch.testing.assert_close(fixed.boxes, free.boxes, rtol=0, atol=0)
    assert torch.equal(fixed.labels, free.labels)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_pt2_file_takes_any_batch_and_size(precision, tiny, tmp_path):
    report = export_model(tiny("gpvit_l1"), tmp_path / "tiny.pt2", precision=precision, preprocessing="nchw")
    extra = {"globalvit.json": ""}
    module = torch.export.load(report.path, extra_files=extra).module()
    (logits,) = module(torch.zeros(1, 3, 40, 130, dtype=torch.uint8))
    assert logits.shape == (1, 3)
    said = json.loads(extra["globalvit.json"])
    assert said["precision"] == precision
    assert said["input"] == "uint8 NCHW, 0 … 255"


@pytest.mark.slow
def test_half_precision_and_another_opset(tiny, tmp_path):
    report = export_model(tiny("gcvit_xxtiny"), tmp_path / "tiny.onnx", precision="fp16", opset=20)
    assert 1e-5 < report.difference < 2e-2


@pytest.mark.slow
def test_openvino_reads_the_file(tiny, tmp_path):
    import openvino

    model = tiny("gcvit_xxtiny").eval()
    report = export_model(model, tmp_path / "tiny.onnx")
    compiled = openvino.Core().compile_model(str(report.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 3, 64, 64), (2, 3, 97, 131), (3, 3, 224, 160)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = model(images)
        found = torch.from_numpy(compiled(images.numpy())[0])
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_a_file_that_differs_is_not_kept(tiny, tmp_path, monkeypatch):
    from globalvit.export import files, model

    def run(path):
        right = files.run_torch(path)
        return lambda images: [one + (images.shape[0] == 3) for one in right(images)]

    monkeypatch.setattr(model, "run_torch", run)
    with pytest.raises(
        ValueError, match=r"differ from the model's by .* at batch 3 of 32×32 pixels, more than 0.0001; "
    ):
        export_model(tiny("gpvit_l1"), tmp_path / "tiny.pt2", image_size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.onnx", {"precision": "bf16"}, "precision='bf16' is refused for ONNX: onnxruntime has no bf16 convolutions"),
        ("a.onnx", {"precision": "int8"}, "precision='int8' must be one of fp32, fp16, bf16"),
        ("a.onnx", {"opset": 17}, "opset=17 must be 18 to 23"),
        ("a.pt", {}, r"expected a file name ending in \.onnx \(ONNX\) or \.pt2 \(torch\.export\), got .*a\.pt"),
        ("a.onnx", {"format": "torch"}, r"expected a file name ending in \.pt2 for the format torch, got .*a\.onnx"),
        ("a.onnx", {"dynamic": ("size",), "image_size": 64}, "image_size=64 binds the file to one size and dynamic="),
        ("a.onnx", {"dynamic": ("width",)}, "dynamic='width' must be 'batch', 'size', both or neither"),
        ("a.pt2", {"opset": 20}, r"opset=20 does not apply to a \.pt2 file; leave it out"),
        ("a.onnx", {"image_size": 16}, "image_size=16 is too small; give 32 pixels or more"),
        ("a.onnx", {"preprocessing": "hwc"}, "preprocessing='hwc' must be 'nchw' or 'nhwc'"),
        ("a.onnx", {"score_threshold": 1.0}, "score_threshold=1.0 must be 0 or more and under 1"),
    ],
)
def test_what_cannot_be_is_refused(name, arguments, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(tiny("gpvit_l1"), tmp_path / name, **arguments)
    assert not list(tmp_path.iterdir())


def test_what_a_file_cannot_hold_is_refused_in_words(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="a deployed copy runs only inside this package; export the model it came from"
    ):
        export_model(tiny("gcvit_xxtiny").deploy(), tmp_path / "a.pt2")
    with pytest.raises(ValueError, match=r"shifted windows, of the ablations, .*; bind it to one size with image_size"):
        export_model(tiny("gcvit_xxtiny", ablation=["shifted"]), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_for_one_size_says_so(tiny, tmp_path):
    report = export_model(tiny("gcvit_xxtiny"), tmp_path / "a.pt2", image_size=(32, 64), dynamic=())
    assert report.metadata["image_size"] == [32, 64]
    assert list(report.metadata["preprocessing"]["image_size"]) == [32, 64]


def test_a_missing_package_is_named_with_the_command_that_brings_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"writing ONNX needs another package .*: pip install 'globalvit\[export\]'"):
        export_model(tiny("gpvit_l1"), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("plan", "number"),
    [
        (Plan(format="onnx"), 12),
        (Plan(format="onnx", image_size=(64, 96)), 3),
        (Plan(format="onnx", has_open_batch=False), 4),
    ],
)
def test_every_open_size_is_checked(plan, number):
    assert len(cases(plan)) == number


@pytest.mark.parametrize(("long", "runs"), [(60.0, 2), (0.0, 1)])
def test_a_long_run_is_not_repeated(long, runs, monkeypatch):
    monkeypatch.setattr(check, "LONG", long)
    done = []
    check._timed(lambda images: done.append(images) or [images], torch.zeros(1), "a batch")
    assert len(done) == runs


def test_boxes_in_another_order_are_the_same_and_other_masks_are_not():
    names = ("boxes", "scores", "labels", "masks")
    boxes_BN4 = torch.tensor([[[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]])
    expected = [boxes_BN4, torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1, 2, 0]]), torch.rand(1, 3, 4, 4)]
    found = [one[:, [1, 0, 2]] for one in expected]
    assert check.differ(names, found, expected, "a batch") == 0
    found[3] = expected[3]
    assert check.differ(names, found, expected, "a batch") > 0.05
