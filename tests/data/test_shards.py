"""Tar shards in place of folders: the same samples in the same order, and what is said of shards that are not sound."""

import io
import json
import os
import pickle
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from globalvit.cli.main import main
from globalvit.data.classification.checks import check_folder
from globalvit.data.classification.dataset import open_split
from globalvit.data.common.images import UnreadableImage
from globalvit.data.segmentation.dataset import open_masks
from globalvit.data.storage.fingerprint import fingerprint
from globalvit.data.storage.shard_build import pack
from globalvit.data.storage.tar_index import index_shard


def png(value=0):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members, form=tarfile.PAX_FORMAT):
    """Write a tar file of {name: bytes, or a TarInfo}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            data = content if isinstance(content, bytes) else b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def kind(number, link=""):
    member = tarfile.TarInfo()
    member.type, member.linkname = number, link
    return member


def same(one, other):
    assert (one.classes, len(one)) == (other.classes, len(other))
    for index in range(len(one)):
        assert one.label(index) == other.label(index)
        assert np.array_equal(one.read(index), other.read(index))
    names = [
        [source.name(index).removeprefix(f"{source.root}{os.sep}") for index in range(len(one))]
        for source in (one, other)
    ]
    assert names[0] == names[1]
    assert fingerprint(one) == fingerprint(other)


@pytest.fixture
def packed(make_folder):
    """A folder, and the same as shards."""
    data = make_folder({"train": {"10": 3, "9": 2}, "val": {"9": 2}})
    (data / "train" / "9" / "a.b.png").write_bytes(png(7))
    target = data.with_name("shards")
    pack(data, target)
    return data, target


@pytest.fixture
def refused(tmp_path):
    """Open a shard of these members, and return why it is refused."""

    def text_of(members, prepare=lambda _: None):
        path = write_tar(tmp_path / "data" / "train" / "000.tar", members)
        prepare(path)
        with pytest.raises(ValueError, match=r"000\.tar") as caught:
            open_split(tmp_path / "data", "train")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(path))

    return text_of


def test_shards_give_what_the_folder_gives(packed):
    data, target = packed
    assert sorted(path.name for path in target.iterdir()) == ["classes.json", "train", "val"]
    classes = open_split(data, "train").classes
    for split in ("train", "val"):
        same(open_split(data, split, classes), pickle.loads(pickle.dumps(open_split(target, split, classes))))
    with tarfile.open(target / "train" / "000000.tar") as archive:
        assert archive.getnames()[:3] == ["000000000.png", "000000000.cls", "000000000.json"]
        assert archive.extractfile("000000000.png").read() == (data / "train" / "9" / "000.png").read_bytes()


def test_classes_without_images_are_named(packed, caplog):
    open_split(packed[1], "val")
    assert "has no images of 1 of the 2 classes, so their recall cannot be measured: '10'" in caplog.text


def test_label_maps_too(make_masks, tmp_path):
    data, target = make_masks({"train": 3, "val": 2}), tmp_path / "shards"
    pack(data, target)
    for split in ("train", "val"):
        one, other = open_masks(data, split), open_masks(target, split)
        assert one.classes == other.classes
        for index in range(len(one)):
            assert all(np.array_equal(*pair) for pair in zip(one.read(index), other.read(index), strict=True))
        assert fingerprint(one) == fingerprint(other)


def test_a_new_shard_begins_at_the_size_given(tmp_path):
    for number in range(5):
        values = np.random.default_rng(number).integers(0, 256, (400, 500, 3), dtype=np.uint8)
        path = tmp_path / "data" / "train" / "cat" / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    (split,) = pack(tmp_path / "data", tmp_path / "shards", shard_size=1)
    assert (split.images, split.shards) == (5, 3)
    same(open_split(tmp_path / "data", "train"), open_split(tmp_path / "shards", "train"))


def test_lists_of_shards(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"a-train-{number:03}.tar", [(f"{number}.png", png(number)), (f"{number}.cls", b"cat")])
    assert len(open_split(tmp_path, "train")) == 3
    assert len(open_split(tmp_path, "a-train-{001..002}.tar")) == 2
    assert len(open_split(tmp_path, "a-train-00{0,2}.tar")) == 2
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 shards .* do not exist, the first is .*a-train-003\.tar"):
        open_split(tmp_path, "a-train-{000..003}.tar")
    with pytest.raises(ValueError, match=r"expected a range from a lower to a higher number, .*, got \{3\.\.1\}"):
        open_split(tmp_path, "a-train-{3..1}.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_one_shard_per_class_in_every_form_of_tar(tmp_path, form):
    name = f"{'n' * 90}" if form == tarfile.USTAR_FORMAT else "n" * 200
    for number, wnid in enumerate(("n01440764", "n01443537")):
        write_tar(tmp_path / "train" / f"{wnid}.tar", [(f"{name}.JPEG", png(number))], form)
    source = open_split(tmp_path, "train")
    assert source.classes == ("n01440764", "n01443537")
    assert [source.label(0), source.label(1)] == [0, 1]
    assert source.read(1).getpixel((0, 0)) == (1, 0, 0)


def test_class_folders_packed_by_tar(make_folder, tmp_path):
    data = make_folder({"train": {"cat": 2, "dog": 1}})
    (tmp_path / "tars").mkdir()
    subprocess.run(["tar", "cf", str(tmp_path / "tars" / "train.tar"), "-C", str(data / "train"), "."], check=True)
    one, other = open_split(data, "train"), open_split(tmp_path / "tars", "train")
    assert one.classes == other.classes
    assert sorted(other.label(index) for index in range(3)) == [0, 0, 1]


def test_archives_beside_what_was_unpacked_are_left_alone(make_folder):
    data = make_folder({"train": {"cat": 2, "dog": 1}})
    write_tar(data / "ILSVRC2012_img_train.tar", [("a.png", png())])
    write_tar(data / "train" / "cat.tar", [("a.png", png())])
    assert len(open_split(data, "train")) == 3
    assert not check_folder(data).problems


def test_numbers_and_json_labels(tmp_path):
    members = [("x/a.png", png()), ("x/a.json", b'{"label": 2}'), ("x/b.png", png()), ("x/b.cls", b"\xef\xbb\xbf0\n")]
    write_tar(tmp_path / "train" / "0.tar", members)
    source = open_split(tmp_path, "train")
    assert source.classes == ("0", "2")
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    source = open_split(tmp_path, "train")
    assert [source.classes[source.label(index)] for index in range(2)] == ["cat", "owl"]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"member 'x/a.png' has the label 2, and the class file has 2 classes"):
        open_split(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt: expected the names of the classes, each once"):
        open_split(tmp_path, "train")


def test_the_index_is_kept_and_made_again(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "train" / "0.tar", [("a.png", png(1)), ("a.cls", b"cat")])
    first = index_shard(path)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert index_shard(path) == first
    source = open_split(tmp_path, "train")
    write_tar(path, [("b.png", png(2)), ("b.cls", b"cat"), ("c.png", png(3)), ("c.cls", b"cat")])
    with pytest.raises(UnreadableImage, match=r"0\.tar, member 'a\.png' cannot be read: the shard was written again"):
        source.read(0)
    assert len(open_split(tmp_path, "train")) == 2
    (path.parent / ".0.tar.index").write_text("{}")
    assert len(open_split(tmp_path, "train")) == 2


def test_the_index_lies_in_the_cache_where_the_shards_cannot_be_written_to(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "train" / "0.tar", [("a.png", png()), ("a.cls", b"cat")])
    (path.parent / ".0.tar.index").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index_shard(path)
    assert len(list((tmp_path / "cache" / "globalvit" / "shards").iterdir())) == 1


SAMPLE = [("a.png", png()), ("a.cls", b"cat")]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("../a.png", png())], ", member '../a.png' leads out of the shard; expected a relative path without '..'"),
        ([("/etc/a.png", png())], ", member '/etc/a.png' leads out of the shard"),
        ([("x\\..\\a.png", png())], ", member 'x\\\\..\\\\a.png' leads out of the shard"),
        ([("a.png", kind(tarfile.SYMTYPE, "/etc/passwd"))], ", member 'a.png' is a link to '/etc/passwd'; expected"),
        ([("a.png", kind(tarfile.LNKTYPE, "b.png"))], ", member 'a.png' is a link to 'b.png'; expected regular files"),
        ([("a.png", kind(tarfile.CHRTYPE))], ", member 'a.png' is a device, a pipe or of an unknown kind"),
        ([("a.png", kind(tarfile.FIFOTYPE))], ", member 'a.png' is a device, a pipe or of an unknown kind"),
        ([*SAMPLE, *SAMPLE], ", member 'a.png' occurs twice; expected one file per name"),
        ([*SAMPLE, ("b.png", png())], ", member 'b.png'; expected KEY.cls or KEY.json with \"label\" for each KEY.jpg"),
        ([("a.png", png())], ", member 'a.png' has no label; expected KEY.cls or KEY.json"),
        ([*SAMPLE, ("b.cls", b"1")], ": sample 'b' has a label and no image; expected one image per label"),
        ([*SAMPLE, ("a.jpg", png())], ": sample 'a' has a label and 2 images, 'a.png', 'a.jpg'; expected one image"),
        ([*SAMPLE, ("b.png", png()), ("b.cls", b"1")], ", member 'a.png' has a class name as its label, and others"),
        ([("a.cls", b"")], ", member 'a.cls' is empty; expected the number or the name of a class"),
        ([("a.cls", b"\xff")], ", member 'a.cls' is not valid UTF-8"),
        ([("a.json", b"{")], ", member 'a.json' is not valid JSON"),
        ([("a.json", b"[" * 100_000)], ", member 'a.json' is not valid JSON"),
        ([("a.cls", b"1" * 5000)], ", member 'a.cls' has 5000 bytes, and a label at most 4096"),
        ([("a.txt", b"")], "expected members KEY.jpg and KEY.cls"),
    ],
)
def test_what_a_shard_must_not_hold(refused, members, text, tmp_path):
    found = refused(members) if members != [("a.txt", b"")] else None
    if found is None:
        write_tar(tmp_path / "data" / "train" / "000.tar", members)
        with pytest.raises(ValueError, match=text):
            open_split(tmp_path / "data", "train")
        return
    assert text in found


@pytest.mark.parametrize("end", [100, 512, 700, 1024, 1500, 2048])
def test_a_shard_that_is_cut_short(refused, end):
    text = refused(SAMPLE, lambda path: os.truncate(path, end))
    assert " is damaged or cut short after " in text
    assert "copy it or pack it again" in text


def test_shards_joined_by_cat(refused):
    text = refused(SAMPLE, lambda path: path.write_bytes(path.read_bytes() * 2))
    assert text.startswith(" goes on after its end, as tar files joined by `cat` do")


def test_a_damaged_header(refused):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[1024:1030] = b"damage"
        path.write_bytes(data)

    assert " is damaged or cut short after member 'a.png'" in refused(SAMPLE, damage)


def test_a_negative_size_does_not_send_the_reader_back(refused):
    def damage(path):
        header = bytearray(path.read_bytes()[:512])
        header[124:136] = b"\xff" * 11 + b"\x00"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + path.read_bytes()[512:])

    assert refused(SAMPLE, damage) == ", member 'a.png' has a negative size; pack it again"


def test_compressed_shards(tmp_path):
    for name in ("0.tar.gz", "0.tar"):
        path = tmp_path / name[-3:] / "train" / name
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:gz"):
            pass
        with pytest.raises(ValueError, match=r"is compressed \(gzip\), .* unpack it to a \.tar file"):
            open_split(path.parents[1], "train")


def test_check_reads_shards(packed, make_masks, tmp_path):
    report = check_folder(packed[1])
    assert [(split.name, split.images, split.unreadable) for split in report.splits] == [("train", 6, 0), ("val", 2, 0)]
    assert not report.problems
    pack(make_masks({"train": 2}), tmp_path / "maps")
    assert main(["data", "check", "--data-dir", str(tmp_path / "maps")]) == 0


def test_the_command(packed, tmp_path, capsys):
    data, target = packed
    assert main(["data", "pack", str(data), str(tmp_path / "out"), "--to=shards", "--splits=val"]) == 0
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["classes.json", "val"]
    assert "out is complete" in capsys.readouterr().out
    assert main(["data", "pack", str(data), str(target)]) == 1
    assert "is not an empty folder; give a new or an empty one" in capsys.readouterr().err
    assert main(["data", "pack", str(data), str(data / "inner")]) == 1
    assert "the folder to pack; give another one" in capsys.readouterr().err
    assert main(["data", "pack", str(target), str(tmp_path / "again")]) == 1
    assert "train is packed already; give the folder of images" in capsys.readouterr().err
    assert main(["data", "pack", str(data), str(target), "--shard-size=0"]) == 2
    assert "--shard-size 0 must be 1 or more" in capsys.readouterr().err


def test_a_failed_build_leaves_nothing(packed, tmp_path):
    data, _ = packed
    (data / "train" / "9" / "gone.png").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="gone"):
        pack(data, tmp_path / "out")
    assert not any((tmp_path / "out").rglob("*")) or not list((tmp_path / "out").iterdir())


def test_a_sample_without_its_label_map(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", [("a.jpg", png()), ("a.png", png()), ("b.jpg", png())])
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b"]))
    with pytest.raises(ValueError, match=r"0\.tar: sample 'b' has b\.jpg; expected an image and its label map"):
        open_masks(tmp_path, "train")
