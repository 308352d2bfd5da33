"""Segmenters through the whole path: train, resume, validate, predict, on one process and two."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.built_in.shapes_files import write_shapes
from globalvit.train.loop import train

# Nothing that depends on the process: float32, SGD, no drop path, frozen batch norms.
PLAIN = {"opt": "sgd", "lr": 0.02, "weight_decay": 0.0, "drop_path": 0.0, "freeze_bn": True, "epochs": 3}


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


SEGMENT = {"model": "gcvit_xxtiny_segformer", "img_size": 48, "short_side": 64, "window": "ratio"}


def test_a_run_is_scored_and_used_as_it_was_trained(config, toy, tmp_path, capsys, shapes):
    run = train(config(**SEGMENT, model_ema=True, val_interval=2))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"]
    assert (run / "samples" / "train_batch.png").exists()
    assert (run / "plots" / "confusion_matrix.png").exists()
    assert json.loads((run / "classes.json").read_text()) == ["background", "circle", "square", "triangle"]

    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "scores")]) == 0
    assert "ground truth, prediction, difference" in (tmp_path / "scores" / "report.html").read_text()
    measured = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert {key: measured[key] for key in ("miou", "macc", "pacc", "count")} == {
        key: summary[key] for key in ("miou", "macc", "pacc", "count")
    }
    assert f"miou {summary['miou']:.3f} %" in capsys.readouterr().out

    odd = tmp_path / "odd.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 101, 3), np.uint8)).save(odd)
    words = ["predict", "--checkpoint", str(run), str(odd), "--output", str(tmp_path / "drawn"), "--draw"]
    assert main(words) == 0
    (answer,) = json.loads((tmp_path / "drawn" / "predictions.json").read_text())["predictions"]
    with Image.open(answer["mask"]) as mask, Image.open(answer["drawn"]) as drawn:
        assert (mask.size, mask.mode) == ((101, 67), "P")
        shares = np.bincount(np.asarray(mask).ravel(), minlength=4) / (101 * 67)
        assert drawn.width >= 101
    assert {area["label"]: area["share"] for area in answer["areas"]} == pytest.approx(
        {label: share for label, share in enumerate(shares) if share}
    )


@pytest.mark.parametrize("options", [{"eval_mode": "slide"}, {"eval_flip": True, "eval_scales": (0.5, 1.0)}])
def test_other_ways_of_inference_score_alike(config, toy, tmp_path, options):
    run = train(config(**SEGMENT, epochs=1, **options))
    words = [f"--{key.replace('_', '-')}={json.dumps(value)}".replace('"', "") for key, value in options.items()]
    assert main(["validate", "--checkpoint", str(run), *words, "--output", str(tmp_path / "scores")]) == 0
    measured = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert measured["miou"] == json.loads((run / "summary.json").read_text())["miou"]


@pytest.mark.parametrize(
    "options", [{"ohem": True}, {"class_weights": (0.5, 1.0, 1.0, 2.0)}, {"in_chans": 1}, {"auto_batch": True}], ids=str
)
def test_options_train(config, toy, metrics, options):
    losses = [record["loss"] for record in metrics(train(config(**SEGMENT, epochs=1, **options)), "train")]
    assert losses
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.usefixtures("as_elsewhere")
def test_two_processes_train_in_passes_and_evaluate_as_one(config, command, run_pair, metrics, tmp_path):
    train(config(**SEGMENT, tag="one", batch_size=4, **PLAIN))
    run_pair(*command(**SEGMENT, tag="two", batch_size=1, grad_accum_steps=2, **PLAIN))
    one, two = (tmp_path / "runs" / tag for tag in ("one", "two"))
    losses = [[record["loss"] for record in metrics(run, "train")] for run in (one, two)]
    assert len(losses[0]) == 9
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    matrices = [np.array(json.loads((run / "report.json").read_text())["confusion_matrix"]) for run in (one, two)]
    assert matrices[0].sum() == matrices[1].sum() == 5 * 64 * 64
    # Weights differ in their last bits, so a pixel may fall to the other side.
    assert np.abs(matrices[0] - matrices[1]).sum() <= 4


def test_a_label_that_is_no_class_ends_the_run_with_file_value_and_classes(config, toy, shapes, tmp_path):
    data = tmp_path / "wrong"
    shutil.copytree(shapes, data)
    for path in (data / "annotations" / "train").glob("*.png"):
        Image.fromarray(np.full((64, 64), 9, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"annotations/train/\d+\.png.* 9 .*4 classes"):
        train(config(**SEGMENT, data_dir=str(data)))
