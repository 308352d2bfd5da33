"""Which regions are learned and which become detections."""

import pytest
import torch

from globalvit.detectors.assign import Assigner, Sampler
from globalvit.detectors.found import limits_of, stacked
from globalvit.detectors.objects import Objects, own_count
from globalvit.detectors.regions import (
    Drawn,
    Learning,
    best_of,
    class_loss,
    count_drawn,
    mask_loss,
    mask_targets,
    positive_rows,
)

K = 3
EVERYTHING = Sampler(number=10**6, positive_fraction=1.0)
LEARNING = Learning(assigner=Assigner(positive=0.5, negative=0.5, lowest_match=0.5), sampler=EVERYTHING, num_classes=K)
NONE = torch.zeros(0, 4)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def objects(*rows, labels=(), masks=None):
    return Objects(boxes=boxes(*rows), labels=torch.tensor(labels, dtype=torch.int64), masks=masks)


def test_drawn_regions_are_the_objects_themselves_then_proposals():
    found = objects((0, 0, 10, 10), (50, 50, 60, 60), labels=(2, 0))
    (drawn,) = LEARNING.draw([boxes((0, 0, 10, 9), (30, 30, 40, 40), (50, 50, 60, 61))], [found])
    assert drawn.labels.tolist() == [2, 0, 2, 0, K]
    assert drawn.objects.tolist() == [0, 1, 0, 1]
    assert drawn.is_given.tolist() == [True, True, False, False, False]
    assert drawn.positives.tolist() == [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9], [50, 50, 60, 61]]
    assert drawn.boxes[4].tolist() == [30, 30, 40, 40]
    assert positive_rows([drawn]).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize(("proposals", "found"), [(NONE, objects()), (boxes((0, 0, 4, 4)), objects())])
def test_images_without_objects_give_background(proposals, found):
    (drawn,) = LEARNING.draw([proposals], [found])
    assert drawn.labels.tolist() == [K] * len(proposals)
    assert drawn.positives.shape == (0, 4)


def test_images_without_proposals_give_their_objects():
    (drawn,) = LEARNING.draw([NONE], [objects((0, 0, 10, 10), labels=(1,))])
    assert drawn.labels.tolist() == [1]


def test_class_loss_is_the_mean_over_the_regions_drawn():
    drawn = LEARNING.draw([boxes((0, 0, 4, 4)), NONE], [objects(), objects((0, 0, 10, 10), labels=(1,))])
    logits = torch.randn(2, K + 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([K, 1]))
    torch.testing.assert_close(class_loss(logits, drawn, own_count(count_drawn(drawn))), expected)


def half_masks(count, side=40):
    """Masks whose left half is set."""
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    masks[:, :, : side // 2] = True
    return masks


def drawn_from(positives, owners, labels):
    count = len(positives)
    return Drawn(
        boxes=torch.cat([boxes(*positives), boxes((0, 0, 1, 1))]),
        labels=torch.tensor([*labels, K]),
        objects=torch.tensor(owners),
        is_given=torch.zeros(count + 1, dtype=torch.bool),
    )


def test_mask_targets_are_the_part_inside_the_box():
    # Object 20 stands in the second lot of masks that is worked on.
    masks = half_masks(21)
    masks[20] = ~masks[20]
    drawn = drawn_from([(0, 0, 40, 40), (10, 0, 20, 40), (0, 0, 40, 20)], [0, 3, 20], [0, 1, 2])
    targets = mask_targets(drawn, objects(*[(0, 0, 40, 40)] * 21, labels=[0] * 21, masks=masks))
    assert targets[0].mean() == 0.5
    assert targets[0, :, :14].all()
    assert targets[1].all()
    assert targets[2, :, 14:].all()
    assert targets[2].mean() == 0.5


def test_mask_loss_looks_at_the_regions_own_class_only():
    found = objects((0, 0, 40, 40), labels=(1,), masks=half_masks(1))
    drawn = drawn_from([(0, 0, 40, 40)], [0], [1])
    logits = torch.randn(1, K, 28, 28)
    logits[:, 1] = 20 * mask_targets(drawn, found) - 10
    assert mask_loss(logits, [drawn], [found], own_count) < 1e-4
    logits[:, 1] *= -1
    torch.testing.assert_close(mask_loss(logits, [drawn], [found], own_count), torch.tensor(10.0), rtol=1e-4, atol=0)


def test_mask_loss_of_nothing_is_nothing():
    (drawn,) = LEARNING.draw([boxes((0, 0, 4, 4))], [objects()])
    found = objects(masks=torch.zeros(0, 40, 40, dtype=torch.bool))
    assert mask_loss(torch.zeros(0, K, 28, 28), [drawn], [found], own_count) == 0


def test_masks_are_needed():
    with pytest.raises(ValueError, match="the objects have no masks; this detector learns masks: give a data set that"):
        mask_targets(drawn_from([(0, 0, 4, 4)], [0], [1]), objects((0, 0, 4, 4), labels=(1,)))


def detect(scores, found, regions, sizes, threshold):
    limits = limits_of(sizes, scores.device)
    return best_of(scores, found, stacked(regions), limits, threshold).split()


def of_every_class(*rows):
    return boxes(*rows)[:, None].expand(-1, K, -1)


def test_scores_have_to_exceed_the_threshold():
    scores = torch.tensor([[0.05, 0.0501, 0.04]])
    (found,) = detect(scores, of_every_class((0, 0, 9, 9)), [NONE.new_zeros(1, 4)], [(20, 20)], 0.05)
    assert found.labels.tolist() == [1]
    (everything,) = detect(scores, of_every_class((0, 0, 9, 9)), [NONE.new_zeros(1, 4)], [(20, 20)], 0.0)
    assert everything.labels.tolist() == [1, 0, 2]


def test_overlapping_boxes_are_suppressed_within_their_class_only():
    scores = torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.7, 0.0]])
    (found,) = detect(scores, of_every_class((0, 0, 9, 9), (0, 0, 9, 8)), [torch.zeros(2, 4)], [(20, 20)], 0.05)
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])


def test_at_most_a_hundred_are_found_and_boxes_are_cut():
    rows = [(20 * i, 0, 20 * i + 10, 50) for i in range(120)]
    scores = torch.linspace(0.2, 0.9, 120)[:, None].expand(-1, K) * torch.tensor([1, 0, 0])
    (found,) = detect(scores, of_every_class(*rows), [torch.zeros(120, 4)], [(30, 2390)], 0.05)
    assert len(found) == 100
    assert found.scores[0] == scores.max()
    assert found.boxes[:, 3].max() == 30


def test_no_regions_no_detections():
    first, second = detect(torch.zeros(0, K), torch.zeros(0, K, 4), [NONE, NONE], [(20, 20)] * 2, 0.05)
    assert len(first) == len(second) == 0
    assert first.boxes.shape == (0, 4)
