"""`globalvit predict`: table, files, labeled images, and images that cannot be read."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from globalvit.cli.main import main
from globalvit.cli.opening import ModelOptions, _check_crop
from globalvit.data.fit import FitTransform
from globalvit.data.image_folder import open_split


@pytest.fixture
def digits(tmp_path):
    """A folder with three digits, one of them in a folder below under the name of another, and a broken file."""
    source = open_split("digits", "val")
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    for index, name in enumerate(["a.png", "b[1].png", "more/a.png"]):
        source.read(index).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_answers_are_those_of_the_model(run_folder, digits, tmp_path, capsys):
    from globalvit.build import open_checkpoint

    answers, table = tmp_path / "a.json", tmp_path / "a.csv"
    words = ["--checkpoint", str(run_folder), "--top-k", "3", "--json", str(answers), "--csv", str(table)]
    assert main(["predict", str(digits), *words, "--precision", "fp32"]) == 0
    predictions = json.loads(answers.read_text())["predictions"]
    task = open_checkpoint(run_folder)
    names = [str(digits / name) for name in ("a.png", "b[1].png", "more/a.png")]
    expected = task.predict(names, top_k=3)
    assert [answer["image"] for answer in predictions] == names
    for answer, known in zip(predictions, expected, strict=True):
        assert answer["names"] == known["names"]
        assert answer["scores"] == pytest.approx(known["scores"], rel=1e-4)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3
    assert rows[3]["name"] == expected[1]["names"][0]
    assert str(digits / "b[1].png") in capsys.readouterr().out


def test_unreadable_images_are_named_counted_and_left_out(run_folder, digits, tmp_path, capsys):
    assert main(["predict", str(digits), "--checkpoint", str(run_folder), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err
    assert f"left out: {digits / 'broken.jpg'} cannot be read as an image" in shown
    assert "1 of 4 images could not be read and were left out" in shown
    skipped = json.loads((tmp_path / "out" / "predictions.json").read_text())["skipped"]
    assert [entry["image"] for entry in skipped] == [str(digits / "broken.jpg")]
    assert (tmp_path / "out" / "predictions.csv").exists()


def test_it_fails_only_where_no_image_can_be_read(run_folder, digits, capsys):
    assert main(["predict", str(digits / "broken.jpg"), "--checkpoint", str(run_folder)]) == 1
    assert "globalvit: error: none of the 1 images could be read" in capsys.readouterr().err


def test_labeled_images_never_overwrite_each_other(run_folder, digits, tmp_path):
    out = tmp_path / "out"
    words = [str(digits), str(digits / "a.png"), "--checkpoint", str(run_folder), "--output", str(out), "--draw"]
    assert main(["predict", *words]) == 0
    drawn = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert drawn == ["a-2.png", "a.png", "b[1].png", "more/a.png"]
    answers = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [answer["drawn"] for answer in answers][-1] == str(out / "a-2.png")
    with Image.open(out / "a.png") as page:
        assert page.width == 480


def test_running_out_of_memory_says_what_to_lower(run_folder, digits, monkeypatch, capsys):
    def exhausted(*values, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("globalvit.tasks.classify.Classifier.predict", exhausted)
    assert main(["predict", str(digits), "--checkpoint", str(run_folder)]) == 1
    assert "out of memory with 24 images at a time; lower --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["x.png"], 2, "say which model: --checkpoint PATH of a trained one, or --model NAME"),
        (["x.png", "--model", "gcvit_tiny", "--draw"], 2, "--draw needs --output DIR"),
        (["x.png", "--model", "gcvit_tiny", "--top-k", "0"], 2, "--top-k 0 must be at least 1"),
        (["x.png", "--checkpoint", "a", "--weights", "b"], 2, "--checkpoint and --weights were both given"),
        (
            ["x.png", "--model", "gcvit_tiny", "--weights", "none"],
            2,
            "--weights none would be a model that knows nothing",
        ),
        (["--model", "gcvit_tiny"], 2, "globalvit predict needs IMAGES"),
        (["x.png", "--model", "gcvit_tiny"], 1, "x.png does not exist"),
        ([".", "--model", "gcvit_tinny"], 1, "model 'gcvit_tinny' is not known. Did you mean 'gcvit_tiny'"),
        ([".", "--checkpoint", "gone"], 1, "gone does not exist; give a weight file"),
    ],
)
def test_mistakes_are_one_line(words, status, text, digits, monkeypatch, capsys):
    monkeypatch.chdir(digits)
    assert main(["predict", *words]) == status
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (
            "segment",
            {"crop_pct": 0.5},
            "--crop-pct means nothing for gcvit_xxtiny_x; leave it out, or give --short-side",
        ),
        ("detect", {"img_size": 64}, "--img-size means nothing for gcvit_xxtiny_x; leave it out, or give --short-side"),
        ("segment", {"img_size": 64}, None),
    ],
)
def test_sizes_that_a_task_does_not_take_are_refused(kind, options, text):
    spec = SimpleNamespace(model="gcvit_xxtiny_x")
    task = SimpleNamespace(kind=kind, preprocessing=FitTransform(), spec=spec)
    asked = ModelOptions(model="gcvit_xxtiny", **options)
    if text is None:
        _check_crop(task, asked)
    else:
        with pytest.raises(ValueError, match=text):
            _check_crop(task, asked)
