"""Average precision: what pycocotools says of the same results, on one process and on many."""

import copy
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from globalvit.metrics.coco_ap import CocoAP

CLASSES = ("cat", "dog", "unseen", "eel")
# With gaps, and not in the order of the labels' names.
CATEGORY_IDS = (2, 7, 11, 90)
FIGURES = [
    *("ap_{}", "ap_{}_50", "ap_{}_75", "ap_{}_s", "ap_{}_m", "ap_{}_l"),
    *("ar_{}_1", "ar_{}_10", "ar_{}_100", "ar_{}_s", "ar_{}_m", "ar_{}_l"),
]
NUCLEI = Path(__file__).parents[3] / "shared" / "data" / "nuclei" / "annotations" / "instances_val.json"


def ellipses(boxes, size):
    """bool (N, H, W): the ellipse in every box."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    bitmaps = [
        ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25
        for x1, y1, x2, y2 in boxes
    ]
    return np.array(bitmaps, dtype=bool).reshape(-1, *size)


def compressed(bitmaps):
    return [tools.encode(np.asfortranarray(np.uint8(bitmap))) for bitmap in bitmaps]


def random_boxes(random, total, size):
    sides = random.uniform(4, 190, (total, 2))
    corners = random.uniform(0, 1, (total, 2)) * (np.array(size[::-1]) - 4)
    return np.concatenate([corners, np.minimum(corners + sides, size[::-1])], axis=1).round(2)


def ground_truth(random, image_id, total):
    """Objects of one image, one in five of them a crowd; none of class 2."""
    size = (int(random.integers(120, 200)), int(random.integers(120, 220)))
    boxes = random_boxes(random, total, size)
    bitmaps = ellipses(boxes, size)
    return {
        "image_id": image_id,
        "size": size,
        "boxes": boxes,
        "labels": random.choice([0, 1, 3], total),
        "crowd": random.random(total) < 0.2,
        "areas": bitmaps.sum((1, 2)).astype(float),
        "masks": compressed(bitmaps),
    }


def perturbed(random, target, noise=0.08):
    """Detections near the objects, some twice, some of another class, and some of nothing; scores often equal."""
    size, boxes = target["size"], np.repeat(target["boxes"], 2, axis=0)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = np.concatenate([boxes + random.normal(0, noise, boxes.shape) * sides, random_boxes(random, 3, size)])
    boxes = np.clip(boxes, 0, size[::-1] * 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.concatenate([np.repeat(target["labels"], 2), random.integers(0, 4, 3)])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "scores": torch.tensor(random.integers(1, 20, len(boxes)) / 20, dtype=torch.float32),
        "labels": torch.tensor(np.where(random.random(len(labels)) < 0.1, 0, labels)),
        "masks": torch.from_numpy(ellipses(boxes, size)),
    }


def made_set(seed):
    """Predictions and annotations of nine images: one without objects, one without detections."""
    random = np.random.default_rng(seed)
    annotations = [ground_truth(random, 10 * (9 - at), 0 if at == 2 else 6) for at in range(9)]
    predictions = [perturbed(random, target) for target in annotations]
    predictions[4] = {key: value[:0] for key, value in predictions[4].items()}
    return predictions, annotations


def scored(predictions, annotations, **options):
    metric = CocoAP(CLASSES, **options)
    metric.update(predictions, annotations)
    return metric


def as_json(annotations, names=CLASSES, category_ids=CATEGORY_IDS):
    """The ground target as a COCO file holds it."""
    rows = []
    for target in annotations:
        for box, label, crowd, area, mask in zip(
            *(target[key] for key in ("boxes", "labels", "crowd", "areas", "masks")), strict=True
        ):
            row = {"id": len(rows) + 1, "image_id": target["image_id"], "category_id": category_ids[label]}
            row |= {"bbox": [*box[:2], *(box[2:] - box[:2])], "area": area, "iscrowd": int(crowd)}
            rows.append(row | {"segmentation": mask})
    images = [{"id": t["image_id"], "height": t["size"][0], "width": t["size"][1]} for t in annotations]
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, names, strict=True)]
    return {"images": images, "categories": categories, "annotations": rows}


def of_pycocotools(data, results, kind):
    """Its twelve figures in percent, by our names; those it gives as −1 are left out."""
    results = copy.deepcopy(results)
    if kind == "mask":
        # Otherwise it takes the area of the box.
        results = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    with redirect_stdout(StringIO()):
        target = COCO()
        target.dataset = copy.deepcopy(data)
        target.createIndex()
        evaluation = COCOeval(target, target.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = zip(FIGURES, evaluation.stats.tolist(), strict=True)
    return {name.format(kind): 100 * value for name, value in figures if value != -1}


def figures_of(metric, kind):
    return {name: value for name, value in metric.compute().items() if f"_{kind}" in name}


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_that_of_pycocotools(kind, seed):
    predictions, annotations = made_set(seed)
    metric = scored(predictions, annotations)
    expected = of_pycocotools(as_json(annotations), metric.results(CATEGORY_IDS), kind)
    assert len(expected) == 12
    assert 20 < expected[f"ap_{kind}"] < 90
    assert figures_of(metric, kind) == pytest.approx(expected, abs=1e-6)


@pytest.mark.skipif(not NUCLEI.is_file(), reason=f"the real set is not at {NUCLEI}")
def test_on_real_objects_it_is_pycocotools_too():
    data = json.loads(NUCLEI.read_text())
    random = np.random.default_rng(0)
    metric = CocoAP(("nucleus",))
    for image in data["images"]:
        rows = [row for row in data["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        target = {"image_id": image["id"], "size": (image["height"], image["width"]), "boxes": boxes}
        target |= {"labels": np.zeros(len(rows), int), "crowd": np.zeros(len(rows), bool)}
        target |= {"areas": [row["area"] for row in rows], "masks": [row["segmentation"] for row in rows]}
        found = perturbed(random, target, noise=0.05)
        metric.update([found | {"labels": found["labels"] * 0}], [target])
    for kind in ("box", "mask"):
        expected = of_pycocotools(data, metric.results([1]), kind)
        assert figures_of(metric, kind) == pytest.approx(expected, abs=1e-6)
        print({name: round(value, 2) for name, value in expected.items()})


def test_merged_states_in_any_order_equal_one_process():
    predictions, annotations = made_set(0)
    whole = scored(predictions, annotations)
    parts = [scored(predictions[rank::3], annotations[rank::3]) for rank in range(3)]
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = CocoAP(CLASSES)
        for rank in order:
            merged.merge(parts[rank].state())
        assert merged.compute() == whole.compute()
        assert merged.report() == whole.report()
        assert merged.results(CATEGORY_IDS) == whole.results(CATEGORY_IDS)


def test_a_image_seen_twice_counts_once():
    predictions, annotations = made_set(0)
    once, twice = (scored(predictions * times, annotations * times) for times in (1, 2))
    other = scored(predictions[:2], annotations[:2])
    twice.merge(other.state())
    assert twice.compute() == once.compute()
    assert twice.count == 9


# pycocotools does not follow NumPy 2 here.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_bitmaps_run_lengths_and_json_are_the_same_masks():
    predictions, annotations = made_set(1)
    texts = [
        prediction | {"masks": [rle | {"counts": rle["counts"].decode()} for rle in compressed(prediction["masks"])]}
        for prediction in predictions
    ]
    metric = scored(predictions, annotations)
    assert scored(texts, annotations).compute() == metric.compute()
    results = json.loads(json.dumps(metric.results(CATEGORY_IDS)))
    assert results[0]["image_id"] == 10
    assert {row["category_id"] for row in results} == set(CATEGORY_IDS)
    decoded = tools.decode(results[0]["segmentation"])
    np.testing.assert_array_equal(decoded.astype(bool), predictions[-1]["masks"][0].numpy())
    left, top, right, bottom = predictions[-1]["boxes"][0].double().tolist()
    assert results[0]["bbox"] == [left, top, right - left, bottom - top]


def test_perfect_detections_score_100_and_none_score_0():
    _, annotations = made_set(2)
    perfect = [target | {"scores": np.ones(len(target["labels"]))} for target in annotations]
    scores = scored(perfect, annotations).compute()
    assert next(iter(scores)) == "ap_box"
    assert [scores[name] for name in ("ap_box", "ap_mask", "ap_box_50")] == pytest.approx([100.0] * 3)
    nothing = [{key: target[key][:0] for key in ("boxes", "scores", "labels", "masks")} for target in perfect]
    assert scored(nothing, annotations).compute()["ap_mask"] == 0.0


def test_rows_of_classes_average_to_the_whole_and_classes_without_objects_say_nothing():
    metric = scored(*made_set(3))
    rows = metric.report()["per_class"]
    assert [row["name"] for row in rows] == list(CLASSES)
    assert rows[2] == {"label": 2, "name": "unseen", "objects": 0} | {
        f"ap_{kind}{at}": None for kind in ("box", "mask") for at in ("", "_50", "_75")
    }
    for name in ("ap_box", "ap_box_75", "ap_mask_50"):
        known = [row[name] for row in rows if row["objects"]]
        assert sum(known) / 3 == pytest.approx(metric.compute()[name])


def test_figures_of_sizes_that_do_not_occur_are_left_out():
    target = ground_truth(np.random.default_rng(0), 1, 1)
    target |= {"areas": [2000.0], "crowd": [False]}
    scores = scored([perturbed(np.random.default_rng(0), target)], [target]).compute()
    assert {"ap_box_m", "ar_mask_m"} <= scores.keys()
    assert not {"ap_box_s", "ap_box_l", "ar_mask_s", "ar_mask_l"} & scores.keys()


def test_without_masks_only_boxes_are_scored():
    predictions, annotations = made_set(0)
    boxes = {name: value for name, value in scored(predictions, annotations).compute().items() if "mask" not in name}
    no_masks = [{key: prediction[key] for key in ("boxes", "scores", "labels")} for prediction in predictions]
    assert scored(no_masks, annotations, with_masks=False).compute() == boxes
    assert "segmentation" not in scored(no_masks, annotations, with_masks=False).results(CATEGORY_IDS)[0]
    no_truth = [annotation | {"masks": None} for annotation in annotations]
    assert scored(predictions, no_truth).compute() == boxes
    with pytest.raises(ValueError, match=r"masks are scored, but a prediction has none; give `masks`, or score with_"):
        scored(no_masks, annotations)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no image was scored; the validation split is empty or none of its files"):
        CocoAP(CLASSES).compute()
    target = ground_truth(np.random.default_rng(0), 1, 0)
    with pytest.raises(ValueError, match="none of the 1 images scored shows an object; give a set that has some"):
        scored([perturbed(np.random.default_rng(0), target)], [target]).report()


def test_crowded_images_are_scored_with_as_many_detections_as_are_asked_for():
    corners = np.stack(np.meshgrid(np.arange(25), np.arange(20)), -1).reshape(-1, 2) * 10.0
    boxes, labels = np.concatenate([corners, corners + 8], 1), np.zeros(500, np.int64)
    objects = {"image_id": 1, "size": (200, 250), "boxes": boxes, "labels": labels, "masks": None}
    objects |= {"crowd": np.zeros(500, bool), "areas": np.full(500, 64.0)}
    found = {"boxes": boxes, "labels": labels, "scores": np.linspace(1, 0.5, 500)}
    usual = scored([found], [objects], with_masks=False).compute()
    assert usual["ar_box_100"] == pytest.approx(20)
    assert usual["ap_box"] < 21
    wide = scored([found], [objects], with_masks=False, max_detections=500).compute()
    assert wide["ar_box_500"] == wide["ap_box"] == pytest.approx(100)
    assert [name for name in wide if name.startswith("ar_box_1")] == ["ar_box_1", "ar_box_10"]
    narrow = scored([found], [objects], with_masks=False, max_detections=5).compute()
    assert (narrow["ar_box_5"], "ar_box_10" in narrow) == (pytest.approx(1), False)
