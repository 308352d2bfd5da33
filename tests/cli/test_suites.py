"""`globalvit validate --suite`: the class of an image is in its color, so a model that reads it must score 100 %."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.imagenet import imagenet_names, imagenet_synsets
from globalvit.data.classification.suites import SUITES, match_folders, match_outputs, read_real_labels
from globalvit.data.classification.transforms import EvalTransform
from globalvit.metrics.suites import RealAccuracy, SubsetAccuracy

A_CLASSES = SUITES["imagenet-a"].classes
SOME = (0, 1, 2, 10, 100, 134, 517, 638, 999)


def colored(path, index):
    """A small image of one color that stands for ImageNet's class `index`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (index // 32 * 8 + 4, index % 32 * 8 + 4, 0)).save(path, "BMP")


@pytest.fixture(scope="module")
def reader():
    """A classifier whose logits say the class of an image's color, and the class after it second."""
    from globalvit.build import create_model
    from globalvit.tasks.classify import Classifier

    class ColorReader(Classifier):
        def forward(self, images_BCHW):
            mean, std = (torch.tensor(values) for values in (self.preprocessing.mean, self.preprocessing.std))
            red, green, _ = ((images_BCHW.mean((2, 3)) * std + mean) * 255).unbind(1)
            index_B = (red / 8).long() * 32 + (green / 8).long()
            logits = torch.zeros(len(index_B), 1000)
            logits[torch.arange(len(index_B)), index_B] = 9
            logits[torch.arange(len(index_B)), (index_B + 1) % 1000] += 5
            return logits[:, self.order]

    transform = EvalTransform(image_size=32)
    task = create_model("gcvit_xxtiny", classes=imagenet_names(), image_size=32, preprocessing=transform)
    task.__class__, task.order = ColorReader, torch.arange(1000)
    return task


@pytest.fixture
def validate(reader, monkeypatch, tmp_path, capsys):
    """Runs the command with the reader as its model; gives top-1, top-5, the number of images, and what it logged."""
    monkeypatch.setattr("globalvit.jobs.validate.open_model", lambda _: reader)

    def run(suite, data, *words):
        asked = ["--suite", suite, "--data-dir", str(data), "--workers", "0", "--batch-size", "250"]
        assert main(["validate", "--model", "gcvit_xxtiny", "--precision", "fp32", *asked, *words]) == 0
        shown = capsys.readouterr()
        scores = re.search(r"top1 (\S+) %  top5 (\S+) %  loss \S+  on (\d+) images", shown.out)
        return *map(float, scores.groups()), shown.err

    return run


def test_imagenet_v2_as_published_scores_by_the_numbers_of_its_folders(validate, tmp_path):
    for index in range(1000):
        colored(tmp_path / "imagenetv2" / str(index) / "a.bmp", index)
    top1, _, count, shown = validate("imagenet-v2", tmp_path)
    assert (top1, count) == (100, 1000)
    assert "has 1000 images, ImageNet-V2 as published has 10000: the score is not comparable" in shown


@pytest.mark.parametrize(
    "name",
    [
        str,
        lambda index: f"{index:04}",
        imagenet_synsets().__getitem__,
        imagenet_names().__getitem__,
        lambda index: imagenet_names()[index].replace(" ", "_"),
    ],
)
def test_folders_mean_the_same_by_whatever_name(validate, tmp_path, name):
    for index in SOME:
        colored(tmp_path / "set" / name(index) / "deeper" / "a.bmp", index)
    top1, _, count, shown = validate("imagenet-sketch", tmp_path / "set")
    assert (top1, count) == (100, len(SOME))
    assert "set has no images of 991 of the 1000 classes" in shown


@pytest.mark.parametrize("name", [str, imagenet_synsets().__getitem__])
@pytest.mark.parametrize("suite", ["imagenet-a", "imagenet-r"])
def test_of_subsets_only_their_own_classes_are_scored(validate, tmp_path, suite, name):
    classes = SUITES[suite].classes
    assert len(classes) == 200
    # Images that the model takes for a class that the set does not have, and for one of the set second.
    outside = next(index for index in range(999) if index not in classes and index + 1 in classes)
    for index in classes[:40]:
        colored(tmp_path / name(index) / "a.bmp", index)
    colored(tmp_path / name(outside + 1) / "b.bmp", outside)
    top1, _, count, _ = validate(suite, tmp_path)
    assert (top1, count) == (100, 41)


def test_real_counts_any_of_an_images_labels(validate, tmp_path):
    labels = [[] for _ in range(50_000)]
    labels[0], labels[1], labels[2], labels[3] = [7, 9], [3], [20, 21], []
    (tmp_path / "real.json").write_text(json.dumps(labels))
    for number, index in ((1, 9), (2, 4), (3, 19), (4, 5)):
        colored(tmp_path / "val" / f"n0{number}" / f"ILSVRC2012_val_{number:08}.JPEG", index)
    words = ("--real-labels", str(tmp_path / "real.json"))
    top1, top5, count, shown = validate("imagenet-real", tmp_path / "val", *words)
    assert count == 3
    assert top1 == pytest.approx(100 / 3, abs=1e-3)
    # 20 is what the model says second of class 19; of the second image it says 4, then 5.
    assert top5 >= 66.666
    assert "1 images have no label in ReaL and are left out" in shown


def test_timms_labels_are_those_of_real():
    labels = read_real_labels()
    assert sum(map(bool, labels)) == SUITES["imagenet-real"].images
    assert labels[1] == [970, 795]


@pytest.mark.parametrize(
    ("suite", "names", "text"),
    [
        ("imagenet-v2", ["apple pie", "0"], "cannot tell which of the 1000 classes of ImageNet-V2 the folders"),
        ("imagenet-v2", ["crane", "tench"], "the folders 'crane' of"),
        ("imagenet-v2", ["1", "1000"], "the folders '1000' of .*; name class folders by WordNet id"),
        ("imagenet-v2", ["1", "01"], "the folders '1', '01' of .* mean the same class; merge them"),
        ("imagenet-v2", ["tench", "Tinca tinca"], "mean the same class"),
        ("imagenet-v2", ["n01440764", "n99999999"], "the folders 'n99999999'"),
        ("imagenet-a", [str(index) for index in range(200)], "cannot tell which of the 200 classes of ImageNet-A"),
        ("imagenet-a", ["n01440764"], "cannot tell which of the 200 classes of ImageNet-A the folders 'n01440764'"),
    ],
)
def test_what_cannot_be_known_is_refused(suite, names, text):
    with pytest.raises(ValueError, match=text):
        match_folders(names, suite, Path("there"))


def test_synonyms_of_one_class_are_understood():
    meant = {"Tinca tinca": 0, "great_white_shark": 2, "crane (machine)": 517, "cardigan": 474, "Cardigan": 264}
    assert match_folders(list(meant), "imagenet-v2", Path()) == meant


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--suite", "imagenet-v2", "--data-dir", "gone"], 1, "data folder gone does not exist; give the folder of Im"),
        (["--suite", "imagenet-a", "--data-dir", "."], 1, ". holds no class folders; expected n01440764/IMAGE.jpg"),
        (["--suite", "imagenet-real", "--data-dir", "."], 1, "is named like ILSVRC2012_val_00000001.JPEG; ReaL's"),
        (["--suite", "imagenet-v2"], 2, "--suite imagenet-v2 requires --data-dir, the folder that contains it"),
        (["--real-labels", "x", "--data-dir", "."], 2, "--real-labels requires --suite imagenet-real"),
        (
            ["--suite", "imagenet-r", "--data-dir", ".", "--val-split", "v"],
            2,
            "--suite and --val-split were both given",
        ),
        (["--suite", "imagenet-c", "--data-dir", "."], 2, "Did you mean 'imagenet-"),
    ],
)
def test_mistakes_are_one_line(words, status, text, reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("globalvit.jobs.validate.open_model", lambda _: reader)
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "--model", "gcvit_xxtiny", *words]) == status
    shown = capsys.readouterr().err.splitlines()[-1]
    assert text in shown.replace("./", "")


@pytest.mark.parametrize("content", ["{", "[[1]]", json.dumps([[1000]] * 50_000), json.dumps([["1"]] * 50_000)])
def test_other_lists_of_labels_are_refused(content, tmp_path):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ValueError, match=r"real\.json is not (JSON|ReaL's list of labels: expected 50000 lists)"):
        read_real_labels(tmp_path / "real.json")


def test_outputs_are_matched_by_name():
    names = imagenet_names()
    assert match_outputs(names, 1000, "X") == match_outputs(imagenet_synsets(), 1000, "X") == list(range(1000))
    assert match_outputs(names[::-1], 1000, "X") == list(range(1000))[::-1]
    with pytest.raises(
        ValueError, match="X is for classifiers with ImageNet-1K's 1000 classes; this model has 2: 'a', 'b'"
    ):
        match_outputs(("a", "b"), 2, "X")
    with pytest.raises(ValueError, match="this model has 21841: without names"):
        match_outputs(None, 21_841, "X")


def test_the_metrics_agree_with_counting_by_hand():
    logits, allowed = torch.randn(64, 12), [[int(i) for i in torch.randperm(8)[: 1 + n % 3]] for n in range(64)]
    outputs = [11, 3, 5, 7, 0, 1, 2, 9]
    metric = RealAccuracy([str(i) for i in range(8)], outputs, allowed)
    for part in torch.arange(64).split(10):
        metric.update(logits[part], part)
    chosen = logits[:, outputs]
    order = chosen.argsort(1, descending=True)
    hits = [int(order[n, 0]) in allowed[n] for n in range(64)]
    top5 = [bool(set(order[n, :5].tolist()) & set(allowed[n])) for n in range(64)]
    loss = -sum(chosen[n].softmax(0)[allowed[n]].sum().log() for n in range(64)) / 64
    scores = metric.compute()
    assert scores["top1"] == pytest.approx(100 * sum(hits) / 64)
    assert scores["top5"] == pytest.approx(100 * sum(top5) / 64)
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)
    subset = SubsetAccuracy([str(i) for i in range(8)], outputs)
    subset.update(logits, order[:, 0])
    assert subset.compute()["top1"] == 100


def test_names_are_spelled_as_in_wordnet():
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = zip(imagenet_names(), range(1000), strict=True)
    other = [name for name, index in names if name not in info.index_to_description(index).split(", ")]
    assert other == ["crane (bird)", "crane (machine)"]
