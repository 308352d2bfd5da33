"""`globalvit validate`: the scores, the files, the settings of the run, and class sets that differ."""

import csv
import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from globalvit.cli.main import main
from globalvit.cli.options import parse
from globalvit.cli.validate import Result, ValidateOptions, show
from globalvit.jobs.validate import check_words
from globalvit.metrics.accuracy import Accuracy
from globalvit.models.variants import ModelSpec


@pytest.fixture(scope="module")
def measured(run_folder, tmp_path_factory):
    """What `globalvit validate` wrote of the run folder as it is."""
    folder = tmp_path_factory.mktemp("measured")
    assert main(["validate", "--checkpoint", str(run_folder), "--output", str(folder)]) == 0
    return folder


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def folder_of_classes(root, classes):
    """A val split with two red images a class."""
    for name in classes:
        (root / "val" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40), "red").save(root / "val" / name / f"{i}.png")
    return root


def small_checkpoint(path, classes, num_classes=None):
    from globalvit.build import create_model
    from globalvit.weights.load import save_weights

    task = create_model("gcvit_xxtiny", classes=classes, num_classes=num_classes, image_size=32)
    save_weights(path, task, task.spec, classes, task.preprocessing)
    return path


def test_the_settings_of_the_run_give_the_scores_of_its_own_evaluation(run_folder, measured):
    from globalvit.build import open_checkpoint
    from globalvit.data.classification.dataset import open_split
    from globalvit.data.common.loading import eval_loader
    from globalvit.train.evaluate import evaluate

    task = open_checkpoint(run_folder)
    loader = eval_loader(open_split("digits", "val"), task.preprocessing, batch_size=24)
    expected = evaluate(task, loader, task.preprocessing, torch.device("cpu"), "fp32").compute()
    assert {name: summary(measured)[name] for name in expected} == expected
    assert expected["top1"] > 60


def test_flags_override_the_settings_of_the_run(run_folder, measured, tmp_path):
    words = ["--checkpoint", str(run_folder), "--precision", "bf16", "--batch-size", "360", "--output", str(tmp_path)]
    assert main(["validate", *words]) == 0
    other, own = summary(tmp_path), summary(measured)
    assert other["loss"] != own["loss"]
    assert other["loss"] == pytest.approx(own["loss"], abs=0.05)


def test_rows_and_matrix_agree_with_the_scores(measured):
    with (measured / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    matrix = json.loads((measured / "confusion_matrix.json").read_text())
    hits = [matrix["counts"][i][i] for i in range(10)]
    assert matrix["classes"] == list("0123456789")
    assert summary(measured)["top1"] == pytest.approx(100 * sum(hits) / 360)
    for row, hit in zip(rows, hits, strict=True):
        assert float(row["recall"]) == pytest.approx(100 * hit / int(row["images"]))
    with (measured / "confusion_matrix.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert [list(map(int, row[1:])) for row in table[1:]] == matrix["counts"]
    with Image.open(measured / "confusion_matrix.png") as page:
        assert min(page.size) > 400


def test_folders_named_by_wordnet_ids_are_imagenet_classes(tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", ("tench", "goldfish"))
    data = folder_of_classes(tmp_path / "data", ["n01440764", "n01443537"])
    assert main(["validate", "--checkpoint", str(checkpoint), "--data-dir", str(data), "--workers", "0"]) == 0
    page = capsys.readouterr().out
    assert "goldfish" in page
    assert "on 4 images" in page


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (("apple", "pear"), "unexpected 'plum'; missing 'pear'"),
        (("apple", "Plum"), "unexpected 'plum'; missing 'Plum' ('Plum' and 'plum' differ only in case)"),
    ],
)
def test_other_classes_than_the_models_are_an_error_that_names_them(tmp_path, capsys, classes, text):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", classes)
    data = folder_of_classes(tmp_path / "data", ["apple", "plum"])
    assert main(["validate", "--checkpoint", str(checkpoint), "--data-dir", str(data)]) == 1
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.startswith("globalvit: error: the classes of ")


def test_classes_without_images_have_no_recall(tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", ("apple", "pear", "plum"))
    data = folder_of_classes(tmp_path / "data", ["apple", "plum"])
    assert main(["validate", "--checkpoint", str(checkpoint), "--data-dir", str(data)]) == 0
    output = capsys.readouterr()
    assert "val has no images of 1 of the 3 classes, so their recall cannot be measured: 'pear'" in output.err
    assert "pear         0          –" in output.out


def test_the_test_split_is_measured_only_where_it_is_named(tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", ("apple", "pear"))
    data = folder_of_classes(tmp_path / "data", ["apple", "pear"])
    (data / "val").rename(data / "test")
    words = ["validate", "--checkpoint", str(checkpoint), "--data-dir", str(data)]
    assert main(words) == 1
    assert "no folder 'val' in" in capsys.readouterr().err
    assert main([*words, "--split", "test"]) == 0
    assert "on 4 images" in capsys.readouterr().out


def test_another_number_of_classes_is_an_error_where_names_are_not_known(tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", None, 3)
    data = folder_of_classes(tmp_path / "data", ["apple", "plum"])
    assert main(["validate", "--checkpoint", str(checkpoint), "--data-dir", str(data)]) == 1
    assert "the model has 3 outputs and" in capsys.readouterr().err


def test_unreadable_images_are_left_out_and_counted(tmp_path, capsys):
    checkpoint = small_checkpoint(tmp_path / "m.safetensors", ("apple", "plum"))
    data = folder_of_classes(tmp_path / "data", ["apple", "plum"])
    (data / "val" / "plum" / "broken.png").write_bytes(b"")
    words = [
        "--checkpoint",
        str(checkpoint),
        "--data-dir",
        str(data),
        "--workers",
        "0",
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(["validate", *words]) == 0
    assert "on 4 images, 1 skipped" in capsys.readouterr().out
    assert list(summary(tmp_path / "o")["skipped"]) == [str(data / "val" / "plum" / "broken.png")]


def test_of_many_classes_the_worst_are_shown(capsys):
    metric = Accuracy([f"c{i:03}" for i in range(100)])
    for i in range(100):
        metric.confusion[i, i], metric.confusion[i, i - 1] = i % 50, 50 - i % 50
    show(Result("classify", "gcvit_tiny", metric, {}))
    page = capsys.readouterr().out
    assert sum(line.strip().startswith("c0") for line in page.splitlines()) == 40
    assert page.index("c000") < page.index("c050") < page.index("c001")
    assert "c049" not in page


def test_running_out_of_memory_says_what_to_lower(run_folder, monkeypatch, capsys):
    def exhausted(*values, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("globalvit.tasks.classify.Classifier.evaluate", exhausted)
    assert main(["validate", "--checkpoint", str(run_folder), "--workers", "0"]) == 1
    assert "out of memory with 24 images per batch; lower --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--model", "gcvit_tiny"], 2, "globalvit validate requires --data-dir"),
        (["--checkpoint", "x", "--batch-size", "0"], 2, "batch_size=0 must be 1 or more"),
        (["--checkpoint", "x", "--img-size", "8"], 2, "image_size=8 is too small"),
        (["--checkpoint", "x", "--crop-pct", "1.5"], 2, "crop_pct=1.5 must be more than 0 and at most 1"),
        (["--checkpoint", "gone", "--data-dir", "digits"], 1, "gone does not exist; give a weight file"),
    ],
)
def test_mistakes_are_one_line(words, status, text, capsys):
    assert main(["validate", *words]) == status
    shown = capsys.readouterr().err
    assert text in shown
    assert shown.count("\n") == 1


@pytest.mark.slow
def test_two_processes_count_what_one_counts(run_folder, tmp_path):
    # 360 images in batches of 11 divide evenly over neither one process nor two.
    words = ["validate", "--checkpoint", str(run_folder), "--batch-size", "11", "--precision", "fp32", "--output"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*words, str(one)]) == 0
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "globalvit",
    ]
    subprocess.run([*launcher, *words, str(two)], check=True, capture_output=True, timeout=300)
    assert (one / "confusion_matrix.json").read_text() == (two / "confusion_matrix.json").read_text()
    assert summary(two)["loss"] == pytest.approx(summary(one)["loss"], abs=1e-6)


@pytest.mark.slow
def test_a_run_that_was_trained_is_measured_exactly_as_training_did(tmp_path):
    words = ["--config", "digits", "--epochs", "1", "--output", str(tmp_path), "--tag", "run", "--workers", "0"]
    assert main(["train", *words]) == 0
    assert main(["validate", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0
    trained, again = summary(tmp_path / "run"), summary(tmp_path / "again")
    assert {name: trained[name] for name in ("top1", "top5", "loss")} == {
        name: again[name] for name in ("top1", "top5", "loss")
    }


def test_a_limit_of_detections_requires_a_detector(run_folder, capsys):
    assert main(["validate", "--checkpoint", str(run_folder), "--max-detections", "300"]) == 1
    assert "--max-detections requires a detector; gcvit_xxtiny is not one" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named_before_anything_else(capsys):
    assert main(["validate", "--checkpoint", "nowhere"]) == 1
    assert "globalvit: error: nowhere does not exist; give a weight file, a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "words", "text"),
    [
        ("gcvit_xxtiny", ["--eval", "bbox", "segm"], "bbox segm: gcvit_xxtiny is measured by accuracy, precision, rec"),
        ("gpvit_l1_upernet", ["--metrics", "accuracy"], "--eval accuracy: gpvit_l1_upernet is measured by mIoU; leave"),
        ("gpvit_l1_retinanet", ["--eval", "bbox", "segm"], "--eval segm: gpvit_l1_retinanet is measured by bbox; leav"),
        ("gpvit_l1_mask_rcnn", ["--eval", "bbox", "segm", "--workers", "3"], ""),
        ("gpvit_l1_retinanet", ["--eval=bbox"], ""),
        ("gcvit_xxtiny", ["--metrics", "accuracy", "precision", "recall"], ""),
        ("gcvit_xxtiny", [], ""),
        ("gpvit_l1_upernet", ["--eval", "mIoU", "mDice"], "--eval mDice: gpvit_l1_upernet is measured by mIoU"),
    ],
)
def test_words_of_other_tools_are_those_of_the_kind_of_task_or_refused(model, words, text):
    options = parse(ValidateOptions, ["--model", model, *words], "validate", "")
    with pytest.raises(ValueError, match=text) if text else nullcontext():
        check_words(options.eval, ModelSpec(model=model))


def test_the_report_is_one_file_with_the_worst_images(measured):
    page = (measured / "report.html").read_text()
    assert "Most confident mistakes" in page
    assert "Most uncertain" in page
    assert "Most confused pairs" in page
    assert "<script" not in page
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)"', page))
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) > 12
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_every_figure_of_the_report(measured, width):
    from playwright.sync_api import sync_playwright

    complaints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark", offline=True)
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda one: complaints.append(str(one)))
        page.goto((measured / "report.html").resolve().as_uri())
        shown = page.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        browser.close()
    assert len(shown) > 12
    assert all(shown)
    assert overflow <= 0
    assert complaints == []
