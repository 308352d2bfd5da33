"""RetinaNet: published outputs and losses, and what published vectors do not reach."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss
from vectors import Golden, PublishedLosses

import globalvit as gv
from globalvit.detectors import retinanet
from globalvit.detectors.anchors import flatten
from globalvit.detectors.boxes import LARGEST_LOG_SCALE, encode
from globalvit.detectors.objects import Objects
from globalvit.detectors.retinanet import RetinaNetHead, focal_loss

CASE, NAME, SIZE = "gpvit_det_l1_retinanet", "gpvit_l1_retinanet", (256, 320)
STRIDES = (8, 16, 32, 64, 128)
CLASSES = 3
EMPTY = Objects(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


@pytest.fixture(scope="module")
def run():
    """The published detector, its weights through the loader, and its raw maps."""
    vectors = Golden(CASE)
    model = gv.create_model(NAME).eval()
    report = str(gv.load_weights(model, vectors.state_dict()))
    with torch.no_grad():
        backbone, maps = model.backbone(vectors.images()), model(vectors.images())
    return SimpleNamespace(model=model, report=report, backbone=backbone, maps=maps)


def test_every_published_map(golden, run):
    published = golden(CASE)
    assert "fresh" not in run.report
    assert "Left out" not in run.report
    for level, x in enumerate(run.backbone):
        published.check(f"backbone{level}", x)
    for level in range(5):
        published.check(f"fpn{level}", run.maps["features"][level])
        published.check(f"retina_cls{level}", run.maps["logits"][level])
        published.check(f"retina_reg{level}", run.maps["deltas"][level])


@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_published_detections(golden, run, threshold):
    published = golden(CASE)
    (found,) = run.model.dense.detect(run.maps["logits"], run.maps["deltas"], [SIZE], threshold)
    kinds = published.arrays[f"labels_thr{threshold}"], found.labels
    nearest = published.rows(f"dets_thr{threshold}", torch.cat([found.boxes, found.scores[:, None]], 1), kinds=kinds)
    scores = torch.from_numpy(published.arrays[f"dets_thr{threshold}"][:, 4])
    torch.testing.assert_close(found.scores[nearest], scores, rtol=0, atol=1e-4)


def test_published_losses_level_by_level(run):
    published = PublishedLosses("gpvit_loss_l1_retinanet")
    objects = [Objects(boxes=published.boxes, labels=published.labels)]
    published.check(run.model.dense.losses(run.maps["logits"], run.maps["deltas"], objects))


@pytest.fixture
def head():
    """A small head on maps of 8 channels."""
    built = RetinaNetHead((8,) * 5, STRIDES, CLASSES)
    built.init_weights()
    return built.eval()


def raw(logit=-20.0, batch=1, height=128, width=192):
    """Maps of a padded image that say nothing: every logit the same, no box moved."""
    sides = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    logits = [torch.full((batch, 9 * CLASSES, *side), logit) for side in sides]
    return logits, [torch.zeros(batch, 36, *side) for side in sides]


def say(logits, level, anchor, label, row, column, value, image=0):
    logits[level][image, anchor * CLASSES + label, row, column] = value


def test_logits_are_read_anchor_by_anchor_class_by_class(head):
    logits, deltas = raw()
    say(logits, 1, 4, 2, 3, 5, 3.0)
    (found,) = head.detect(logits, deltas, [(128, 192)], 0.05)
    anchor = head.anchors.of_level(1, 8, 12).view(8, 12, 9, 4)[3, 5, 4]
    assert found.labels.tolist() == [2]
    torch.testing.assert_close(found.boxes[0], anchor)
    torch.testing.assert_close(found.scores, torch.tensor([3.0]).sigmoid())


def test_a_score_has_to_exceed_the_threshold(head):
    logits, deltas = raw()
    say(logits, 2, 0, 0, 1, 1, 0.0)
    size = (128, 192)
    assert len(head.detect(logits, deltas, [size], 0.49)[0]) == 1
    assert len(head.detect(logits, deltas, [size], 0.5)[0]) == 0


def test_at_most_a_thousand_pairs_of_a_level_are_looked_at(head, monkeypatch):
    monkeypatch.setattr(retinanet, "suppress", lambda found, **_: found)
    logits, deltas = raw()
    for level in range(2):
        logits[level] = torch.randn_like(logits[level])
    (found,) = head.detect(logits, deltas, [(128, 192)], 0.05)
    best = [x.sigmoid().flatten().sort(descending=True).values[:1000] for x in logits[:2]]
    torch.testing.assert_close(found.scores, torch.cat(best))


def test_at_most_a_hundred_detections_an_image_and_the_best_ones(head):
    logits, deltas = raw()
    logits[0] = torch.randn_like(logits[0]) * 3
    (found,) = head.detect(logits, deltas, [(128, 192)], 0.05)
    assert len(found) == 100
    assert (found.scores.diff() <= 0).all()
    torch.testing.assert_close(found.scores[0], logits[0].max().sigmoid())


def test_classes_do_not_suppress_each_other_but_levels_do(head):
    logits, deltas = raw()
    # A box of stride 8 is moved onto one of stride 16.
    say(logits, 1, 4, 0, 2, 2, 2.0)
    say(logits, 1, 4, 1, 2, 2, 1.0)
    say(logits, 0, 4, 0, 4, 4, 3.0)
    boxes = head.anchors.of_maps(logits)
    wide = boxes[1].view(8, 12, 9, 4)[2, 2, 4]
    narrow = boxes[0].view(16, 24, 9, 4)[4, 4, 4]
    deltas[0][0, 16:20, 4, 4] = encode(narrow[None], wide[None])[0]
    (found,) = head.detect(logits, deltas, [(128, 192)], 0.05)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0]).sigmoid())


@pytest.mark.parametrize("sign", [-1, 1])
def test_growth_is_bounded_on_both_sides(head, sign):
    logits, deltas = raw(height=2048, width=2048)
    say(logits, 0, 4, 0, 128, 128, 3.0)
    deltas[0][0, 18:20, 128, 128] = sign * 99.0
    (found,) = head.detect(logits, deltas, [(10**5, 10**5)], 0.05)
    anchor = head.anchors.of_level(0, 256, 256).view(256, 256, 9, 4)[128, 128, 4]
    half = (anchor[2:] - anchor[:2]) * torch.tensor(sign * LARGEST_LOG_SCALE).exp() / 2
    # The largest box begins left of the image and above it, and is cut there.
    start, end = (1024 - half).clamp(min=0), 1024 + half
    torch.testing.assert_close(found.boxes[0], torch.cat([start, end]), rtol=1e-5, atol=1e-3)


def test_boxes_are_cut_to_each_image_without_its_padding(head):
    logits, deltas = raw(batch=2)
    for image in range(2):
        say(logits, 3, 4, 0, 1, 1, 3.0, image)
    whole, cut = head.detect(logits, deltas, [(128, 192), (70, 80)], 0.05)
    assert whole.boxes[0].tolist() != cut.boxes[0].tolist()
    assert cut.boxes[0, 2:].tolist() == [80, 70]
    assert cut.boxes[0, :2].tolist() == whole.boxes[0, :2].tolist()


def test_images_of_a_batch_do_not_mix(head):
    maps = [torch.randn(3, 8, -(-128 // stride), -(-96 // stride)) * 20 for stride in STRIDES]
    logits, deltas = head(maps)
    together = head.detect(logits, deltas, [(128, 96)] * 3, 0.005)
    for image in range(3):
        own = slice(image, image + 1)
        for ours, x in zip([*logits, *deltas], chain(*head([x[own] for x in maps])), strict=True):
            torch.testing.assert_close(x, ours[own], rtol=1e-5, atol=1e-5)
        (alone,) = head.detect([x[own] for x in logits], [x[own] for x in deltas], [(128, 96)], 0.005)
        assert len(alone) > 0
        assert torch.equal(alone.labels, together[image].labels)
        assert torch.equal(alone.boxes, together[image].boxes)


def test_focal_loss_is_torchvisions():
    logits, is_class = 10 * torch.randn(50, 7), torch.rand(50, 7) > 0.7
    expected = sigmoid_focal_loss(logits, is_class.float(), alpha=0.25, gamma=2)
    torch.testing.assert_close(focal_loss(logits, is_class), expected, rtol=1e-4, atol=1e-6)


def test_losses_of_a_hand_worked_case(head):
    logits, deltas = raw()
    anchors = head.anchors.of_level(2, 4, 6)
    box = anchors.view(4, 6, 9, 4)[2, 3, 4]
    losses = head.losses(logits, deltas, [Objects(boxes=box[None], labels=torch.tensor([1]))])
    # Of all logits of −20 only the positives' own class costs: 0.25 · 20 each, whatever their number divides.
    torch.testing.assert_close(losses["loss_cls"].sum(), torch.tensor(5.0), rtol=1e-4, atol=0)
    deltas[2].fill_(0.5)
    positives, off = count_positives(head, logits, box)
    again = head.losses(logits, deltas, [Objects(boxes=box[None], labels=torch.tensor([1]))])
    torch.testing.assert_close(again["loss_bbox"][2], off.sum() / positives)


def count_positives(head, logits, box):
    """How many anchors learn `box`, and how far each coordinate of stride 32's would be off at deltas of 0.5."""
    anchors = head.anchors.of_maps(logits)
    assigned = retinanet.ASSIGNER(torch.cat(anchors), box[None])
    own = assigned.split([len(one) for one in anchors])[2] >= 0
    targets = encode(anchors[2][own], box.expand(int(own.sum()), 4))
    return (assigned >= 0).sum(), (targets - 0.5).abs()


def test_anchors_between_the_thresholds_cost_nothing(head):
    logits, deltas = raw()
    box = head.anchors.of_level(2, 4, 6).view(4, 6, 9, 4)[2, 3, 4]
    objects = [Objects(boxes=box[None], labels=torch.tensor([1]))]
    assigned = retinanet.ASSIGNER(torch.cat(head.anchors.of_maps(logits)), box[None])
    ignored = (assigned == retinanet.IGNORED).nonzero()[:, 0]
    assert len(ignored) > 0
    before = head.losses(logits, deltas, objects)
    sides = [x.shape[-2:] for x in logits]
    flat = torch.cat([flatten(x, 9) for x in logits], 1)
    flat[0, ignored] = 5.0
    raised = [
        part.view(1, *side, 9, CLASSES).permute(0, 3, 4, 1, 2).reshape(1, -1, *side)
        for part, side in zip(flat.split([9 * h * w for h, w in sides], 1), sides, strict=True)
    ]
    after = head.losses(raised, deltas, objects)
    torch.testing.assert_close(after["loss_cls"], before["loss_cls"])


def test_a_batch_is_divided_by_the_positives_of_all_its_images(head):
    logits, deltas = raw(logit=-1.0, batch=2)
    boxes = [torch.tensor([[10.0, 10, 70, 60]]), torch.tensor([[20.0, 0, 150, 120], [90, 20, 130, 60]])]
    objects = [Objects(boxes=one, labels=torch.zeros(len(one), dtype=torch.int64)) for one in boxes]
    counts = []

    def keep(count):
        counts.append(int(count))
        return count.new_tensor(1.0, dtype=torch.float32)

    together = head.losses(logits, deltas, objects)
    sums = [
        head.losses([x[i : i + 1] for x in logits], [x[i : i + 1] for x in deltas], [objects[i]], keep)
        for i in range(2)
    ]
    for name, value in together.items():
        torch.testing.assert_close(value, (sums[0][name] + sums[1][name]) / sum(counts))


def test_nothing_labeled_is_an_ordinary_case(head):
    maps = [torch.randn(2, 8, -(-64 // stride), -(-64 // stride)) for stride in STRIDES]
    losses = head.losses(*head(maps), [EMPTY, EMPTY])
    assert losses["loss_bbox"].tolist() == [0.0] * 5
    assert losses["loss_cls"].isfinite().all()
    sum(value.sum() for value in losses.values()).backward()
    assert head.deltas.weight.grad is not None
    assert len(head.detect(*raw(), [(128, 192)], 0.05)[0]) == 0


def test_starts_at_a_probability_of_a_hundredth(head):
    logits, deltas = head([torch.zeros(1, 8, 4, 4)] * 5)
    torch.testing.assert_close(logits[0].sigmoid(), torch.full_like(logits[0], 0.01))
    assert not deltas[0].any()


def test_maps_must_have_equal_channels():
    with pytest.raises(ValueError, match=r"maps of \(8, 16\) channels came"):
        RetinaNetHead((8, 16), (8, 16), 3)
