"""What a segmenter learns from and answers, whatever its images come as and whatever comes with them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import globalvit as gv
from globalvit.data.common.transforms import FitTransform
from globalvit.heads.fcn import FCNHead
from globalvit.heads.segformer import SegFormerHead
from globalvit.heads.upernet import UPerNetHead
from globalvit.metrics.miou import IGNORE
from globalvit.models.gcvit import GCViT
from globalvit.models.gpvit import GPViT
from globalvit.models.layers import resize_bilinear
from globalvit.models.variants import VARIANTS, ModelSpec
from globalvit.tasks import segment_loss
from globalvit.tasks.segment import Segmenter, SegmentInference
from globalvit.tasks.segment_loss import SegmentLoss, pixel_loss

CLASSES = ("sky", "road", "car", "cat")
WINDOW = (4, 4, 4, 2)
SIZES = [(32, 32), (33, 47), (64, 97)]


def backbone_of(family):
    if family == "gcvit":
        toy = replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16, window=WINDOW)
        return GCViT(toy.segmentation_form())
    return GPViT(replace(VARIANTS["gpvit_l1"], width=24).segmentation_form())


def segmenter(family="gcvit", head="upernet"):
    backbone = backbone_of(family)
    backbone.init_weights()
    maps = (backbone.channels, backbone.strides, len(CLASSES))
    made = (UPerNetHead if head == "upernet" else SegFormerHead)(*maps, width=16)
    auxiliary = FCNHead(*maps, index=2, width=16) if head == "upernet" else None
    spec = ModelSpec(model=f"gcvit_xxtiny_{head}", num_classes=len(CLASSES))
    model = Segmenter(spec, backbone, made, FitTransform(short_side=48), CLASSES, auxiliary_head=auxiliary)
    # Livelier than fresh weights, so that answers differ from pixel to pixel.
    nn.init.normal_(made.classifier.weight)
    return model


@pytest.fixture(params=["gcvit", "gpvit"])
def model(request):
    return segmenter(request.param)


def batch(size=(64, 48), images=2):
    labels = torch.randint(0, len(CLASSES), (images, *size)).to(torch.uint8)
    labels[:, :4] = IGNORE
    return {"images": torch.randn(images, 3, *size), "labels": labels}


def make_image(seed, size=(60, 50)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("head", ["upernet", "segformer"])
def test_logits_have_the_images_size_and_images_do_not_mix(model, head, size):
    model = segmenter(model.backbone.__class__.__name__.lower(), head).eval()
    images = torch.randn(3, 3, *size)
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (3, len(CLASSES), *size)
        for i in range(3):
            torch.testing.assert_close(model(images[i : i + 1])[0], logits[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_odd_sizes_train_and_are_answered(model, size, mode):
    for images in (1, 2):
        losses = model.train().losses(batch(size, images))
        losses["loss"].backward()
        assert losses["loss"].isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model.inference = SegmentInference(mode=mode, crop=32, stride=20)
    (answer,) = model.predict(torch.randn(1, 3, *size))
    assert answer["mask"].shape == size


def test_losses_are_means_over_pixels_that_count():
    model, data = segmenter().eval(), batch()
    losses = model.losses(data)
    labels = data["labels"].long()
    maps = model.backbone(data["images"])

    def mean(logits):
        return F.cross_entropy(resize_bilinear(logits, 64, 48), labels, ignore_index=IGNORE)

    torch.testing.assert_close(losses["loss_head"], mean(model.head(maps)))
    torch.testing.assert_close(losses["loss_aux"], mean(model.auxiliary_head(maps)))
    torch.testing.assert_close(losses["loss"], losses["loss_head"] + 0.4 * losses["loss_aux"])
    model.loss_options = SegmentLoss(aux_weight=2.0)
    torch.testing.assert_close(model.losses(data)["loss"], losses["loss_head"] + 2.0 * losses["loss_aux"])
    assert set(segmenter(head="segformer").losses(data)) == {"loss", "loss_head"}


def test_a_batch_that_is_all_ignored_has_no_loss_and_defined_gradients(model):
    data = batch()
    data["labels"].fill_(IGNORE)
    losses = model.losses(data)
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0, 0.0]
    losses["loss"].backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_every_parameter_learns(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval().losses(batch())["loss"].backward()
    # Keys' biases are seen by no softmax, the mixer's last bias by no norm.
    dead = ("key.bias", "mix.tokens.fc2.bias")
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith(dead), name


def test_class_weights_make_a_weighted_mean():
    logits, labels = torch.randn(2, 4, 5, 6), batch((5, 6))["labels"]
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5])
    expected = F.cross_entropy(logits, labels.long(), weights, ignore_index=IGNORE)
    torch.testing.assert_close(pixel_loss(logits, labels, weights), expected)
    model = segmenter()
    model.loss_options = SegmentLoss(class_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="class_weights: expected one for each of 4 classes, got 2"):
        model.losses(batch())


def test_hard_pixels_are_those_under_the_probability_and_the_hardest(monkeypatch):
    logits = torch.zeros(1, 2, 1, 6)
    logits[0, 0] = torch.tensor([4.0, 3.0, 2.0, 0.0, -1.0, 9.0])
    labels = torch.tensor([[[0, 0, 0, 0, 0, IGNORE]]], dtype=torch.uint8)
    each = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").flatten()
    # Probabilities .98, .95, .88, .5, .27: two are under .7; four are kept where as many are asked for.
    for least, kept in ((1, [3, 4]), (4, [1, 2, 3, 4]), (6, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])):
        monkeypatch.setattr(segment_loss, "MIN_HARD", least)
        torch.testing.assert_close(pixel_loss(logits, labels, ohem=True), each[kept].mean())
    assert pixel_loss(logits, torch.full_like(labels, IGNORE), ohem=True) == 0


@pytest.mark.parametrize("ohem", [False, True])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 3.0, 0.5])])
def test_uneven_passes_learn_as_one_batch(monkeypatch, in_passes, assert_same, ohem, weights):
    monkeypatch.setattr(segment_loss, "MIN_HARD", 40)
    logits, labels = 3 * torch.randn(4, 4, 5, 6), batch((5, 6), 4)["labels"]
    labels[0, :, 2:] = IGNORE
    labels[1] = IGNORE
    logits.requires_grad_()

    def loss_of(part):
        return pixel_loss(logits[part], labels[part], weights, ohem=ohem)

    whole = loss_of(slice(4))
    expected = whole.detach(), torch.autograd.grad(whole, [logits])
    for parts in ((slice(2), slice(2, 4)), (slice(1), slice(1, 2), slice(2, 4))):
        assert_same(in_passes(loss_of, parts, [logits]), expected)


@pytest.mark.parametrize("ohem", [False, True])
def test_passes_of_a_segmenter_add_up_to_the_whole_batch(in_passes, assert_same, ohem):
    model, whole = segmenter("gcvit").eval(), batch(images=3)
    whole["labels"][0, :, 5:] = IGNORE
    model.loss_options = SegmentLoss(class_weights=(1.0, 2.0, 0.5, 1.0), ohem=ohem)
    parameters = list(model.parameters())

    def loss_of(part):
        return model.losses(part)["loss"]

    loss = loss_of(whole)
    expected = loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)
    parts = [{name: value[at] for name, value in whole.items()} for at in (slice(1), slice(1, 3))]
    assert_same(in_passes(loss_of, parts, parameters, model.count), expected)


def test_labels_above_the_classes_are_refused(model):
    data = batch()
    data["labels"][1, 30, 30] = 9
    with pytest.raises(ValueError, match="expected labels from 0 to 3, or 255 for pixels to ignore, got 9; correct"):
        model.losses(data)


def test_a_few_steps_halve_the_loss_and_a_seed_repeats_them():
    def train(steps):
        torch.manual_seed(3)
        model, data = segmenter("gpvit"), batch((32, 32))
        data["images"] = F.avg_pool2d(data["images"], 9, 1, 4) * 9
        data["labels"] = (data["images"][:, 0] > 0).to(torch.uint8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(steps):
            loss = model.losses(data)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    first = train(25)
    assert first[-1] < first[0] / 2
    assert train(3) == first[:3]


def test_bf16_stays_near_float32(model):
    images = torch.randn(2, 3, 64, 48)
    with torch.inference_mode():
        reference = model.eval()(images)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
    # bfloat16 keeps 8 bits, and rounding adds up over some forty layers.
    assert float((logits.float() - reference).abs().max() / reference.abs().max()) < 0.08


def by_formula(model, image_CHW, size, options):
    """The labels as the options' formulas say, everything held at once."""
    total = 0
    for scale in options.scales:
        sides = [max(32, round(side * scale)) for side in image_CHW.shape[-2:]]
        same = sides == list(image_CHW.shape[-2:])
        resized = image_CHW[None] if same else F.interpolate(image_CHW[None], sides, mode="bilinear", antialias=True)
        for turn in (False, True)[: 1 + options.flip]:
            logits = model(resized.flip(-1)).flip(-1) if turn else model(resized)
            total = total + resize_bilinear(logits, *size).softmax(1)
    return total[0].argmax(0).to(torch.uint8)


@pytest.mark.parametrize(
    "options",
    [SegmentInference(), SegmentInference(flip=True), SegmentInference(scales=(0.5, 1.0, 1.75), flip=True)],
    ids=["whole", "flip", "scales and flip"],
)
def test_evaluation_scores_labels_in_their_own_size(model, options):
    model.eval().inference = options
    images = [torch.randn(3, 64, 48), torch.randn(3, 33, 50), torch.randn(3, 64, 48)]
    labels = [torch.randint(0, 4, size).to(torch.uint8) for size in ((90, 70), (33, 50), (20, 31))]
    metric, expected = model.metric(), model.metric()
    with torch.inference_mode():
        model.evaluate({"images": images, "labels": labels}, metric)
        for image, label in zip(images, labels, strict=True):
            expected.update(by_formula(model, image, label.shape, options), label)
    difference = (metric.confusion - expected.confusion).abs().sum()
    assert difference <= 4, difference
    assert metric.count == 3


def test_windows_as_large_as_the_image_answer_as_the_whole(model):
    image = torch.randn(3, 64, 48)
    (expected,) = model.predict(image)
    model.inference = SegmentInference(mode="slide", crop=64, stride=40)
    assert torch.equal(model.predict(image)[0]["mask"], expected["mask"])
    model.inference = SegmentInference(mode="slide", crop=32, stride=20)
    assert not torch.equal(model.predict(image)[0]["mask"], expected["mask"])


def test_an_answer_does_not_depend_on_its_neighbors(model):
    tensors = [torch.randn(3, *size) for size in ((32, 32), (48, 33), (32, 32), (64, 40), (48, 33))]
    together = model.predict(tensors, batch_size=2)
    for tensor, answer in zip(tensors, together, strict=True):
        agreed = (answer["mask"] == model.predict([tensor])[0]["mask"]).float().mean()
        assert agreed > 0.999


def test_predict_takes_paths_images_and_arrays_and_answers_in_their_size(tmp_path):
    model, image = segmenter(), make_image(0)
    image.save(tmp_path / "one.png")
    (expected,) = model.predict(image)
    assert expected["mask"].shape == (50, 60)
    assert expected["mask"].dtype == torch.uint8
    assert expected["names"] == CLASSES
    assert sum(expected["areas"].values()) == pytest.approx(1.0)
    assert list(expected["areas"].values()) == sorted(expected["areas"].values(), reverse=True)
    first = next(iter(expected["areas"]))
    assert expected["areas"][first] == pytest.approx(float((expected["mask"] == CLASSES.index(first)).float().mean()))
    for form in (tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(image)):
        assert torch.equal(model.predict(form)[0]["mask"], expected["mask"])
    fitted = model.preprocessing(image)
    assert model.predict(fitted)[0]["mask"].shape == fitted.shape[1:]


def test_predict_leaves_the_mode_as_it_was():
    model = segmenter().train()
    model.predict(make_image(0))
    assert model.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SegmentInference(mode="window"), "mode='window' must be 'whole' or 'slide'"),
        (lambda: SegmentInference(crop=16), "crop=16 must be 32 pixels or more, and stride=341 from 1 to the crop"),
        (lambda: SegmentInference(crop=64, stride=65), "crop=64 must be .* and stride=65 from 1 to the crop"),
        (lambda: SegmentInference(scales=()), r"scales=\(\) must be one factor or more, all above 0"),
        (lambda: SegmentLoss(aux_weight=-1.0), "aux_weight=-1.0 must be 0 or more"),
        (lambda: SegmentLoss(class_weights=(0.0, 0.0)), r"class_weights=\(0.0, 0.0\) must be 0 or more, one of them"),
        (lambda: gv.create_model("gpvit_l1_segformer", num_classes=256), "num_classes=256 must be at most 255: labels"),
    ],
)
def test_values_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MEMORY = """
import resource, sys
sys.path[:0] = sys.argv[1:]
import torch
torch.set_num_threads(1)
import test_segment
test_segment.CLASSES = tuple(map(str, range(150)))
model = test_segment.segmenter("gcvit", "segformer")
model.inference = test_segment.SegmentInference(mode="slide", crop=512, stride=341)
image = torch.randn(3, 2000, 3000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
(answer,) = model.predict(image)
assert answer["mask"].shape == (2000, 3000)
print((peak() - before) / 1024)
"""


@pytest.mark.slow
def test_a_large_image_is_answered_in_bounded_memory():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(here)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    # Its logits for 150 classes would take 3,433 MiB.
    print(f"{float(done.stdout):.0f} MiB above the model")
    assert float(done.stdout) < 700
