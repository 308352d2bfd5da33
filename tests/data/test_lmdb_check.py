"""Damaged databases end in one sentence: damaged pages, headers and indexes, whatever wants to read or write them."""

import json
import random
import shutil
import struct
from pathlib import Path

import lmdb
import pytest

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_check import BRANCH, LEAF, Content, DamagedDatabase, check_file
from globalvit.data.storage.lmdb_verify import verify

PAGE = 4096


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
        for index in range(40):
            (folder / "train" / name / f"{index:03}.png").write_bytes(bytes([index]) * 1500)
    return folder


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """A database with branch pages, values that have pages of their own, and free pages."""
    dst, large = tmp_path_factory.mktemp("built") / "lmdb", folder / "train" / "a" / "large.jpg"
    large.write_bytes(b"x" * 10_000)
    build(folder, dst)
    large.unlink()
    build(folder, dst)
    (dst / "train" / "lock.mdb").unlink()
    return dst


@pytest.fixture
def dst(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "lmdb"))


@pytest.fixture
def data(dst):
    """The bytes of the database's file, to be changed; `pages` finds those of a kind that are in use."""
    return bytearray((dst / "train" / "data.mdb").read_bytes())


def head(data):
    """Offset of the meta page that counts, and the root of the images' tree."""
    metas = [(struct.unpack_from("=Q", data, at + 16 + 128)[0], at) for at in (0, PAGE)]
    at = max(metas)[1]
    return at, struct.unpack_from("=Q", data, at + 16 + 24 + 48 + 40)[0]


def first_leaf(data):
    """Offset of the first leaf page."""
    _, number = head(data)
    while struct.unpack_from("=H", data, number * PAGE + 10)[0] == BRANCH:
        at = number * PAGE + struct.unpack_from("=H", data, number * PAGE + 16)[0]
        low, high, more = struct.unpack_from("=HHH", data, at)
        number = low + (high << 16) + (more << 32)
    assert struct.unpack_from("=H", data, number * PAGE + 10)[0] == LEAF
    return number * PAGE


def put(form, at, *values):
    return lambda data: struct.pack_into(form, data, at(data) if callable(at) else at, *values)


def meta(offset):
    return lambda data: head(data)[0] + 16 + offset


def root(offset):
    return lambda data: head(data)[1] * PAGE + offset


def leaf(offset):
    return lambda data: first_leaf(data) + offset


def node(offset):
    """Offset within the first node of the first leaf."""
    return lambda data: first_leaf(data) + struct.unpack_from("=H", data, first_leaf(data) + 16)[0] + offset


def zero_root(data):
    at = head(data)[1] * PAGE
    data[at : at + PAGE] = bytes(PAGE)


def cut(data):
    del data[-2 * PAGE :]


DAMAGES = {
    "meta page 0 is not one of LMDB": put("=I", 16, 7),
    "meta page 1 has version 9, expected 1": put("=I", PAGE + 20, 9),
    "says pages of 77 bytes": put("=I", meta(24), 77),
    "says flags that these databases do not have": put("=H", meta(24 + 48 + 4), 4),
    "says that the last page is 0": put("=Q", meta(120), 0),
    "the tree of images is 99 pages deep": put("=H", meta(24 + 48 + 6), 99),
    "the tree of images has .* entries, expected .* 3 entries": put("=Q", meta(24 + 48 + 32), 3),
    r"it leads to page 1 of \d+": put("=Q", meta(24 + 48 + 40), 1),
    "is not a branch page": zero_root,
    r"page \d+ is not a branch page": put("=H", root(10), 0x42),
    r"the head of page \d+ is wrong": put("=H", root(12), 5001),
    r"page \d+ has nodes outside itself": put("=H", leaf(16), 4095),
    r"page \d+ has nodes of a wrong size": put("=HH", node(0), 0xFFFF, 0x7FFF),
    r"page \d+ has nodes of an unknown kind": put("=H", node(4), 4),
    r"page \d+ has a value beyond the end of the file|nodes of a wrong size": put("=HHH", node(0), 0, 0xFFFF, 1),
    "keys on page|keys that belong elsewhere": put("=8s", node(8), b"zzzzzzzz"),
    "is cut short: it has": cut,
}


@pytest.mark.parametrize("text", DAMAGES)
def test_damaged_pages_are_one_sentence(text, dst, data, folder, capsys):
    DAMAGES[text](data)
    (dst / "train" / "data.mdb").write_bytes(data)
    with pytest.raises(DamagedDatabase, match=text):
        open_split(dst, "train")
    with pytest.raises(DamagedDatabase, match=text):
        verify(dst, folder)
    assert main(["data", "lmdb", "build", str(folder), str(dst)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"globalvit: error: {dst}/train/data.mdb is ")
    assert shown.count("\n") == 1


def test_only_writing_follows_the_list_of_free_pages(dst, data, folder):
    put("=Q", meta(24 + 40), 2**40)(data)
    (dst / "train" / "data.mdb").write_bytes(data)
    assert len(open_split(dst, "train")) == 80
    with pytest.raises(DamagedDatabase, match=r"it leads to page 1099511627776 of \d+"):
        build(folder, dst)


def test_what_is_whole_is_counted(dst):
    file = dst / "train" / "data.mdb"
    expected = Content()
    with lmdb.open(str(file.parent), readonly=True) as database, database.begin() as transaction:
        for key in transaction.cursor().iternext(values=False):
            if not key.startswith(b"/"):
                expected.add(key)
    assert check_file(file) == check_file(file, for_writing=True) == expected
    assert expected.images == 80


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (b"{", "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        (b"[1]", "its header says form None"),
        ({"form": "1"}, "its header says form '1'"),
        ({"form": True}, "its header says form True"),
        ({"classes": 5}, "its header says classes '5'"),
        ({"classes": ["a", 7]}, "its header says classes"),
        ({"classes": ["a", "a"]}, "its header says classes"),
        ({"counts": [40, -1]}, "its header says counts"),
        ({"counts": [40]}, "its header has other numbers of classes, counts and colors"),
        ({"counts": [40, 2**70]}, "its header says counts"),
        ({"counts": [40, 41]}, "its index names 80 files, other ones than the 80 that are in the database"),
        ({"colors": ["red", "blue"]}, "its header says colors"),
        ({"is_complete": "yes"}, "its header says is_complete 'yes'"),
        ({"is_complete": None}, "its header says is_complete 'None'"),
        ({"total_bytes": "many"}, "its header says total_bytes 'many'"),
    ],
)
def test_headers_that_were_not_written_so_are_one_sentence(dst, changed, text):
    with lmdb.open(str(dst / "train")) as database, database.begin(write=True) as transaction:
        if isinstance(changed, dict):
            changed = json.dumps(json.loads(transaction.get(b"/globalvit")) | changed).encode()
        transaction.put(b"/globalvit", changed)
    with pytest.raises(DamagedDatabase, match=rf"train is damaged: {text}.*; copy it again, or build it again with"):
        open_split(dst, "train")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (b"/names", None, "its index names 0 files, other ones than the 80"),
        (b"/names", b"a/000.png\0a/000.png", "its index names 2 files"),
        (b"a/000.png", None, "its index names 80 files, other ones than the 79"),
        (b"/records", b"short", None),
        (b"/records", None, None),
    ],
)
def test_indexes_that_do_not_fit_are_one_sentence(dst, folder, key, value, text):
    with lmdb.open(str(dst / "train")) as database, database.begin(write=True) as transaction:
        transaction.delete(key) if value is None else transaction.put(key, value)
    if text:
        with pytest.raises(DamagedDatabase, match=text):
            open_split(dst, "train")
    if key == b"/records":
        for act in (lambda: verify(dst, folder), lambda: build(folder, dst)):
            with pytest.raises(DamagedDatabase, match=r"its index has 80 names and \d bytes of records"):
                act()


def test_no_damage_makes_the_check_itself_fail(dst, data):
    chance, file, found = random.Random(0), dst / "train" / "damaged", []
    for _ in range(60):
        damaged = bytearray(data)
        page = chance.choice((0, 1, *range(2, len(data) // PAGE))) * PAGE
        for _ in range(chance.choice((1, 2, 8))):
            at, size = page + chance.choice((*range(40), *range(PAGE - 8))), chance.choice((1, 2, 4, 8))
            number = chance.choice((0, 1, 2**16 - 1, 2**31, 2**63, 2**64 - 1, chance.randrange(5000)))
            damaged[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
        file.write_bytes(damaged[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        for for_writing in (False, True):
            try:
                check_file(file, for_writing=for_writing)
                found.append("")
            except DamagedDatabase as error:
                found.append(str(error))
    assert 20 < found.count("") < 100
    assert not any("\n" in text for text in found)
