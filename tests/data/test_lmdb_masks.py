"""Databases of images and label maps."""

import pickle

import numpy as np
import pytest

from globalvit.cli.main import main
from globalvit.data.classification.dataset import open_split
from globalvit.data.common.loading import train_loader
from globalvit.data.segmentation.class_table import ClassTable
from globalvit.data.segmentation.dataset import LAYOUTS, open_masks
from globalvit.data.segmentation.transforms import SegmentTrainTransform, collate_crops
from globalvit.data.storage import lmdb_build
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_verify import verify


@pytest.fixture
def dst(tmp_path):
    return tmp_path / "lmdb"


def counts(packed):
    return [(split.split, split.classes, split.images, split.written, split.kept, split.removed) for split in packed]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_database_gives_the_samples_of_its_folder(make_masks, dst, layout):
    data = make_masks({"training": 5, "validation": 2}, layout=layout)
    assert counts(build(data, dst)) == [("training", 3, 5, 10, 0, 0), ("validation", 3, 2, 4, 0, 0)]
    for split in ("train", "val"):
        folder, packed = open_masks(data, split), pickle.loads(pickle.dumps(open_masks(dst, split)))
        assert (packed.classes, len(packed)) == (folder.classes, len(folder))
        for index in range(len(folder)):
            for one, other in zip(folder.read(index), packed.read(index), strict=True):
                np.testing.assert_array_equal(one, other)
    assert open_masks(dst, "train").name(0) == str(dst / "training" / "images" / "000.jpg")
    assert verify(dst, data).equal == 14


def test_void_of_a_color_table_is_packed(make_masks, dst):
    data = make_masks({"train": 2}, names=False)
    (data / "class_dict.csv").write_text("name,r,g,b\nsky,1,2,3\nVoid,0,0,0\nroad,4,5,6\n")
    build(data, dst)
    (data / "class_dict.csv").rename(data / "else.csv")
    folder, packed = open_masks(data, "train", class_file=str(data / "else.csv")), open_masks(dst, "train")
    assert packed.classes == ("sky", "road")
    np.testing.assert_array_equal(folder.read(1)[1], packed.read(1)[1])
    assert set(np.unique(packed.read(1)[1])) == {0, 1, 255}


def test_options_of_labels_are_chosen_when_it_is_opened(make_masks, dst):
    build(make_masks({"train": 1}, classes=4, names=False), dst)
    options = {"num_classes": 3, "reduce_zero_label": True}
    plain, reduced = open_masks(dst, "train", num_classes=4).read(0)[1], open_masks(dst, "train", **options).read(0)[1]
    np.testing.assert_array_equal(reduced, np.where(plain == 0, 255, plain - 1))
    with pytest.raises(ValueError, match=r"the classes of .*lmdb are not known; add classes.json"):
        open_masks(dst, "train")


def test_names_and_colors_are_packed_and_brought_up_to_date(make_masks, dst):
    data = make_masks({"train": 2}, classes=2)
    build(data, dst)
    (data / "classes.json").write_text('[{"name": "a", "color": [9, 8, 7]}, {"name": "b", "color": [255, 0, 16]}]')
    assert counts(build(data, dst)) == [("train", 2, 2, 0, 4, 0)]
    source = open_masks(dst, "train")
    assert (source.classes, source.palette.tolist()) == (("a", "b"), [[9, 8, 7], [255, 0, 16]])
    assert source.reader.colors == ClassTable(("a", "b"), ((9, 8, 7), (255, 0, 16))).colors
    with pytest.raises(ValueError, match="are not those expected: class 0 is 'a' and not 'b'"):
        open_masks(dst, "train", classes=("b", "a"))


def test_changed_and_removed_files_are_brought_up_to_date(make_masks, dst):
    data = make_masks({"train": 4})
    build(data, dst)
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        (data / part / "train" / f"001.{suffix}").unlink()
    (data / "annotations" / "train" / "002.png").write_bytes(b"changed")
    assert counts(build(data, dst)) == [("train", 3, 3, 1, 5, 2)]
    found = verify(dst, data)
    assert (found.equal, found.is_equal) == (6, True)


def test_a_build_that_was_stopped_goes_on(make_masks, dst, monkeypatch):
    data = make_masks({"train": 6})
    monkeypatch.setattr(lmdb_build, "BATCH_IMAGES", 3)

    def stop(seen=[]):  # noqa: B006 (counts the calls)
        seen.append(1)
        if len(seen) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(data, dst, on_image=stop)
    with pytest.raises(ValueError, match=r"is half built; finish it by `globalvit data lmdb build"):
        open_masks(dst, "train")
    assert counts(build(data, dst)) == [("train", 3, 6, 6, 6, 0)]
    assert len(open_masks(dst, "train")) == 6


def test_both_kinds_of_database_are_told_apart(make_masks, make_folder, dst):
    masks, classes = make_masks({"train": 1}), make_folder({"train": {"a": 1, "b": 1}})
    build(masks, dst / "masks")
    build(classes, dst / "classes")
    with pytest.raises(ValueError, match=r"holds images with label maps, for segmentation, and not classes"):
        open_split(dst / "masks", "train")
    with pytest.raises(ValueError, match=r"holds classes of images, and no label maps for segmentation"):
        open_masks(dst / "classes", "train")
    with pytest.raises(
        ValueError, match=r"holds images with label maps, but the folder to pack differs in this; give a new"
    ):
        build(classes, dst / "masks")
    with pytest.raises(ValueError, match=r"holds images without label maps, but the folder to pack differs in this"):
        build(masks, dst / "classes")


def test_images_without_labels_are_refused_before_anything_is_written(make_masks, dst):
    data = make_masks({"train": 2, "val": 1})
    (data / "annotations" / "val" / "000.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images in .*images/val have no label map"):
        build(data, dst)
    assert not dst.exists()
    assert counts(build(data, dst, splits=("train",))) == [("train", 3, 2, 4, 0, 0)]
    with pytest.raises(FileNotFoundError, match=r"no folder 'dev' in .*; it holds 'train', 'val'"):
        build(data, dst, splits=("dev",))


def test_loader_processes_read_it(make_masks, dst):
    data = make_masks({"train": 8})
    build(data, dst)
    batches = []
    for root, workers in ((data, 0), (dst, 2)):
        loader = train_loader(
            open_masks(root, "train"),
            SegmentTrainTransform(image_size=32, short_side=32),
            batch_size=4,
            seed=3,
            workers=workers,
            collate=collate_crops,
        )
        batches.append(list(loader))
        loader.close()
    for one, other in zip(*batches, strict=True):
        for key in ("images", "labels", "indices"):
            np.testing.assert_array_equal(one[key], other[key])


def test_the_commands_pack_and_compare(make_masks, dst, capsys):
    data = make_masks({"train": 2})
    assert main(["data", "lmdb", "build", str(data), str(dst)]) == 0
    assert main(["data", "lmdb", "verify", str(dst), str(data)]) == 0
    assert "4 files are identical, no problems found" in capsys.readouterr().out
