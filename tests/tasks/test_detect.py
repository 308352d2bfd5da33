"""The contract of every detector; a new one adds a line to `DETECTORS`."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import batched_nms

import globalvit as gv
from globalvit.build import open_checkpoint, save_weights
from globalvit.data.built_in.shapes import draw_scene
from globalvit.data.common.loading import eval_loader
from globalvit.data.common.transforms import FitTransform
from globalvit.data.detection.dataset import open_detection
from globalvit.data.detection.transforms import DetectEvalTransform, collate_ground_truth
from globalvit.detectors import retinanet, roi, rpn
from globalvit.detectors.assign import Sampler
from globalvit.models.variants import VARIANTS
from globalvit.necks.fpn import FPN
from globalvit.tasks import detect
from globalvit.train.evaluate import evaluate

# name → terms of its loss
DETECTORS = {
    "gcvit_xxtiny_mask_rcnn": 5,
    "gcvit_xxtiny_cascade_mask_rcnn": 11,
    "gpvit_l1_mask_rcnn": 5,
    "gcvit_xxtiny_retinanet": 2,
    "gpvit_l1_retinanet": 2,
}
WITH_MASKS = [name for name in DETECTORS if not name.endswith("retinanet")]
TOYS = {
    "gcvit_xxtiny": replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16),
    "gpvit_l1": replace(VARIANTS["gpvit_l1"], width=24),
}
KEYS = Path(__file__).parent / "keys"
CLASSES = ("circle", "square", "triangle")
# The key's bias of a softmax, and what the layers behind it take away; see the contract of backbones.
DEAD = re.compile(r"backbone\.blocks\.\d+\.((gather|scatter)\.key|mix\.tokens\.fc2)\.bias")
# RetinaNet reads no map of stride 4, so its norm learns nothing.
UNREAD = re.compile(r"backbone\.norms\.0\.\w+")
# What starts at 0, or so near that the layers before it would get no more than rounding.
LIVELY = ("gamma", "deltas.weight", "logits.weight", "group_tokens", "offsets.weight", "weights.weight")
SOME = Sampler(number=32, positive_fraction=0.25)
EVERYTHING = Sampler(number=10**6, positive_fraction=1.0)


def make(name, sampler=SOME):
    window = {} if name.startswith("gpvit") else {"window": "ratio"}
    model = gv.create_model(name, classes=CLASSES, image_size=64, **window, drop_path=0.0)
    sample(model, sampler)
    return model


def sample(model, sampler):
    """Draw other numbers of regions than the published ones, which are many for a test."""
    if not model.needs_masks:
        return
    learning = model.roi.learning
    several = isinstance(learning, list)
    changed = [replace(one, sampler=sampler) for one in (learning if several else [learning])]
    model.roi.learning = changed if several else changed[0]


def draw_all_anchors(model):
    """Leave nothing of the first losses to the lot."""
    if model.needs_masks:
        model.rpn.how = replace(model.rpn.how, sampler=EVERYTHING)


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    """Narrow networks: a thousand regions through the published heads take many seconds."""
    for name, config in TOYS.items():
        monkeypatch.setitem(VARIANTS, name, config)
    monkeypatch.setattr(detect, "FPN", partial(FPN, out_channels=16))
    monkeypatch.setattr(roi, "FC_WIDTH", 32)
    for module in (rpn, roi, retinanet):
        monkeypatch.setattr(module, "WIDTH", 16)


@pytest.fixture(params=DETECTORS)
def model(request):
    return make(request.param)


@pytest.fixture
def lively(model):
    """Fresh weights answer much alike everywhere; livelier ones have no near ties."""
    for name, parameter in model.named_parameters():
        if "logits" in name or "deltas" in name:
            torch.nn.init.normal_(parameter, std=0.2 if "logits" in name else 0.02)
    return model.eval()


def batch_of(indices, side=64, sides=None):
    """A training batch of shapes; each image is cut to its own size where `sides` gives some."""
    scenes = [draw_scene("train", index, side=side) for index in indices]
    sizes = sides or [(side, side)] * len(scenes)
    batch = {"images": [], "boxes": [], "labels": [], "masks": []}
    for scene, (height, width) in zip(scenes, sizes, strict=True):
        pixels = torch.from_numpy(np.array(scene.image)).permute(2, 0, 1).float() / 127.5 - 1
        masks = torch.from_numpy(np.stack([mask.bitmap() for mask in scene.instances.masks])).bool()
        limit = torch.tensor([width, height, width, height])
        boxes = torch.minimum(torch.from_numpy(scene.instances.boxes), limit)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        batch["images"].append(pixels[:, :height, :width])
        batch["boxes"].append(boxes[seen])
        batch["labels"].append(torch.from_numpy(scene.instances.labels)[seen])
        batch["masks"].append(masks[seen, :height, :width])
    return batch


def empty(batch):
    """The same images with nothing on them."""
    return {
        "images": batch["images"],
        "boxes": [one[:0] for one in batch["boxes"]],
        "labels": [one[:0] for one in batch["labels"]],
        "masks": [one[:0] for one in batch["masks"]],
    }


def close(first, second):
    assert first["names"] == second["names"]
    assert torch.equal(first["labels"], second["labels"])
    torch.testing.assert_close(first["boxes"], second["boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(first["scores"], second["scores"], rtol=0, atol=1e-5)
    if "masks" in first:
        assert (first["masks"] != second["masks"]).float().mean() < 1e-3


def make_image(size=(100, 75), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_forward_gives_maps_of_the_padded_image(lively):
    images = torch.randn(2, 3, 50, 70)
    with torch.inference_mode():
        maps = lively(images)
        padded = lively(torch.nn.functional.pad(images, (0, 26, 0, 14)))
    assert [tuple(x.shape[2:]) for x in maps["features"]] == [(-(-64 // s), -(-96 // s)) for s in lively.neck.strides]
    for name, levels in maps.items():
        assert all(torch.equal(a, b) for a, b in zip(levels, padded[name], strict=True)), name


def test_predict_takes_paths_images_and_arrays_alike(lively, tmp_path):
    image = make_image()
    image.save(tmp_path / "one.png")
    (expected,) = lively.predict(image)
    for form in (tmp_path / "one.png", np.asarray(image)):
        close(lively.predict(form)[0], expected)
    count = len(expected["labels"])
    assert 0 < count <= 100
    assert expected["boxes"].shape == (count, 4)
    assert expected["scores"].tolist() == sorted(expected["scores"].tolist(), reverse=True)
    assert expected["names"] == [CLASSES[label] for label in expected["labels"]]
    assert ("masks" in expected) == lively.needs_masks
    if lively.needs_masks:
        assert expected["masks"].shape == (count, 75, 100)
        assert expected["masks"].dtype == torch.bool


@pytest.mark.parametrize("size", [(200, 150), (40, 51), (90, 300)], ids=str)
def test_answers_are_in_the_images_own_pixels(lively, size):
    # The image is made smaller or larger for the model; its tensor alone is answered in the tensor's pixels.
    image = make_image(size)
    tensor = lively.preprocessing(image)
    (ours,), (direct,) = lively.predict(image), lively.predict(tensor)
    scale = torch.tensor([size[0] / tensor.shape[2], size[1] / tensor.shape[1]]).repeat(2)
    torch.testing.assert_close(ours["boxes"], direct["boxes"] * scale, rtol=1e-5, atol=1e-3)
    assert torch.equal(ours["labels"], direct["labels"])
    assert ours["boxes"][:, 0::2].max() <= size[0]
    assert ours["boxes"][:, 1::2].max() <= size[1]
    assert not lively.needs_masks or direct["masks"].shape[1:] == tensor.shape[1:]


def test_an_answer_does_not_depend_on_its_neighbors(lively):
    sizes = [(64, 64), (50, 70), (64, 64), (40, 90), (33, 65), (64, 64)]
    tensors = [torch.randn(3, *size) for size in sizes]
    for tensor, answer in zip(tensors, lively.predict(tensors, batch_size=2), strict=True):
        close(answer, lively.predict(tensor)[0])


def test_a_forward_pass_holds_images_of_one_padded_size():
    images = [(torch.zeros(3, *size), size) for size in ((64, 64), (50, 70), (64, 50), (40, 90), (1, 1), (60, 60))]
    groups = [positions for positions, *_ in detect.of_one_padded_size(images, 2)]
    assert groups == [[0, 2], [1, 3], [4], [5]]


def test_scores_exceed_the_threshold(lively):
    image = make_image()
    (everything,) = lively.predict(image, score_threshold=0.0)
    threshold = float(everything["scores"][len(everything["scores"]) // 2])
    (some,) = lively.predict(image, score_threshold=threshold)
    assert 0 < len(some["labels"]) < len(everything["labels"])
    assert some["scores"].min() > threshold
    (nothing,) = lively.predict(image, score_threshold=0.9999)
    assert (nothing["boxes"].shape, nothing["labels"].shape, nothing["names"]) == ((0, 4), (0,), [])
    assert not lively.needs_masks or nothing["masks"].shape == (0, 75, 100)
    with pytest.raises(ValueError, match=r"score_threshold=1\.0 must be 0 or more and under 1"):
        lively.predict(image, score_threshold=1.0)


def test_as_many_objects_as_are_asked_for(lively):
    image = make_image()
    (most,) = lively.predict(image, score_threshold=0.0, max_detections=120)
    (usual,) = lively.predict(image, score_threshold=0.0)
    (few,) = lively.predict(image, score_threshold=0.0, max_detections=5)
    assert [len(one["labels"]) for one in (most, usual, few)] == [120, 100, 5]
    assert torch.equal(most["scores"][:100], usual["scores"])
    assert torch.equal(few["boxes"], usual["boxes"][:5])
    assert not lively.needs_masks or len(most["masks"]) == 120
    with pytest.raises(ValueError, match="expected max_detections from 1 to 1000, got 1001"):
        lively.predict(image, max_detections=1001)
    lively.max_detections = 110
    assert len(lively.predict(image, score_threshold=0.0)[0]["labels"]) == 110
    assert lively.metric().limits == [1, 10, 110]


def test_one_tile_is_the_whole_image(lively):
    image = make_image()
    whole, tiled = (lively.predict(image, score_threshold=0.0, **options)[0] for options in ({}, {"tile": 100}))
    assert whole.keys() == tiled.keys()
    assert all(torch.equal(whole[name], tiled[name]) for name in whole if name != "names")


def test_the_mirror_images_boxes_are_merged(lively):
    tensor = torch.randn(3, 64, 90)
    both = lively.predict([tensor, tensor.flip(-1)], score_threshold=0.0)
    left, top, right, bottom = both[1]["boxes"].unbind(1)
    boxes = torch.cat([both[0]["boxes"], torch.stack([90 - right, top, 90 - left, bottom], 1)])
    scores, labels = (torch.cat([one[name] for one in both]) for name in ("scores", "labels"))
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    (merged,) = lively.predict(tensor, score_threshold=0.0, flip=True)
    torch.testing.assert_close(merged["scores"], scores[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(merged["boxes"], boxes[kept], rtol=0, atol=1e-3)
    assert torch.equal(merged["labels"], labels[kept])
    if lively.needs_masks:
        masks = torch.cat([both[0]["masks"], both[1]["masks"].flip(-1)])[kept]
        assert (merged["masks"] != masks).float().mean() < 1e-3
    lively.flip = True
    close(lively.predict(tensor, score_threshold=0.0)[0], merged)
    empty = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "crowd": np.zeros(0, bool), "areas": np.zeros(0)}
    metric = lively.metric()
    ground_truth = {"image_id": 0, "size": (64, 90), "masks": [], **empty}
    with torch.inference_mode():
        lively.evaluate({"images": [tensor], "sizes": [(64, 90)], "annotations": [ground_truth]}, metric)
    found = [row["score"] for row in metric.results(range(3))]
    assert sorted(found, reverse=True) == pytest.approx(merged["scores"][merged["scores"] > 0.05].tolist(), abs=1e-5)


def test_evaluation_scores_what_predict_answers(lively):
    images = [draw_scene("val", index, side=side) for index, side in enumerate((64, 96, 64))]
    annotations = [
        {
            "image_id": index,
            "size": (scene.image.height, scene.image.width),
            "boxes": scene.instances.boxes,
            "labels": scene.instances.labels,
            "crowd": scene.instances.is_crowd,
            "areas": scene.instances.areas,
            "masks": None,
        }
        for index, scene in enumerate(images)
    ]
    batch = {
        "images": [lively.preprocessing(scene.image) for scene in images],
        "sizes": [annotation["size"] for annotation in annotations],
        "annotations": annotations,
    }
    ours, direct = lively.metric(), lively.metric()
    with torch.inference_mode():
        lively.evaluate(batch, ours)
    direct.update(lively.predict([scene.image for scene in images]), annotations)
    assert ours.count == 3
    first, second = ours.results((1, 2, 3)), direct.results((1, 2, 3))
    assert [(row["image_id"], row["category_id"]) for row in first] == [
        (row["image_id"], row["category_id"]) for row in second
    ]
    assert ours.compute() == pytest.approx(direct.compute(), abs=1e-3)


def test_losses_are_named_and_summed(model):
    losses = model.losses(batch_of([0, 1], sides=[(64, 64), (40, 60)]))
    terms = {name: value for name, value in losses.items() if name != "loss"}
    assert all(value.ndim == 0 and value.isfinite() and value >= 0 for value in losses.values())
    torch.testing.assert_close(losses["loss"], torch.stack(list(terms.values())).sum())
    assert len(terms) == DETECTORS[model.spec.model]


def test_every_parameter_learns(model):
    # In evaluation mode, since batch norms of few regions would hide the layers before them. Of an image of 288 pixels
    # the cascade learns from anchors of 256, those of stride 32, few as they are.
    batch = batch_of([0, 1], side=288)
    draw_all_anchors(model)
    for name, parameter in model.named_parameters():
        if name.endswith(LIVELY):
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval().losses(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        if UNREAD.fullmatch(name) and not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        largest = parameter.grad.abs().max()
        assert largest < 1e-4 if DEAD.fullmatch(name) else largest > 0, (name, largest)


def test_images_without_objects_are_learned_from(model):
    batch = batch_of([0, 1])
    losses = model.losses(empty(batch))
    assert all(value.isfinite() for value in losses.values())
    losses["loss"].backward()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in learned)
    model.zero_grad()
    half = {name: [empty(batch)[name][0], values[1]] for name, values in batch.items()}
    assert model.losses(half)["loss"].isfinite()


@pytest.mark.parametrize("model", WITH_MASKS, indirect=True)
def test_masks_are_asked_for_by_name(model):
    batch = batch_of([0])
    del batch["masks"]
    backbone = model.spec.backbone
    with pytest.raises(ValueError, match=rf"{model.spec.model} learns masks and the data has none; .*{backbone}_retin"):
        model.losses(batch)


def train(name, steps, seed=3):
    torch.manual_seed(seed)
    model, batch = make(name), batch_of([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        loss = model.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_detectors_of_boxes_need_no_masks():
    model, batch = make("gcvit_xxtiny_retinanet").eval(), batch_of([0])
    expected = model.losses(batch)["loss"]
    del batch["masks"]
    assert model.losses(batch)["loss"] == expected


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gcvit_xxtiny_mask_rcnn", 25),
        pytest.param("gcvit_xxtiny_cascade_mask_rcnn", 25, marks=pytest.mark.slow),
        pytest.param("gpvit_l1_mask_rcnn", 25, marks=pytest.mark.slow),
        pytest.param("gcvit_xxtiny_retinanet", 100, marks=pytest.mark.slow),
        pytest.param("gpvit_l1_retinanet", 100, marks=pytest.mark.slow),
    ],
)
def test_overfitting_four_images_halves_the_loss(name, steps):
    losses = train(name, steps)
    # The mean of several steps, as each draws its own anchors and regions.
    assert sum(losses[-3:]) / 3 < losses[0] / 2


@pytest.mark.parametrize("name", DETECTORS)
def test_a_seed_repeats_the_losses(name):
    first = train(name, 2)
    assert train(name, 2) == first
    assert train(name, 1, seed=4) != first[:1]


def test_bf16_losses_stay_near_float32(model):
    batch = batch_of([0, 1])
    model.eval()
    torch.manual_seed(1)
    exact = model.losses(batch)["loss"]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.losses(batch)
    assert half["loss"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(exact.item(), rel=0.1)


def test_uneven_passes_learn_as_one_batch(model, in_passes, assert_same):
    model.eval()
    sample(model, EVERYTHING)
    draw_all_anchors(model)
    whole = batch_of([0, 1, 2])
    for name in ("boxes", "labels", "masks"):
        # An image with nothing in it counts for some divisors and not for others.
        whole[name][1] = whole[name][1][:0]
    parts = [{name: values[at] for name, values in whole.items()} for at in (slice(1), slice(1, 3))]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss_of(part):
        return model.losses(part)["loss"]

    loss = loss_of(whole)
    expected = loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)
    # Cascade's stages take their regions from each other's boxes, so rounding moves the regions themselves.
    bound = 2e-5 if "cascade" in model.spec.model else 1e-6
    assert_same(in_passes(loss_of, parts, parameters, model.count), expected, bound)


@pytest.mark.parametrize("label", [3, -1])
def test_labels_of_unknown_classes_are_refused(model, label):
    batch = batch_of([0])
    batch["labels"][0][0] = label
    with pytest.raises(ValueError, match=f"expected labels from 0 to 2, got {label}; "):
        model.losses(batch)


def test_frozen_norms_keep_their_statistics():
    model = make("gpvit_l1_mask_rcnn")
    model.has_frozen_norms = True
    before = {name: value.clone() for name, value in model.train().named_buffers()}
    model.losses(batch_of([0, 1]))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("name", DETECTORS)
def test_names_and_shapes_of_the_heads_are_stable(name):
    with torch.device("meta"):
        state = make(name).state_dict()
    listed = "".join(f"{key} {tuple(t.shape)}\n" for key, t in state.items() if not key.startswith("backbone."))
    assert listed == (KEYS / f"{name}.txt").read_text()


def test_no_images_no_answers():
    assert make("gcvit_xxtiny_retinanet").predict([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (50, 70)], ids=str)
def test_raw_maps_are_exported(model, size):
    model.eval()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = model(images)
    got = torch.export.export(model, (images,)).module()(images)
    assert got.keys() == expected.keys()
    for name, levels in expected.items():
        for ours, level in zip(got[name], levels, strict=True):
            torch.testing.assert_close(ours, level, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_validation_and_prediction_agree_on_upright_boxes(tmp_path, frame):
    model = make("gcvit_xxtiny_retinanet").eval()
    model.preprocessing = FitTransform(short_side=64, long_side=96)
    for name, parameter in model.named_parameters():
        if "logits" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    exif, images = Image.Exif(), []
    (tmp_path / "train").mkdir()
    (tmp_path / "annotations").mkdir()
    rows = [{"id": 1, "image_id": 6, "category_id": 0, "bbox": [3, 4, 20, 30], "area": 600, "iscrowd": 0}]
    for orientation in (6, 3):
        exif[0x0112] = orientation
        pixels.save(tmp_path / "train" / f"{orientation}.png", exif=exif)
        size = (70, 50) if frame == "stored" or orientation == 3 else (50, 70)
        images.append({"id": orientation, "file_name": f"{orientation}.png", "width": size[0], "height": size[1]})
    categories = [{"id": at, "name": name} for at, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": rows, "categories": categories}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    source = open_detection(tmp_path, "train")
    make_item = DetectEvalTransform(model.preprocessing)
    loader = eval_loader(source, model.preprocessing, batch_size=1, make=make_item, collate=collate_ground_truth)
    found = evaluate(model, loader, model.preprocessing, torch.device("cpu")).results(source.category_ids)
    for orientation in (6, 3):
        (answer,) = model.predict(tmp_path / "train" / f"{orientation}.png")
        boxes = torch.tensor([row["bbox"] for row in found if row["image_id"] == orientation])
        boxes[:, 2:] += boxes[:, :2]
        assert len(boxes) == len(answer["boxes"]) > 0
        torch.testing.assert_close(boxes, answer["boxes"], rtol=0, atol=1e-2)


def test_the_thresholds_of_the_classes_are_the_default_and_are_saved(lively, tmp_path):
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    (everything,) = lively.predict(image, score_threshold=0.0)
    highest = max(everything["scores"].tolist())
    label = int(everything["labels"][0])
    thresholds: list[float | None] = [0.0] * lively.spec.num_classes
    thresholds[label] = min(0.999, highest)
    before = lively.score_thresholds
    try:
        lively.score_thresholds = tuple(thresholds)
        (found,) = lively.predict(image)
        save_weights(lively, tmp_path / "detector.safetensors")
    finally:
        lively.score_thresholds = before
    assert label not in found["labels"].tolist()
    assert len(found["labels"]) == int((everything["labels"] != label).sum())
    assert open_checkpoint(tmp_path / "detector.safetensors").score_thresholds == tuple(thresholds)
    (known,) = lively.predict(image)
    assert (known["scores"] > 0.05).all()
