"""Databases in place of image folders: the same images, in any process, and what is said when they are not sound."""

import json
import os
import pickle
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from globalvit.data.classification.checks import check_folder
from globalvit.data.classification.dataset import open_split
from globalvit.data.classification.transforms import EvalTransform, TrainTransform
from globalvit.data.common.images import UnreadableImage
from globalvit.data.common.loading import eval_loader, train_loader
from globalvit.data.storage.lmdb import Database, forget, located, value
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_index import HEADER, Header, Keys, pack_keys
from globalvit.data.storage.lmdb_source import LmdbImages, open_database

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
HEADLESS = "import sys; sys.modules['lmdb'] = None; from globalvit.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def folder(make_folder):
    """Names that repeat among classes, lie deep, and sort otherwise as keys than as classes."""
    data = make_folder({"train": {"a": 3, "a-b": 2, "é/deep": 2}, "val": {"a": 1, "a-b": 1, "é": 1}})
    Image.new("RGB", (9, 7), (1, 2, 3)).save(data / "train" / "a" / "photo.jpg")
    (data / "val" / "a" / "broken.jpg").write_bytes(b"")
    return data


@pytest.fixture
def databases(folder, tmp_path):
    build(folder, tmp_path / "lmdb")
    return tmp_path / "lmdb"


def same(one, other):
    """Whether two sources give the same labels and pixels."""
    assert (one.classes, len(one)) == (other.classes, len(other))
    for index in range(len(one)):
        assert one.label(index) == other.label(index)
        assert np.array_equal(one.read(index), other.read(index))
    return True


def test_a_database_is_as_its_folder(folder, databases):
    one, other = open_split(folder, "train"), open_split(databases, "train")
    assert isinstance(other, LmdbImages)
    assert same(one, other)
    names = [other.name(index) for index in range(len(other))]
    assert names == [one.name(index).replace(str(folder), str(databases)) for index in range(len(one))]


def test_given_classes_decide_the_labels(folder, databases):
    classes = ("é", "a", "a-b")
    one, other = (open_split(data, "train", classes) for data in (folder, databases))
    assert same(one, other)
    assert [one.name(index)[-12:] for index in range(8)] == [other.name(index)[-12:] for index in range(8)]
    with pytest.raises(ValueError, match=r"the classes of .*train are not the 2 expected: unexpected 'a-b', 'é'"):
        open_split(databases, "train", ("a", "a"))


def test_keys_are_paths_and_values_the_files_bytes(folder, databases):
    with lmdb.open(str(databases / "train"), readonly=True, lock=False) as env, env.begin() as transaction:
        items = {key: data for key, data in transaction.cursor() if not key.startswith(b"/")}
        header = json.loads(transaction.get(HEADER))
    assert items == {
        path.relative_to(folder / "train").as_posix().encode(): path.read_bytes()
        for path in (folder / "train").rglob("*.*g")
    }
    assert (header["classes"], header["counts"]) == (["a", "a-b", "é"], [4, 2, 2])
    assert header["total_bytes"] == sum(map(len, items.values()))


def test_an_unreadable_image_stays_one(databases):
    source = open_split(databases, "val")
    (broken,) = [index for index in range(len(source)) if source.name(index).endswith("broken.jpg")]
    with pytest.raises(UnreadableImage, match=r"lmdb/val/a/broken\.jpg cannot be read as an image: the file is empty"):
        source.read(broken)


def test_data_check_reads_databases(folder, databases):
    reports = [check_folder(data) for data in (folder, databases)]
    assert reports[0].splits == reports[1].splits
    kinds = [[problem.kind for problem in report.problems] for report in reports]
    assert kinds == [["unreadable"], ["unreadable"]]
    Database(databases / "test").close()
    (problem, _) = check_folder(databases).problems[:2]
    assert problem.kind == "database"
    assert "is half built" in problem.text


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (4, "fork"), (1, "spawn")])
def test_loader_processes_read_what_one_process_reads(folder, databases, workers, method):
    transform = TrainTransform(image_size=16)
    source = open_split(databases, "train")
    # This process has the database open when it forks.
    source.read(0)
    expected = train_loader(open_split(folder, "train"), transform, batch_size=3, seed=1)
    loader = train_loader(source, transform, batch_size=3, seed=1, workers=workers, start_method=method)
    for _ in range(2):
        for one, other in zip(expected, loader, strict=True):
            assert torch.equal(one["images"], other["images"])
            assert torch.equal(one["labels"], other["labels"])
        source.read(1)
    loader.close()


def test_evaluation_skips_the_same(folder, databases):
    loaders = [
        eval_loader(open_split(data, "val"), EvalTransform(image_size=16), batch_size=8) for data in (folder, databases)
    ]
    (one,), (other,) = map(list, loaders)
    assert torch.equal(one["images"], other["images"])
    assert len(one["labels"]) == 3
    assert [len(loader.skipped) for loader in loaders] == [1, 1]


def test_a_database_is_closed_before_a_fork_and_opened_again_by_whoever_reads(databases):
    source = open_split(databases, "train")
    pixels = source.read(0).tobytes()
    child = os.fork()
    if not child:
        os._exit(0 if source.read(0).tobytes() == pixels else 1)
    assert source.read(0).tobytes() == pixels
    assert os.waitpid(child, 0)[1] == 0


def test_opening_leaves_nothing_open(databases):
    source = pickle.loads(pickle.dumps(open_split(databases, "train")))
    with lmdb.open(str(databases / "train"), readonly=True, lock=False):
        pass
    assert source.read(0).mode == "RGB"
    forget(located(databases / "train"))


def test_one_database_by_two_names_is_opened_once(databases):
    (databases / "dev").symlink_to(databases / "train", target_is_directory=True)
    assert same(open_split(databases, "train"), open_split(databases, "dev"))


def test_a_folder_that_is_left_and_come_back_to(databases, monkeypatch):
    monkeypatch.chdir(databases)
    source = open_database("train")
    monkeypatch.chdir("/")
    assert source.read(0).mode == "RGB"


def test_a_image_that_went_meanwhile_is_unreadable(folder, databases):
    source = open_split(databases, "train")
    (folder / "train" / "a" / "000.png").unlink()
    build(folder, databases)
    with pytest.raises(UnreadableImage, match=r"train/a/000\.png is not in the database any more; it was built again"):
        source.read(0)


def test_a_half_built_database_is_refused_with_the_command_that_finishes_it(folder, databases):
    database = Database(databases / "val")
    header = Header(is_complete=False, source="my photos", split="val")
    database.write([(HEADER, header.to_bytes())])
    database.close()
    text = rf"{databases}/val is half built; finish it by `globalvit data lmdb build 'my photos' {databases}`"
    with pytest.raises(ValueError, match=text):
        open_split(databases, "val")


@pytest.mark.parametrize("size", [0, 4096])
def test_a_database_nothing_was_written_to_is_half_built(tmp_path, size):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "data.mdb").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"train is half built; finish it by `globalvit data lmdb build SRC DST`"):
        open_split(tmp_path, "train")


def test_another_kind_of_database_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "train")) as env, env.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with pytest.raises(ValueError, match=r"train is half built, or a database of another kind: it says nothing about"):
        open_split(tmp_path, "train")


def test_a_database_of_a_later_form_is_refused(databases):
    database = Database(databases / "train")
    header = json.loads(database.value(HEADER)) | {"form": 3, "news": [1]}
    database.write([(HEADER, json.dumps(header).encode())])
    database.close()
    with pytest.raises(ValueError, match=r"was built by a newer globalvit \(form 3, known 2\); update globalvit"):
        open_split(databases, "train")


def test_a_database_that_was_cut_short_is_refused_before_reading_kills_the_process(databases):
    file = databases / "train" / "data.mdb"
    size = file.stat().st_size
    os.truncate(file, size - 8192)
    with pytest.raises(OSError, match=rf"data\.mdb is cut short: it has {size - 8192} bytes of {size}; copy it or"):
        open_split(databases, "train")


def test_a_file_that_is_no_database(databases):
    (databases / "train" / "data.mdb").write_bytes(b"none" * 5000)
    with pytest.raises(OSError, match=r"data\.mdb is damaged: meta page 0 is not one of LMDB; copy it again"):
        open_split(databases, "train")


def test_a_single_database_names_the_folder_above_it(databases):
    text = r"lmdb/train is a single LMDB database; give the folder it lies in, .*lmdb, and train as the name of the"
    with pytest.raises(FileNotFoundError, match=text):
        open_split(databases / "train", "val")


def test_without_the_package_the_extra_is_named(databases):
    words = ["data", "lmdb", "verify", str(databases), str(databases)]
    done = subprocess.run(
        [sys.executable, "-c", HEADLESS, *words], capture_output=True, text=True, timeout=60, check=False
    )
    text = "globalvit: error: LMDB databases need the package lmdb: pip install 'globalvit[data]'\n"
    assert (done.returncode, done.stderr) == (1, text)


def test_keys_come_back_in_one_block():
    keys = [b"a/1.jpg", b"b", b"\xff/2.png"]
    packed = Keys(pack_keys(keys))
    assert [packed[index] for index in range(len(packed))] == keys
    assert len(Keys(b"")) == 0
    with pytest.raises(IndexError, match="key 3 of 3"):
        packed[3]


def test_what_is_not_there_is_none(databases):
    assert value(located(databases / "train"), b"nothing") is None
    forget(located(databases / "train"))
