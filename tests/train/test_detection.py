"""Detectors through the whole path: train, validate, predict, on one process and two."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from globalvit.cli.main import main
from globalvit.data.built_in.shapes_files import write_shapes
from globalvit.data.storage.shard_build import pack
from globalvit.train.loop import train

# Nothing that depends on the process: float32, SGD, no drop path, frozen batch norms.
PLAIN = {"opt": "sgd", "lr": 0.002, "weight_decay": 0.0, "drop_path": 0.0, "freeze_bn": True, "epochs": 3}
SIZES = {"img_size": 64, "short_side": 64, "long_side": 96, "window": "ratio"}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """12 images to train on and 5 to evaluate on, which no two processes share evenly."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, totals={"train": 12, "val": 5}, side=64)
    return root


@pytest.fixture
def images(shapes):
    """The folder that runs of this file train on."""
    return shapes


def test_a_run_is_scored_and_used_as_it_was_trained(config, toy, tmp_path, capsys):
    run = train(config(model="gcvit_xxtiny_mask_rcnn", **SIZES, epochs=1))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"]
    assert (run / "samples" / "train_batch.png").exists()
    assert json.loads((run / "classes.json").read_text()) == ["circle", "square", "triangle"]
    (stored,) = (run / "checkpoints").glob("step-*/thresholds.json")
    assert len(json.loads(stored.read_text())["score_thresholds"]) == 3

    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "scores")]) == 0
    measured = json.loads((tmp_path / "scores" / "summary.json").read_text())
    scores = {key: value for key, value in summary.items() if key.startswith(("ap_", "ar_"))}
    assert {key: measured[key] for key in scores} == scores
    page = (tmp_path / "scores" / "report.html").read_text()
    assert "Precision, recall and F1" in page
    assert "background" in page
    assert page.count("<img") >= 2
    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "bare"), "--no-report"]) == 0
    assert not (tmp_path / "bare" / "report.html").exists()
    assert f"ap_box {summary['ap_box']:.3f} %" in capsys.readouterr().out

    image = tmp_path / "odd.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 101, 3), np.uint8)).save(image)
    words = ["--score-threshold", "0", "--output", str(tmp_path / "drawn"), "--draw"]
    assert main(["predict", "--checkpoint", str(run), str(image), *words]) == 0
    (answer,) = json.loads((tmp_path / "drawn" / "predictions.json").read_text())["predictions"]
    assert answer["objects"]
    assert all(item["mask"]["size"] == [67, 101] and sum(item["mask"]["counts"]) == 6767 for item in answer["objects"])
    with Image.open(answer["drawn"]) as drawn:
        assert drawn.width >= 101


@pytest.mark.slow
def test_shards_give_the_losses_of_the_folder(config, toy, shapes, metrics, tmp_path):
    pack(shapes, tmp_path / "shards")
    given = SIZES | {"model": "gcvit_xxtiny_retinanet", "epochs": 1}
    runs = [train(config(**given, tag=data.name, data_dir=str(data))) for data in (shapes, tmp_path / "shards")]
    one, other = map(metrics, runs)
    assert one
    assert one == other


def test_the_results_file_has_the_file_own_ids_and_scores_as_it_says(config, toy, tmp_path, shapes):
    run = train(config(model="gcvit_xxtiny_mask_rcnn", **SIZES, epochs=1))
    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path)]) == 0
    expected = COCO(str(shapes / "annotations" / "instances_val.json"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {row["category_id"] for row in results} <= {1, 3, 7}
    evaluation = COCOeval(expected, expected.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    measured = json.loads((tmp_path / "summary.json").read_text())
    assert 100 * evaluation.stats[0] == pytest.approx(measured["ap_box"], abs=1e-4)


@pytest.mark.usefixtures("as_elsewhere")
@pytest.mark.parametrize(
    "model", ["gcvit_xxtiny_retinanet", pytest.param("gcvit_xxtiny_mask_rcnn", marks=pytest.mark.slow)]
)
def test_two_processes_train_and_evaluate_as_one(config, command, run_pair, metrics, tmp_path, model):
    train(config(**SIZES, model=model, tag="one", batch_size=4, **PLAIN))
    run_pair(*command(**SIZES, model=model, tag="two", batch_size=2, **PLAIN))
    one, two = (tmp_path / "runs" / tag for tag in ("one", "two"))
    losses = [[record["loss"] for record in metrics(run, "train")] for run in (one, two)]
    assert len(losses[0]) == 9
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    counts = [metrics(run, "evaluate")[-1]["count"] for run in (one, two)]
    assert counts == [5, 5]


def test_batches_are_not_searched_for_detectors(config, toy):
    with pytest.raises(ValueError, match="auto_batch is not offered for detectors, whose images differ in size"):
        train(config(model="gcvit_xxtiny_retinanet", **SIZES, auto_batch=True))
