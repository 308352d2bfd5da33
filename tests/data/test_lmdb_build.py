"""Builds: what they pack, how they go on, and what they refuse."""

import os
import subprocess
import sys
from contextlib import closing

import lmdb
import pytest

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.storage import lmdb as storage
from globalvit.data.storage import lmdb_build
from globalvit.data.storage.lmdb import Database
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_index import DONE
from globalvit.data.storage.lmdb_splits import find_splits
from globalvit.data.storage.lmdb_verify import verify


@pytest.fixture
def dst(tmp_path):
    return tmp_path / "lmdb"


@pytest.fixture
def data(make_folder):
    return make_folder({"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 1}})


def counts(packed):
    return [(split.split, split.images, split.written, split.kept, split.removed) for split in packed]


def test_each_split_becomes_a_database(data, dst):
    seen = []
    packed = build(data, dst, on_start=seen.append, on_image=lambda: seen.append("one"))
    assert counts(packed) == [("train", 7, 7, 0, 0), ("val", 2, 2, 0, 0)]
    assert packed[0].total_bytes == sum(path.stat().st_size for path in (data / "train").rglob("*.png"))
    assert seen == [9, *["one"] * 9]
    for split in ("train", "val"):
        assert {path.name for path in (dst / split).iterdir()} == {"data.mdb", "lock.mdb"}


def test_a_folder_of_classes_becomes_one_database(data, dst):
    assert counts(build(data / "train", dst / "dev")) == [("", 7, 7, 0, 0)]
    assert verify(dst / "dev", data / "train").equal == 7
    assert len(open_split(dst, "dev")) == 7


def test_names_are_taken_as_splits_only_where_that_is_sure(make_folder, caplog):
    data = make_folder({"train": {"a": 1}, "meta": {"notes": 0}, "extra": {"a": 1}})
    assert find_splits(data) == ["extra", "train"]
    assert "left out, since no class folders with images are in them: 'meta' of" in caplog.text
    assert find_splits(data, ("train",)) == ["train"]
    assert find_splits(data / "train") == [""]


def test_a_class_may_be_called_train(make_folder):
    assert find_splits(make_folder({"vehicles": {"train": 2, "bus": 1}}) / "vehicles") == [""]


def test_folders_that_may_be_splits_or_classes_must_be_named(make_folder):
    data = make_folder({"Coarse": {"a": 1}, "dev": {"a": 1}})
    text = (
        r"the folders of .*data may be splits or classes: expected train, .* if they are splits, name them: --splits "
    )
    with pytest.raises(ValueError, match=text + "Coarse,dev"):
        find_splits(data)
    assert find_splits(data, ("Coarse", "dev", "Coarse")) == ["Coarse", "dev"]
    with pytest.raises(FileNotFoundError, match=r"no folder 'train' in .*; it holds 'Coarse', 'dev'"):
        find_splits(data, ("train",))
    (data / "Coarse" / "a" / "000.png").rename(data / "Coarse" / "loose.png")
    (data / "dev").rename(data / "val")
    (data / "val" / "loose.png").touch()
    with pytest.raises(ValueError, match=text + "Coarse,val"):
        find_splits(data)


def test_a_second_build_finds_nothing_to_do(data, dst):
    build(data, dst)
    before = {path: path.read_bytes() for path in dst.rglob("data.mdb")}
    assert counts(build(data, dst)) == [("train", 7, 0, 7, 0), ("val", 2, 0, 2, 0)]
    assert before == {path: path.read_bytes() for path in dst.rglob("data.mdb")}


def test_a_build_brings_a_database_up_to_date(data, dst):
    build(data, dst)
    (data / "train" / "a" / "000.png").unlink()
    (data / "train" / "a" / "001.png").write_bytes(b"changed")
    (data / "train" / "c").mkdir()
    (data / "train" / "c" / "new.png").write_bytes(b"new")
    (data / "val" / "a" / "000.png").rename(data / "val" / "a" / "other.png")
    assert counts(build(data, dst)) == [("train", 7, 2, 5, 1), ("val", 2, 1, 1, 1)]
    assert verify(dst, data).is_equal
    assert open_split(dst, "train").classes == ("a", "b", "c")


def test_a_build_that_failed_goes_on(data, dst, monkeypatch):
    monkeypatch.setattr(lmdb_build, "BATCH_IMAGES", 2)
    late = data / "train" / "b" / "002.png"
    content = late.read_bytes()
    late.unlink()
    late.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"b/002\.png"):
        build(data, dst)
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=rf"lmdb/{split} is half built; finish it by .*build {data} {dst}`"):
            open_split(dst, split)
    late.unlink()
    late.write_bytes(content)
    assert counts(build(data, dst)) == [("train", 7, 1, 6, 0), ("val", 2, 2, 0, 0)]
    assert verify(dst, data).is_equal
    with closing(Database(dst / "train")) as database:
        assert database.keys(DONE) == []


def test_the_map_grows_by_itself(make_folder, dst, monkeypatch):
    monkeypatch.setattr(storage, "ROOM", 1)
    data = make_folder({"train": {"a": 1}})
    for index in range(8):
        (data / "train" / "a" / f"large{index}.jpg").write_bytes(os.urandom(700_000))
    monkeypatch.setattr(lmdb_build, "BATCH_IMAGES", 3)
    build(data, dst)
    assert verify(dst, data).equal == 9


def test_two_files_of_one_name_are_both_there(make_folder, dst):
    data = make_folder({"train": {"a": 1, "a/deep": 1, "b": 1}})
    build(data, dst)
    source = open_split(dst, "train")
    assert [source.key(index) for index in range(3)] == [b"a/000.png", b"a/deep/000.png", b"b/000.png"]
    assert verify(dst, data).equal == 3


def test_names_that_are_no_text_are_kept(make_folder, dst):
    data = make_folder({"train": {"a": 1}})
    odd = os.fsencode(data / "train" / "a") + b"/\xff.jpg"
    os.close(os.open(odd, os.O_CREAT))
    build(data, dst)
    assert open_split(dst, "train").name(1) == str(dst / "train" / "a" / "\udcff.jpg")
    assert verify(dst, data).equal == 2


def test_files_that_are_no_images_are_counted(data, dst, caplog):
    (data / "train" / "a" / "notes.txt").touch()
    with caplog.at_level("INFO", logger="globalvit"):
        build(data, dst)
    assert f"{data}/train: 1 files that are not images are left out" in caplog.text


def test_a_name_over_511_bytes_is_an_error_before_anything_is_written(data, dst):
    folder = data / "train" / "a" / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    longest = folder / ("ü" * 51 + "x.jpg")
    longest.touch()
    assert len(os.fsencode(longest.relative_to(data / "train"))) == 511
    build(data, dst)
    longest.rename(folder / ("ü" * 51 + "xx.jpg"))
    text = r"/a/d+/e+/ü+xx\.jpg: its path below .*train has 512 bytes, and a key of LMDB has at most 511; shorten the"
    with pytest.raises(ValueError, match=text):
        build(data, dst.with_name("other"))
    assert not dst.with_name("other").exists()


def test_empty_classes_are_refused_before_anything_is_written(make_folder, dst):
    with pytest.raises(ValueError, match=r"no images in class 'b' of .*train"):
        build(make_folder({"train": {"a": 1, "b": 0}}), dst)
    assert not dst.exists()


def test_targets_that_hold_something_else_are_refused(data, dst):
    with pytest.raises(ValueError, match=r"data/packed lies in .*data, the folder to pack; give another one"):
        build(data, data / "packed")
    (dst / "train" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lmdb/train holds something else; give a new or an empty folder"):
        build(data, dst)
    with pytest.raises(ValueError, match=r"lmdb holds something else; give a new or an empty folder"):
        build(data / "train", dst)


def test_databases_of_another_layout_or_kind_are_refused(data, dst):
    build(data / "train", dst)
    with pytest.raises(ValueError, match=r"lmdb is a database without splits, and .*data has splits; give a new or"):
        build(data, dst)
    with pytest.raises(ValueError, match=r"lmdb holds LMDB databases; give the folder of images"):
        build(dst, dst.with_name("other"))
    with lmdb.open(str(dst.with_name("foreign"))) as env, env.begin(write=True) as transaction:
        transaction.put(b"total", b"0")
    with pytest.raises(ValueError, match=r"foreign is a database of another kind; give a new or an empty folder"):
        build(data / "train", dst.with_name("foreign"))


def test_one_build_at_a_time(data, dst):
    with (
        lmdb_build._only_builder(dst),
        pytest.raises(OSError, match=r"another build is at work in .*lmdb; wait"),
    ):
        build(data, dst)
    build(data, dst)


def test_a_full_disk_is_an_error_and_the_build_goes_on_later(data, dst):
    for index in range(9):
        (data / "train" / "a" / f"large{index}.jpg").write_bytes(os.urandom(300_000))
    words = [sys.executable, "-m", "globalvit", "data", "lmdb", "build", str(data), str(dst)]
    # A limit on the size of files stands for the full disk.
    done = subprocess.run(
        ["prlimit", "--fsize=1000000", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"globalvit: error: cannot write the database {dst}/train: " in done.stderr
    assert "when that is fixed, the same command goes on with what is done" in done.stderr
    assert build(data, dst)[0].images == 16
    assert verify(dst, data).is_equal


def test_the_command_says_what_became_of_each_split(data, dst, capsys):
    assert main(["data", "lmdb", "build", str(data), str(dst), "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "there before" in out
    assert f"{dst} is complete" in out
    assert main(["data", "lmdb", "build", str(data / "train"), str(dst / "one")]) == 0
    assert "(none)" in capsys.readouterr().out


def test_the_command_refuses_what_it_does_not_understand(data, dst, capsys):
    for words, text in [
        (["build", str(data)], "globalvit data lmdb build requires DST"),
        (["build", str(data), str(dst), "--workers", "0"], "--workers 0 must be 1 or more"),
        (["pack"], "unknown command 'pack' of globalvit data lmdb"),
    ]:
        assert main(["data", "lmdb", *words]) == 2
        assert text in capsys.readouterr().err
    assert main(["data", "lmdb", "build", str(data / "gone"), str(dst)]) == 1
    assert "gone does not exist" in capsys.readouterr().err
