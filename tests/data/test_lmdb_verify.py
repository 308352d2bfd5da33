"""What verify finds when database and folder differ."""

import lmdb
import pytest

from globalvit.cli.main import main
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_verify import verify


@pytest.fixture
def data(make_folder):
    return make_folder({"train": {"a": 4, "b": 3}, "val": {"a": 1, "b": 1}})


@pytest.fixture
def dst(data, tmp_path):
    build(data, tmp_path / "lmdb")
    return tmp_path / "lmdb"


def put(root, key, data):
    with lmdb.open(str(root)) as env, env.begin(write=True) as transaction:
        transaction.put(key, data) if data is not None else transaction.delete(key)


def test_every_difference_is_named(data, dst, capsys):
    (data / "train" / "a" / "000.png").unlink()
    (data / "train" / "a" / "001.png").write_bytes(b"other")
    (data / "val" / "b" / "new.png").write_bytes(b"new")
    found = verify(dst, data)
    assert (found.equal, found.index) == (7, [])
    assert (found.missing, found.extra) == (["val/b/new.png"], ["train/a/000.png"])
    assert found.differing == ["train/a/001.png"]
    assert main(["data", "lmdb", "verify", str(dst), str(data)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "missing in the database: val/b/new.png",
        "not in the folder: train/a/000.png",
        "different bytes: train/a/001.png",
        "7 files are identical; 1 × missing in the database, 1 × not in the folder, 1 × different bytes",
    ]


def test_equal_ones_are_said_to_be(data, dst, capsys):
    seen = []
    assert verify(dst, data, on_start=seen.append, on_image=lambda: seen.append("one")).is_equal
    assert seen == [9, *["one"] * 9]
    assert main(["data", "lmdb", "verify", str(dst), str(data)]) == 0
    assert capsys.readouterr().out == "9 files are identical, no problems found\n"


def test_an_index_that_says_something_else_is_found(data, dst):
    put(dst / "train", b"a/000.png", None)
    put(dst / "train", b"a/strange.png", b"data")
    (data / "train" / "a" / "001.png").write_bytes(b"changed in both")
    put(dst / "train", b"a/001.png", b"changed in both")
    found = verify(dst, data)
    assert found.index == ["train/a/000.png", "train/a/strange.png", "train/a/001.png"]
    assert (found.missing, found.extra) == (["train/a/000.png"], ["train/a/strange.png"])


def test_splits_that_only_one_side_has(data, dst):
    (dst / "val").rename(dst / "other")
    found = verify(dst, data)
    assert (found.missing, found.extra) == (
        ["val/a/000.png", "val/b/000.png"],
        ["other/a/000.png", "other/b/000.png"],
    )
    assert verify(dst, data, splits=("train",)).is_equal


def test_at_most_twenty_of_a_kind_are_printed(make_folder, tmp_path, capsys):
    data = make_folder({"train": {"a": 30}})
    build(data, tmp_path / "lmdb")
    for path in list((data / "train" / "a").iterdir())[:25]:
        path.unlink()
    assert main(["data", "lmdb", "verify", str(tmp_path / "lmdb"), str(data)]) == 1
    out = capsys.readouterr().out
    assert out.count("not in the folder: train/a/") == 20
    assert "not in the folder: 5 more\n5 files are identical; 25 × not in the folder\n" in out


def test_what_cannot_be_compared(data, dst, tmp_path):
    with pytest.raises(
        ValueError, match=r"data holds no LMDB database; make one by `globalvit data lmdb build SRC .*`"
    ):
        verify(data, data)
    with pytest.raises(ValueError, match=r"lmdb has splits and .*train has none; give the two that belong together"):
        verify(dst, data / "train")
    with pytest.raises(ValueError, match=r"data has splits and .*lmdb/train has none; give the two that belong"):
        verify(dst / "train", data)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        verify(tmp_path / "nowhere", data)
    (tmp_path / "old" / "train").mkdir(parents=True)
    put(tmp_path / "old" / "train", b"total", b"0")
    with pytest.raises(
        ValueError, match=r"train has the old published form, whose JPEGs were encoded again; only what"
    ):
        verify(tmp_path / "old", data, splits=("train",))


def test_a_half_built_database_is_not_compared(data, dst):
    put(dst / "val", b"/globalvit", b'{"is_complete": false}')
    with pytest.raises(ValueError, match="val is half built; finish it by"):
        verify(dst, data)
