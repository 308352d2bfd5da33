"""Tables with several labels per image: every form gives the same samples, and what may be read two ways is refused."""

import json

import pytest
import torch

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.mixing import MultiLabelMixing
from globalvit.data.classification.transforms import TrainTransform
from globalvit.data.common.loading import train_loader

LABELS = {"a.png": ["cat", "dog"], "b.png": ["dog"], "c.png": [], "d.png": ["bird", "cat", "dog"], "e.png": ["bird"]}


@pytest.fixture
def root(tmp_path, make_folder):
    """Five images without labels."""
    (tmp_path / "table").mkdir()
    images = sorted((make_folder({"train": {"x": len(LABELS)}}) / "train" / "x").iterdir())
    for name, path in zip(LABELS, images, strict=True):
        path.rename(tmp_path / "table" / name)
    return tmp_path / "table"


def joined(separator, header="file,labels"):
    rows = [f'{name},"{separator.join(own)}"' for name, own in LABELS.items()]
    return "labels.csv", "\n".join([header, *rows]) + "\n"


def columns():
    classes = ("bird", "cat", "dog")
    rows = [",".join([name, *(str(int(one in own)) for one in classes)]) for name, own in LABELS.items()]
    return "labels.csv", "\n".join(["file,bird,cat,dog", *rows]) + "\n"


def hot_json():
    items = [{"file": name} | {one: int(one in own) for one in ("cat", "bird", "dog")} for name, own in LABELS.items()]
    return "labels.json", json.dumps(items)


FORMS = [
    joined(";"),
    joined("|"),
    joined(","),
    joined(";", "image,label"),
    columns(),
    ("labels.json", json.dumps([{"image": name, "labels": own} for name, own in LABELS.items()])),
    ("labels.json", json.dumps(LABELS)),
    ("metadata.jsonl", "".join(json.dumps({"image": name, "label": own}) + "\n" for name, own in LABELS.items())),
    hot_json(),
]


@pytest.mark.parametrize(("name", "text"), FORMS)
def test_every_form_gives_the_same_samples(root, name, text):
    (root / name).write_text(text)
    source = open_split(root, "train")
    assert source.classes == ("bird", "cat", "dog")
    assert [source.labels(at) for at in range(5)] == [[1, 2], [2], [], [0, 1, 2], [0]]
    batch = next(iter(train_loader(source, TrainTransform(image_size=16), batch_size=5, seed=1)))
    expected = torch.stack([torch.from_numpy(source.target(int(at))) for at in batch["indices"]])
    assert batch["labels"].dtype == torch.float32
    assert torch.equal(batch["labels"], expected)


def test_rows_of_one_image_are_its_labels(root):
    rows = [f"{name},{label}" for name, own in LABELS.items() for label in own]
    (root / "labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    source = open_split(root, "train", multi_label=True)
    assert [source.labels(at) for at in range(4)] == [[1, 2], [2], [0, 1, 2], [0]]
    with pytest.raises(ValueError, match=r"expected one label per image, or give --multi-label true$"):
        open_split(root, "train")


REFUSED = [
    ("file,cat,dog\na.png,0,1\nb.png,1,0\n", r"each row has 1 in exactly one column of 0 and 1, so it may be a single"),
    ("file,label\na.png,cat;dog\nb.png,fox\n", r"'cat;dog' may be one label or several, separated by ';'; use --multi"),
    ("file,cat,dog\na.png,1,1\nb.png,2,0\n", r"labels\.csv:3: expected 0 or 1 in the column 'cat', got '2'$"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_may_be_read_two_ways_is_refused(root, text, message):
    (root / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_split(root, "train")
    assert "\n" not in str(caught.value)


def test_the_user_decides_how_a_table_is_read(root):
    (root / "labels.csv").write_text('file,label\na.png,"tench, Tinca tinca"\nb.png,dog\n')
    assert open_split(root, "train").classes == ("dog", "tench, Tinca tinca")
    assert open_split(root, "train", multi_label=True).classes == ("Tinca tinca", "dog", "tench")
    (root / "labels.csv").write_text("file,cat,dog\na.png,0,1\nb.png,1,0\n")
    source = open_split(root, "train", multi_label=False)
    assert [source.label(at) for at in range(2)] == [0, 1]


@pytest.mark.parametrize("header", ["file,label\n", ""])
def test_commas_in_names_of_a_column_of_one_label_separate_nothing(root, header):
    (root / "labels.csv").write_text(
        header + 'a.png,"crane, bird"\nb.png,"crane, machine"\nc.png,bird\nd.png,machine\n'
    )
    assert open_split(root, "train").classes == ("bird", "crane, bird", "crane, machine", "machine")


def test_all_splits_have_the_separator_of_one(root):
    (root / "train.csv").write_text('file,labels\na.png,"crane, bird;dog"\nb.png,dog\n')
    (root / "val.csv").write_text('file,labels\nc.png,"crane, bird"\n')
    for choice in ("auto", True):
        train = open_split(root, "train", multi_label=choice)
        val = open_split(root, "val", train.classes, multi_label=choice)
        assert (train.classes, val.labels(0)) == (("crane, bird", "dog"), [0])


def test_a_damaged_table_of_another_split_does_not_matter(root):
    (root / "train.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
    (root / "test.csv").write_text("file,label\nc.png,cat\nd.png\n")
    assert open_split(root, "train").classes == ("cat", "dog")


def test_class_folders_have_one_label(make_folder):
    with pytest.raises(
        ValueError, match=r"has one label per image; --multi-label true requires a table of labels, such"
    ):
        open_split(make_folder({"train": {"a": 1}}), "train", multi_label=True)


def test_data_check_counts_labels_per_class(root, capsys):
    (root / "labels.csv").write_text(columns()[1])
    main(["data", "check", "--data-dir", str(root), "--workers", "0"])
    assert "multi-label: train: images per class: bird 2, cat 2, dog 3; without a label: 1" in capsys.readouterr().out


def test_data_check_reports_an_image_with_two_sets_of_labels(root, capsys):
    (root / "f.png").write_bytes((root / "a.png").read_bytes())
    (root / "labels.csv").write_text(joined(";")[1] + "f.png,dog\n")
    assert main(["data", "check", "--data-dir", str(root), "--workers", "0"]) == 1
    assert "the same image is in class 'cat; dog', 'dog'" in " ".join(capsys.readouterr().out.split())


def test_data_check_reads_a_table_as_it_is_told(root, capsys):
    (root / "labels.csv").write_text("file,cat,dog\na.png,0,1\nb.png,1,0\n")
    words = ["data", "check", "--data-dir", str(root), "--workers", "0"]
    assert main(words) == 1
    assert "use --multi-label true or --multi-label false" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--multi-label", "false"]) == 0
    assert "multi-label:" not in capsys.readouterr().out
    assert main([*words, "--multi-label", "true"]) == 0
    assert "images per class: cat 1, dog 1" in capsys.readouterr().out


def test_lmdb_databases_are_not_built_of_tables(root, tmp_path, capsys):
    (root / "images").mkdir()
    (root / "a.png").rename(root / "images" / "a.png")
    (root / "labels.csv").write_text(columns()[1])
    assert main(["data", "lmdb", "build", str(root), str(tmp_path / "packed")]) == 1
    error = capsys.readouterr().err
    assert f"{root} has its labels in the table labels.csv; LMDB databases are built of class folders or" in error
    assert len(error.strip().splitlines()) == 1


def test_mixing_combines_the_labels_of_both_images():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([[1.0, 1], [0, 0], [0, 1], [1, 0]])
    mixed = MultiLabelMixing(2, mixup=1.0, seed=3)({"images": images.clone(), "labels": labels}, 0)
    share = (mixed["images"][0] - images[3]).sum() / (images[0] - images[3]).sum()
    torch.testing.assert_close(mixed["targets"], share * labels + (1 - share) * labels.flip(0))
    smooth = MultiLabelMixing(2, smoothing=0.1)({"images": images, "labels": labels}, 0)
    torch.testing.assert_close(smooth["targets"], labels * 0.9 + 0.05)
