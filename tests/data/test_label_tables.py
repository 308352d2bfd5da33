"""Labels of images in CSV and JSON files: the same set as in class folders, and what is wrong with a table."""

import json
import logging

import pytest
import torch

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.transforms import TrainTransform
from globalvit.data.common.loading import train_loader
from globalvit.train.fields import TrainConfig
from globalvit.train.inputs import open_splits

SPLITS = {"train": {"cat": 3, "dog": 2}, "val": {"cat": 1, "dog": 2}}


@pytest.fixture
def folders(make_folder):
    """Class folders, which the tables repeat."""
    return make_folder(SPLITS)


@pytest.fixture
def images(folders, tmp_path):
    """The same images without class folders: DATA/images/SPLIT_CLASS_N.png, and their rows (image, label, split)."""
    rows = []
    for path in sorted(folders.rglob("*.png")):
        label, split = path.parent.name, path.parents[1].name
        name = f"{split}_{label}_{path.stem}.png"
        (tmp_path / "table" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "table" / "images" / name).write_bytes(path.read_bytes())
        rows.append((name, label, split))
    return tmp_path / "table", rows


def csv_of(rows, header="image,label,split", comma=","):
    return "\n".join([header.replace(",", comma), *(comma.join(row) for row in reversed(rows))]) + "\n"


def write_split_column(root, rows):
    (root / "labels.csv").write_bytes(b"\xef\xbb\xbf" + csv_of(rows).replace("\n", "\r\n").encode())


def write_semicolons(root, rows):
    (root / "metadata.csv").write_text(csv_of(rows, "Path,Class,Subset", ";"))


def write_a_file_per_split(root, rows):
    for split in SPLITS:
        chosen = [(f"images/{name}", label) for name, label, own in rows if own == split]
        (root / f"{split}.csv").write_text("".join(f"{name},{label}\n" for name, label in chosen))


def write_ids(root, rows):
    (root / "labels.csv").write_text(csv_of([(name[:-4], label, split) for name, label, split in rows], "id,class,set"))


def write_json(root, rows):
    items = [{"file_name": rf"images\{name}", "label": label, "split": split} for name, label, split in rows]
    (root / "labels.json").write_text(json.dumps(items))


def write_json_lines(root, rows):
    items = [{"file_name": name, "label": label, "split": split} for name, label, split in rows]
    (root / "metadata.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def write_json_mapping(root, rows):
    for split in SPLITS:
        (root / f"{split}.json").write_text(json.dumps({n: label for n, label, own in rows if own == split} | {}))
    # Only a file called labels is taken without a word for its labels in it.
    for split in SPLITS:
        (root / split).mkdir()
        (root / f"{split}.json").rename(root / split / "labels.json")


FORMS = [
    write_split_column,
    write_semicolons,
    write_a_file_per_split,
    write_ids,
    write_json,
    write_json_lines,
    write_json_mapping,
]


@pytest.mark.parametrize("write", FORMS)
def test_a_table_gives_the_same_samples_as_class_folders(write, folders, images):
    root, rows = images
    write(root, rows)
    for split in SPLITS:
        expected, source = open_split(folders, split), open_split(root, split, ("cat", "dog"))
        assert source.classes == expected.classes
        pairs = [(source, expected)]
        assert [[one.label(at) for at in range(len(one))] for one in pairs[0]] == [
            [expected.label(at) for at in range(len(expected))]
        ] * 2
        for at in range(len(expected)):
            assert source.read(at).tobytes() == expected.read(at).tobytes()
    batches = [
        next(iter(train_loader(open_split(one, "train"), TrainTransform(image_size=16), batch_size=4, seed=1)))
        for one in (root, folders)
    ]
    assert torch.equal(batches[0]["images"], batches[1]["images"])
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])


def test_without_a_split_some_images_are_held_out(images, caplog):
    root, rows = images
    (root / "labels.csv").write_text(csv_of([row[:2] for row in rows], "image,label"))
    with caplog.at_level(logging.INFO):
        splits = open_splits(TrainConfig(data_dir=str(root)))
    assert [len(splits.train), len(splits.val)] == [6, 2]
    assert "(format table): 8 images of 'train'" in caplog.text


def test_class_folders_and_a_table_in_one_folder_are_refused(folders, images):
    _, rows = images
    (folders / "labels.csv").write_text(csv_of(rows))
    text = (
        r"fits 2 formats: folders \(class folders in train, val\) and table \(labels in labels\.csv\); choose one with"
    )
    with pytest.raises(ValueError, match=text):
        open_split(folders, "train")
    assert len(open_split(folders, "train", form="folders")) == 5
    (folders / "labels.csv").write_text("epoch,loss\n1,2\n")
    assert len(open_split(folders, "train")) == 5
    with pytest.raises(
        ValueError, match=r"unknown format 'tabel'; Did you mean 'table'\? expected one of folders, table"
    ):
        open_split(folders, "train", form="tabel")


WRONG = [
    ("image,label\na.png\n", r"labels\.csv:2: expected 2 columns or more, got 1$"),
    ("image,label\na.png,\n", r"labels\.csv:2: expected one label, got ''$"),
    ("image,label\n,cat\n", r"labels\.csv:2: expected the name of an image, got ''$"),
    ("image,label,split\na.png,cat,all\n", r"labels\.csv:2: expected train, val or test as split, got 'all'$"),
    (
        "image,label\n../secret.png,cat\n",
        r"labels\.csv:2: '\.\./secret\.png' leads out of .*table; expected a path below it$",
    ),
    ("image,label\n/etc/a.png,cat\n", r"labels\.csv:2: '/etc/a\.png' leads out of .*table; expected a path below it$"),
    (
        "image,label\na.png,cat\na.png,dog\n",
        r"labels\.csv:3: 'a\.png' has the label 'dog', and 'cat' at .*:2; expected one",
    ),
    (
        "image,label\nnone.png,cat\n",
        r"none of the 1 images of .*labels\.csv is found below .*table, such as 'none\.png'$",
    ),
    ("image,label\n", r"labels\.csv lists no images; expected rows of an image and its label$"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_rows_are_named_with_file_and_line(tmp_path, make_folder, text, message):
    root = tmp_path / "table"
    root.mkdir()
    (make_folder({"a": {"b": 1}}) / "a" / "b" / "000.png").rename(root / "a.png")
    (root / "labels.csv").write_text(text)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        open_split(root, "train")
    assert "\n" not in str(caught.value)


WRONG_JSON = [
    ("{", r"labels\.json: this is not JSON: Expecting"),
    ("[" * 200_000, r"labels\.json: this is not JSON: maximum recursion"),
    ("3", r"labels\.json: expected a list of \{\"image\": …, \"label\": …\}, or an object of image and label$"),
    ('["a.png"]', r"labels\.json: row 1: expected an object \{\"image\": …, \"label\": …\}, got 'a\.png'$"),
    (
        '[{"image": "a.png", "label": ["cat", {}]}]',
        r"labels\.json: row 1: expected labels, got \['cat', \{\}\]$",
    ),
    ('{"a.png": null}', r"labels\.json: 'a\.png': expected one label, got None$"),
    ('[{"label": "cat"}]', r"labels\.json: row 1: expected the name of an image, got None$"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_JSON)
def test_wrong_json_is_explained(tmp_path, text, message):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_split(tmp_path, "train")


def test_missing_and_repeated_images_are_counted(images, caplog):
    root, rows = images
    extra = [("gone.png", "cat", "train"), rows[0]]
    (root / "labels.csv").write_text(csv_of([*rows, *extra]))
    assert len(open_split(root, "train")) == 6
    assert "labels.csv: 1 images do not exist, the first: 'gone.png'" in caplog.text
    assert "labels.csv: 1 rows repeat an image and are left out" in caplog.text


def test_data_check_reads_tables(images, capsys):
    root, rows = images
    write_split_column(root, rows)
    assert main(["data", "check", "--data-dir", str(root), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "note: format: table, labels in labels.csv" in out
    assert "note: classes: train has 2: 'cat', 'dog'" in out
    (root / "labels.csv").write_text("image,label\na.png\n")
    assert main(["data", "check", "--data-dir", str(root), "--workers", "0"]) == 1
    assert "labels.csv:2: expected 2 columns or more, got 1" in capsys.readouterr().err
    assert main(["data", "check", "--data-dir", str(root), "--format", "csv"]) == 1
    names = "folders, table, shards, huggingface, coco, yolo, voc"
    assert f"unknown format 'csv'; expected one of {names}" in capsys.readouterr().err
