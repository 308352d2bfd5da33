"""Classifiers of images with several labels through the whole path: train, resume, validate, predict, export."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import globalvit as gv
from globalvit.cli.main import main
from globalvit.train.loop import train

COLORS = {"circle": "#e03030", "square": "#30c040", "bar": "#4050f0"}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Shapes on gray, any number per image: 48 images to train on, 17 to evaluate on, with columns of 0 and 1."""
    root, generator = tmp_path_factory.mktemp("data") / "several", np.random.default_rng(0)
    root.mkdir()
    for split, count in (("train", 48), ("val", 17)):
        rows = []
        for number in range(count):
            hot = generator.integers(0, 2, 3) if number else np.zeros(3, int)
            image = Image.new("RGB", (32, 32), "#808080")
            pen = ImageDraw.Draw(image)
            for (kind, color), is_there in zip(COLORS.items(), hot, strict=True):
                x, y = (int(v) for v in generator.integers(0, 16, 2))
                box = (x, y, x + 15, y + (5 if kind == "bar" else 15))
                if is_there:
                    (pen.ellipse if kind == "circle" else pen.rectangle)(box, color)
            image.save(root / f"{split}-{number:02}.png")
            rows.append([f"{split}-{number:02}.png", *map(str, hot)])
        (root / f"{split}.csv").write_text("\n".join(map(",".join, [["file", *COLORS], *rows])) + "\n")
    return root


@pytest.fixture
def images(drawn):
    """The folder that runs of this file train on."""
    return drawn


PLAIN = {"opt": "sgd", "lr": 0.02, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "workers": 0}


def losses_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_run_stores_its_thresholds_and_predicts_with_them(config, toy, tmp_path, capsys, drawn):
    run = train(config(epochs=2, model_ema=True, workers=0))
    summary = json.loads((run / "summary.json").read_text())
    task = gv.open_checkpoint(run)
    assert task.spec.multi_label
    assert task.classes == ("bar", "circle", "square")
    assert len(task.thresholds) == 3
    assert main(["validate", "--checkpoint", str(run), "--output", str(tmp_path / "scores")]) == 0
    measured = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert {key: measured[key] for key in ("map", "loss", "count")} == {
        key: summary[key] for key in ("map", "loss", "count")
    }
    assert f"map {summary['map']:.3f} %" in capsys.readouterr().out
    words = ["predict", "--checkpoint", str(run), str(drawn / "val-03.png")]
    assert main([*words, "--csv", str(tmp_path / "a.csv"), "--json", str(tmp_path / "a.json")]) == 0
    (answer,) = json.loads((tmp_path / "a.json").read_text())["predictions"]
    assert all(score >= task.thresholds[label] for label, score in zip(answer["labels"], answer["scores"], strict=True))
    with (tmp_path / "a.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == answer["names"]
    assert main([*words, "--top-k", "3"]) == 1
    assert "--top-k 3 requires a single-label classifier; gcvit_xxtiny is" in capsys.readouterr().err
    report = gv.export.export_model(task, tmp_path / "model.pt2", image_size=32, postprocessing=True)
    assert report.metadata["thresholds"] == list(task.thresholds)
    assert report.inside.endswith(", sigmoid")


def test_accumulating_gives_the_same_losses(config, toy):
    base = PLAIN | {"epochs": 1, "warmup_epochs": 0, "freeze_bn": True, "smoothing": 0.1, "global_batch": 8, "seed": 1}
    whole = train(config(**base, tag="whole", batch_size=8))
    parts = train(config(**base, tag="parts", batch_size=4, grad_accum_steps=2))
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-4)


@pytest.mark.parametrize("model", ["gcvit_xxtiny", "gpvit_l1"])
def test_losses_are_binary_cross_entropies(toy, model):
    task = gv.create_model(model, num_classes=2, image_size=32, multi_label=True)
    batch = {"images": torch.randn(3, 3, 32, 32), "labels": torch.tensor([[1.0, 1], [0, 0], [0, 1]])}
    task.eval()
    loss, p = task.losses(batch)["loss"], task(batch["images"]).sigmoid()
    expected = -(batch["labels"] * p.log() + (1 - batch["labels"]) * (1 - p).log()).mean()
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match=r"expected targets \(3, 2\), one column per class, got \(3,\)$"):
        task.losses(batch | {"labels": torch.zeros(3)})


def test_a_segmenter_is_not_multi_label():
    with pytest.raises(ValueError, match=r"multi_label requires a classifier; gcvit_xxtiny_segformer is not one$"):
        gv.create_model("gcvit_xxtiny_segformer", multi_label=True)
