"""Detectors with two stages, read from published checkpoints, against published boxes, masks and losses.

A published case is computed once for all tests of it. The largest two are slow; the third stands for them by default.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vectors import Golden, PublishedLosses

import globalvit as gv
from globalvit.detectors import mask_rcnn, rpn
from globalvit.detectors.assign import Sampler
from globalvit.detectors.boxes import decode
from globalvit.detectors.cascade import STAGES, best_classes, refine
from globalvit.detectors.found import limits_of, stacked
from globalvit.detectors.masks import paste
from globalvit.detectors.objects import Objects
from globalvit.detectors.regions import best_of, of_label

SIZE = (256, 320)
EVERYTHING = Sampler(number=10**6, positive_fraction=1.0)
PARAMS = {"gpvit_l1_mask_rcnn": 33518676, "gcvit_tiny_mask_rcnn": 48293934, "gcvit_tiny_cascade_mask_rcnn": 86129136}
MASK_RCNN = [
    pytest.param(("gpvit_det_l1_maskrcnn", "gpvit_l1_mask_rcnn"), marks=pytest.mark.slow),
    ("gcvit_det_tiny_maskrcnn", "gcvit_tiny_mask_rcnn"),
]
CASCADE = [pytest.param(("gcvit_det_tiny_cascade", "gcvit_tiny_cascade_mask_rcnn"), marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def run(request):
    """The model of a case with its weights, its raw maps and its proposals."""
    case, name = request.param
    golden = Golden(case)
    model = gv.create_model(name).eval()
    gv.load_weights(model, golden.state_dict())
    with torch.inference_mode():
        maps = model(golden.images())
        (proposals,) = model.rpn.propose(maps["rpn_logits"], maps["rpn_deltas"], [SIZE])
        yield SimpleNamespace(case=case, name=name, model=model, maps=maps, features=maps["features"], found=proposals)


both = partial(pytest.mark.parametrize, "run", indirect=True)


@both(argvalues=[*MASK_RCNN, *CASCADE])
def test_maps_and_proposals(golden, run):
    assert sum(parameter.numel() for parameter in run.model.parameters()) == PARAMS[run.name]
    published = golden(run.case)
    for level in range(5):
        published.check(f"fpn{level}", run.features[level])
        published.check(f"rpn_cls{level}", run.maps["rpn_logits"][level], 1e-5)
        published.check(f"rpn_reg{level}", run.maps["rpn_deltas"][level], 1e-5)
    published.rows("proposals", torch.cat([run.found.boxes, run.found.scores[:, None]], 1), fraction=0.998)


@both(argvalues=MASK_RCNN)
def test_boxes_and_masks_of_mask_rcnn(golden, run):
    published, roi = golden(run.case), run.model.roi
    rois = stored_rois(published, "")
    published.check("bbox_feats", roi.pool(run.features, [rois], 7))
    logits, deltas = roi.boxes(run.features, [rois])
    published.check("cls_score", logits)
    published.check("bbox_pred", deltas.flatten(1))
    for threshold in (0.05, 0.0):
        boxes = decode(rois[:, None], deltas, mask_rcnn.STDS)
        limits = limits_of([SIZE], rois.device)
        found = best_of(logits.softmax(1)[:, :-1], boxes, stacked([rois]), limits, threshold)
        check_detections(published, found.split()[0], threshold)
    boxes, labels = final(published)
    masks = roi.masks(run.features, [boxes])
    published.check("mask_pred_all_classes", masks)
    published.check("mask_logits_dets", of_label(masks, labels))
    check_pasted(published, of_label(masks, labels).sigmoid(), boxes)


@both(argvalues=MASK_RCNN)
def test_a_detector_finds_what_the_published_one_does(golden, run):
    (found,) = run.model.roi.detect(run.features, [run.found.boxes], [SIZE], 0.0)
    check_detections(golden(run.case), found, 0.0)
    assert found.masks.shape == (100, 28, 28)


@both(argvalues=CASCADE)
def test_every_stage_of_the_cascade(golden, run):
    published, roi = golden(run.case), run.model.roi
    rois = stored_rois(published, "stage0.")
    for number, stage in enumerate(STAGES):
        published.check(f"stage{number}.bbox_feats", roi.pool(run.features, [rois], 7))
        logits, deltas = roi.boxes(number, run.features, [rois])
        published.check(f"stage{number}.cls_score", logits)
        published.check(f"stage{number}.bbox_pred", deltas.flatten(1))
        (rois,) = refine([rois], best_classes(logits), deltas, stage, [SIZE])
        if number < 2 and published.is_full:
            stored = stored_rois(published, f"stage{number + 1}.")
            torch.testing.assert_close(rois, stored, rtol=0, atol=1e-3)
            rois = stored


@both(argvalues=CASCADE)
def test_detections_and_masks_of_the_cascade(golden, run):
    published, roi = golden(run.case), run.model.roi
    for threshold in (0.05, 0.0):
        (found,) = roi.detect(run.features, [run.found.boxes], [SIZE], threshold)
        check_detections(published, found, threshold)
    boxes, labels = final(published)
    masks = roi.masks(run.features, [boxes], labels)
    published.check("mask_prob_dets_avg", masks)
    check_pasted(published, masks, boxes)


@both(argvalues=[*MASK_RCNN, *CASCADE])
def test_losses_level_by_level(run):
    published = PublishedLosses(run.case.replace("_det_", "_loss_"))
    model, logits, deltas = run.model, run.maps["rpn_logits"], run.maps["rpn_deltas"]
    objects = [Objects(boxes=published.boxes, labels=published.labels, masks=published.masks())]
    draw_everything(model)
    choice = rpn.CASCADE.choice if "cascade" in run.name else rpn.MASK_RCNN.choice
    (proposals,) = model.rpn.propose(logits, deltas, [SIZE], choice)
    ours = model.rpn.losses(logits, deltas, objects, [SIZE])
    ours |= model.roi.losses(run.features, [proposals.boxes], objects, [SIZE])
    published.check(ours)


def stored_rois(published, prefix):
    """The regions that the published heads looked at; those of the first stage are the proposals."""
    name = f"{prefix}rois"
    rows = published.arrays[name][:, 1:] if name in published.arrays else published.arrays["proposals"][:, :4]
    return torch.from_numpy(np.ascontiguousarray(rows))


def final(published):
    """Boxes and labels that the published masks belong to."""
    return torch.from_numpy(published.arrays["dets_thr0.0"][:, :4]), torch.from_numpy(published.arrays["labels_thr0.0"])


def check_detections(published, found, threshold):
    rows = torch.cat([found.boxes, found.scores[:, None]], 1)
    kinds = published.arrays[f"labels_thr{threshold}"], found.labels
    nearest = published.rows(f"dets_thr{threshold}", rows, kinds=kinds)
    scores = published.arrays[f"dets_thr{threshold}"][:, 4]
    assert np.abs(found.scores.numpy()[nearest] - scores).max(initial=0) <= 1e-4


def check_pasted(published, masks, boxes):
    pasted = paste(masks, boxes, SIZE)
    assert pasted.flatten(1).sum(1).tolist() == published.arrays["pasted_mask_area"].tolist()
    if published.is_full:
        packed = np.packbits(pasted[:10].flatten(1).numpy(), axis=1)
        assert (packed == published.arrays["pasted_masks_first10_packed"]).all()


def draw_everything(model):
    """No sampling, as in the published losses."""
    model.rpn.how = replace(model.rpn.how, sampler=EVERYTHING)
    if isinstance(model.roi.learning, list):
        model.roi.learning = [replace(one, sampler=EVERYTHING) for one in model.roi.learning]
    else:
        model.roi.learning = replace(model.roi.learning, sampler=EVERYTHING)
