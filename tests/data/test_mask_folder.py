"""Folders of images and label maps."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from globalvit.data.built_in.shapes import SegmentShapes
from globalvit.data.common.holdout import hold_out
from globalvit.data.common.images import UnreadableImage, WrongLabels
from globalvit.data.segmentation.dataset import LAYOUTS, find_splits, open_masks


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation")])
def test_every_layout_is_found(make_masks, layout, names):
    root = make_masks(dict(zip(names, (3, 2), strict=True)), layout=layout)
    train, val = open_masks(root, "train"), open_masks(root, "val")
    assert (len(train), len(val)) == (3, 2)
    assert sorted(find_splits(root)) == sorted(names)
    assert train.classes == ("class 0", "class 1", "class 2")
    image, labels = train.read(1)
    assert (image.size, labels.shape, labels.dtype) == ((24, 20), (20, 24), np.uint8)
    np.testing.assert_array_equal(labels, Image.open(train.label_name(1)))
    np.testing.assert_array_equal(image, Image.open(train.name(1)))


def test_sources_survive_pickling(make_masks):
    source = open_masks(make_masks({"train": 2}), "train")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(0)[1], source.read(0)[1])


def test_folders_within_are_kept_apart(make_masks):
    root = make_masks({"train": 2})
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        (root / part / "train" / "city").mkdir()
        shutil.copy(root / part / "train" / f"001.{suffix}", root / part / "train" / "city" / f"001.{suffix}")
    source = open_masks(root, "train")
    assert [source.name(index)[-7:] for index in range(3)] == ["000.jpg", "001.jpg", "001.jpg"]
    assert source.label_name(2).endswith("annotations/train/city/001.png")


def test_other_files_and_labels_without_a_image_are_counted(make_masks, caplog):
    root = make_masks({"train": 2})
    (root / "images" / "train" / "notes.txt").write_text("x")
    (root / "images" / "train" / "000.jpg").unlink()
    source = open_masks(root, "train")
    assert (len(source), source.other_files, source.unused_labels) == (1, 1, 1)
    assert "1 label maps have no image" in caplog.text


def test_zero_may_be_ignored(make_masks):
    root = make_masks({"train": 1}, classes=4, names=False)
    plain = open_masks(root, "train", num_classes=4).read(0)[1]
    reduced = open_masks(root, "train", num_classes=3, reduce_zero_label=True).read(0)[1]
    np.testing.assert_array_equal(reduced, np.where(plain == 0, 255, plain - 1))


def test_colors_of_the_class_file_are_the_palette_and_read_color_files(make_masks):
    root = make_masks({"train": 1}, classes=2, names=False)
    (root / "classes.json").write_text('[{"name": "a", "color": [9, 9, 9]}, {"name": "b", "color": [1, 200, 3]}]')
    Image.new("RGB", (24, 20), (1, 200, 3)).save(root / "annotations" / "train" / "000.png")
    source = open_masks(root, "train")
    assert source.palette.tolist() == [[9, 9, 9], [1, 200, 3]]
    assert source.read(0)[1].min() == 1


def test_the_built_in_shapes_are_opened_by_name(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    source = open_masks("shapes", "validation", classes=SegmentShapes.classes, num_classes=4)
    assert (len(source), len(source.palette)) == (100, 4)
    assert "for the folder of that name write ./shapes" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 150}, "shapes have 4 classes, background, circle, square, triangle, and not the 150 expected"),
        ({"classes": ("a", "b", "c", "d")}, "and not the 4 expected"),
        ({"reduce_zero_label": True}, "have the background as class 0; leave reduce_zero_label off"),
    ],
)
def test_the_built_in_shapes_are_what_they_are(options, message):
    with pytest.raises(ValueError, match=message):
        open_masks("shapes", "train", **options)


def test_missing_labels_are_listed(make_masks):
    root = make_masks({"train": 3})
    (root / "annotations" / "train" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images in .*images/train have no label map in .*: '001.jpg'"):
        open_masks(root, "train")


def test_two_images_of_one_stem_are_refused(make_masks):
    root = make_masks({"train": 1})
    Image.new("RGB", (24, 20)).save(root / "images" / "train" / "000.png")
    with pytest.raises(ValueError, match=r"several images in .* share the label map '000.png'; rename all but"):
        open_masks(root, "train")


def test_an_empty_split_is_refused(make_masks):
    with pytest.raises(ValueError, match=r"no images in .*images/train; expected .*NAME.jpg and .*NAME.png"):
        open_masks(make_masks({"train": 0}), "train")


def test_a_missing_split_names_those_there_are(make_masks):
    root = make_masks({"training": 1})
    with pytest.raises(FileNotFoundError, match=r"no split 'val' in .*; it holds 'training'. Expected .*images/val"):
        open_masks(root, "val")
    (root / "images" / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*annotations/val of label maps beside .*images/val"):
        open_masks(root, "val")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_masks(root / "nowhere", "train")


def test_a_folder_of_classes_is_told_apart(make_folder):
    with pytest.raises(FileNotFoundError, match=r"no split 'train' in .*; it holds none. Expected .*images/train and"):
        open_masks(make_folder({"train": {"a": 1}}), "train")


def test_wrong_labels_and_unreadable_files_are_told_apart(make_masks):
    root = make_masks({"train": 4})
    labels = root / "annotations" / "train"
    Image.new("L", (24, 20), 3).save(labels / "000.png")
    Image.new("L", (20, 24), 0).save(labels / "001.png")
    (labels / "002.png").write_bytes(b"\x89PNG")
    (root / "images" / "train" / "003.jpg").write_bytes(b"")
    source = open_masks(root, "train")
    with pytest.raises(WrongLabels, match=r"annotations/train/000.png has label 3 but there are 3 classes"):
        source.read(0)
    with pytest.raises(WrongLabels, match=r"001.png is 20×24, but its image .*001.jpg is 24×20"):
        source.read(1)
    for index in (2, 3):
        with pytest.raises(UnreadableImage, match=f"00{index}.* cannot be read as an image"):
            source.read(index)


def rare(root, split="train", value=2):
    """Twenty label maps of classes 0 and 1, of which two show a third class."""
    for index in range(20):
        labels = np.zeros((20, 24), np.uint8)
        labels[:, :9] = 1
        labels[:2, :2] = value if index in (4, 11) else 0
        Image.fromarray(labels).save(root / "annotations" / split / f"{index:03}.png")
    return root


def test_label_maps_are_held_out_by_their_classes(make_masks):
    root = rare(make_masks({"train": 20}))
    source = open_masks(root, "train")
    assert (source.labels(3), source.labels(4)) == ([0, 1], [0, 1, 2])
    for seed in range(4):
        held = hold_out(source, 0.1, seed)
        assert len({4, 11} & set(held)) == 1
        assert len(held) == 3
    (root / "annotations" / "train" / "003.png").write_bytes(b"broken")
    assert source.labels(3) == []
