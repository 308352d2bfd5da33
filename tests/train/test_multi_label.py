"""Classifiers of images with several labels through the whole path: train, resume, validate, predict, export."""

import csv
import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import globalvit as gv
from globalvit.cli.main import main
from globalvit.demo.shelf import Shelf
from globalvit.demo.visit import Visit
from globalvit.explain import explain
from globalvit.jobs.drawing import label_map
from globalvit.train.autobatch import trial_step
from globalvit.train.config import load_config
from globalvit.train.loop import train
from globalvit.weights.pointers import follow

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


@pytest.mark.slow
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


@pytest.fixture
def nothing(toy):
    """A model whose every answer is that the image has no label."""
    task = gv.create_model("gcvit_xxtiny", classes=("bar", "circle", "square"), image_size=32, multi_label=True)
    task.score_thresholds = (1.0, 1.0, 1.0)
    return task.eval()


def test_an_image_without_labels_is_shown_and_explained(nothing, drawn, monkeypatch):
    image = Image.open(drawn / "val-00.png").convert("RGB")
    visit = Visit(key="none", image=image, name="<none>.png")
    monkeypatch.setattr(Shelf, "open", lambda *_: nothing)
    task = visit.ask(Shelf([], "cpu"))
    assert visit.prediction == {"labels": [], "names": [], "scores": []}
    assert visit.answer(task)[2].startswith("<h2>no label</h2>")
    assert label_map(image, [], []).width >= 32
    for target in (0, 2):
        found = explain(nothing, image, kind="grad_cam", target=target)
        assert nothing.classes[target] in found.title


def test_a_step_of_auto_batch_is_one_of_training(nothing, config):
    step = trial_step(nothing, config(model_ema=False), torch.device("cpu"), "fp32")
    for batch_size in (2, 4):
        step(batch_size)


@pytest.mark.slow
def test_files_give_probabilities_at_every_size(nothing, tmp_path):
    report = gv.export.export_model(nothing, tmp_path / "model.onnx", postprocessing=True)
    assert report.metadata["multi_label"]
    assert report.metadata["thresholds"] == [1.0, 1.0, 1.0]
    assert report.inside.endswith(", sigmoid")
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 75, 230)
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), nothing(images).sigmoid(), rtol=1e-4, atol=1e-5)


class Stopper:
    """Stops a run after its third step."""

    def on_step(self, step):
        if step.step == 3:
            raise gv.StopTraining


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(config, toy, metrics):
    rich = {"epochs": 2, "batch_size": 8, "mixup": 0.4, "cutmix": 0.5, "smoothing": 0.1, "model_ema": True}
    straight = train(config(**rich, tag="straight"))
    stopped = train(config(**rich, tag="stopped"), callbacks=[Stopper()])
    assert (stopped / "checkpoints" / "step-3").exists()
    train(load_config(stopped / "config.yaml", {"resume": str(stopped)}))
    assert metrics(stopped) == metrics(straight)
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (load_file(follow(run / "checkpoints" / "last") / name) for run in (straight, stopped))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert gv.open_checkpoint(stopped).thresholds == gv.open_checkpoint(straight).thresholds


@pytest.mark.slow
@pytest.mark.usefixtures("as_elsewhere")
def test_two_processes_train_and_evaluate_as_one(config, command, run_pair, tmp_path, metrics):
    base = PLAIN | {"epochs": 2, "weight_decay": 0.0, "smoothing": 0.0, "color_jitter": 0.0}
    one, two = train(config(tag="one", batch_size=8, **base)), tmp_path / "runs" / "two"
    run_pair(*command(tag="two", batch_size=4, **base))
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-5)
    for alone, shared in zip(metrics(one, "evaluate"), metrics(two, "evaluate"), strict=True):
        assert shared["count"] == alone["count"] == 17
        for key in ("map", "f1_micro", "f1_macro"):
            assert shared[key] == pytest.approx(alone[key], abs=1e-6)
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    thresholds = [gv.open_checkpoint(run).thresholds for run in (one, two)]
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-5)


@pytest.mark.slow
def test_auto_batch_chooses_a_batch(config, toy):
    run = train(config(epochs=1, auto_batch=True))
    assert (run / "summary.json").exists()


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
