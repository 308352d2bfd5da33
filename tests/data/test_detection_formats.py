"""The formats of images with objects: one set written in each gives the same samples and losses."""

import logging
from dataclasses import replace

import numpy as np
import object_sets as sets
import pytest
import torch

import globalvit as gv
from globalvit.cli.main import main
from globalvit.cli.validate import ValidateOptions
from globalvit.data.common.loading import to_device, train_loader
from globalvit.data.common.orientation import warn_of_frames
from globalvit.data.common.plans import AspectPlan
from globalvit.data.common.splits import NoSplitError
from globalvit.data.detection.checks import check_detection
from globalvit.data.detection.dataset import open_detection
from globalvit.data.detection.registry import FORMATS, register
from globalvit.data.detection.transforms import DetectTrainTransform, collate_targets
from globalvit.train.config import to_yaml
from globalvit.train.fields import TrainConfig
from globalvit.train.inputs import open_splits

ALL = sets.WITH_OUTLINES | sets.BOXES_ONLY


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    sets.write_coco(root)
    return root


@pytest.fixture
def yolo(tmp_path):
    """A set of YOLO labels, and a way to write one of its label files."""
    sets.write_yolo(tmp_path)

    def write(text, name="train/0"):
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def voc(tmp_path):
    """A set of XML files, and a way to write one of them."""
    sets.write_voc(tmp_path)

    def write(text, name="0"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
        return tmp_path

    return write


def assert_same(source, expected, *, with_masks):
    assert source.classes == expected.classes
    assert len(source) == len(expected)
    for index in range(len(expected)):
        (image, found), (other, wanted) = source.read(index), expected.read(index)
        assert np.array_equal(np.asarray(image), np.asarray(other))
        for name in ("boxes", "labels", "is_crowd"):
            assert np.array_equal(getattr(found, name), getattr(wanted, name)), (index, name)
        given, wanted_given = source.ground_truth(index), expected.ground_truth(index)
        assert np.array_equal(given["boxes"], wanted_given["boxes"])
        assert source.has_masks == with_masks
        if with_masks:
            assert np.array_equal(found.areas, wanted.areas)
            assert given["masks"] == wanted_given["masks"]


@pytest.mark.parametrize("name", ALL)
def test_every_format_gives_the_same_samples(name, reference, tmp_path):
    ALL[name](tmp_path)
    with_masks = name in sets.WITH_OUTLINES
    for split in ("train",) if name in sets.UNSPLIT else ("train", "val"):
        expected = open_detection(reference, split)
        source = open_detection(tmp_path, split, need_masks=with_masks, classes=expected.classes)
        assert_same(source, expected, with_masks=with_masks)
    with_objects = open_detection(tmp_path, "train", with_empty=False)
    assert [with_objects.labels(at) for at in range(3)] == [[0, 2], [1], [1, 0]]


def losses(folder, model):
    augmentation = DetectTrainTransform(short_side=64, long_side=96)
    source = open_detection(folder, "train")
    loader = train_loader(source, augmentation, batch_size=4, seed=3, collate=collate_targets, plan=AspectPlan)
    batch = to_device(next(iter(loader)), augmentation, "cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return {name: float(value) for name, value in model.losses(batch).items()}


def test_the_losses_are_equal_bit_for_bit(reference, tmp_path):
    model = gv.create_model("gcvit_xxtiny_retinanet", num_classes=3, image_size=64, window="ratio", weights=None)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = losses(reference, model)
    assert expected["loss"] > 0
    for name in ("yolo by split", "voc"):
        ALL[name](tmp_path / name)
        model.load_state_dict(state)
        assert losses(tmp_path / name, model) == expected


def test_the_format_is_named_in_the_log(yolo, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        open_detection(tmp_path, "train")
    assert "data.yaml (format yolo): 4 images, 5 objects, 0 crowds" in caplog.text
    assert "train: 1 of 4 images have no label file and show no objects" in caplog.text


def test_two_formats_in_one_folder_are_refused(yolo, tmp_path):
    sets.write_labelme2coco(tmp_path)
    text = (
        r"fits 2 formats: coco \(COCO's JSON, train\.json\) and yolo \(YOLO labels, data\.yaml\); choose one with "
        r"--format NAME$"
    )
    with pytest.raises(ValueError, match=text):
        open_detection(tmp_path, "train")
    assert open_detection(tmp_path, "train", form="yolo").annotations[0].endswith(".txt")
    with pytest.raises(ValueError, match=r"unknown format 'yola'; Did you mean 'yolo'\? expected one of coco, yolo, v"):
        open_detection(tmp_path, "train", form="yola")
    with pytest.raises(ValueError, match=r"does not hold data in the format voc; it fits coco \(.*\) and yolo \("):
        open_detection(tmp_path, "train", form="voc")


def test_a_format_of_ones_own_is_found(tmp_path, reference):
    class Mine:
        name = "mine"

        def matches(self, folder):
            return (folder / "mine").exists()

        def describe(self, folder):
            return f"mine of {folder.name}"

        def splits(self, folder):
            return ["train"] * folder.exists()

        def open(self, folder, split, classes=None, *, crowd_as_instances=False):
            assert (folder.name, classes) == (tmp_path.name, None)
            return FORMATS[0].open(reference, split, crowd_as_instances=crowd_as_instances)

    before = list(FORMATS)
    try:
        register(Mine())
        (tmp_path / "mine").touch()
        assert len(open_detection(tmp_path, "train")) == 4
    finally:
        FORMATS[:] = before


def test_annotations_that_the_user_names(reference, tmp_path):
    sets.save_images(tmp_path, "images/{stem}.png")
    for split, name in (("train", "first.json"), ("val", "second.json")):
        sets.write_json(tmp_path / "labels" / name, sets.coco(split))
    source = open_detection(tmp_path, "val", annotations="labels/second.json")
    assert_same(source, open_detection(reference, "val"), with_masks=True)
    with pytest.raises(FileNotFoundError, match=r"no file of annotations gone\.json; looked for .*gone\.json, "):
        open_detection(tmp_path, "val", annotations="gone.json")
    sets.write_json(tmp_path / "a.json", sets.coco("train"))
    sets.write_json(tmp_path / "b.json", sets.coco("val"))
    with pytest.raises(
        ValueError, match=r"none is named as a split: .*; choose with --train-annotations FILE and --val"
    ):
        open_detection(tmp_path, "train")


def test_settings_of_a_run_choose_format_and_annotations(yolo, tmp_path, reference):
    sets.write_json(tmp_path / "mine.json", sets.coco("train", "images/train/{stem}.png"))
    config = TrainConfig(model="gcvit_xxtiny_retinanet", data_dir=str(tmp_path), format="yolo", keep_empty=True)
    splits = open_splits(config)
    assert_same(splits.train, open_detection(reference, "train"), with_masks=True)
    assert_same(splits.val, open_detection(reference, "val"), with_masks=True)
    splits = open_splits(replace(config, format=None, train_annotations="mine.json", val_annotations="mine.json"))
    assert [len(splits.train), len(splits.val)] == [4, 4]
    assert splits.val.annotations == (tmp_path / "mine.json",)


def test_a_single_file_is_all_that_there_is_to_train_on(tmp_path):
    sets.write_cvat(tmp_path)
    text = r"no annotations of 'val' in .*instances_default\.json\); it has 'train'; --val-split takes another name"
    with pytest.raises(NoSplitError, match=text):
        open_detection(tmp_path, "val")


BAD_LINES = [
    (
        "0 0.5 0.5 0.5",
        r"0\.txt:1: expected 5 columns, class x_center y_center width height, or a class and 3 or .* got 4$",
    ),
    ("0 .5 .5 .2 .2 .9", r"0\.txt:1: expected 5 columns, .* got 6; the last may be a score, as of predictions$"),
    ("\n0 .1 .1 .2 .2 .3 .3 .4", r"0\.txt:2: expected 5 columns, .* got 8$"),
    ("0 .5 .5 .2 x", r"0\.txt:1: expected numbers, got 'x'$"),
    ("0 .5 .5 .2 nan", r"0\.txt:1: expected numbers, got 'nan'$"),
    ("3 .5 .5 .2 .2", r"0\.txt:1: expected a class from 0 to 2, as .*data\.yaml names them, got 3$"),
    ("-1 .5 .5 .2 .2", r"0\.txt:1: expected a class from 0 to 2, .* got -1$"),
    ("0.5 .5 .5 .2 .2", r"0\.txt:1: expected a class from 0 to 2, .* got 0\.5$"),
    ("0 .5 1.2 .2 .2", r"0\.txt:1: expected parts of the image, 0 … 1, got 1\.2$"),
    ("0 -.1 .5 .2 .2", r"0\.txt:1: expected parts of the image, 0 … 1, got -0\.1$"),
    (
        "0 30 20 12 9\n0 30 20 12 9",
        r"0\.txt:1: expected .* 0 … 1, got 30: these may be pixels \(and 1 more lines like it\)$",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_bad_lines_of_yolo_labels_are_named(yolo, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_detection(yolo(text), "train")
    assert "\n" not in str(caught.value)


BAD_YAML = [
    ({"names": "cat"}, r"data\.yaml: names is 'cat'; expected a list of classes, or a mapping 0: name"),
    ({"names": {"0": "a", "2": "b"}}, r"data\.yaml: names has the numbers \['0', '2'\]; expected 0, 1, 2"),
    ({"names": ["a", "b", "a"]}, r"data\.yaml: class 2 has the name 'a'; expected names, each once"),
    ({"nc": 4}, r"data\.yaml: nc is 4, and names has 3 classes; expected the same number"),
    ({"train": "photos"}, r"data\.yaml: train is 'photos', which is not a folder or a list of images below"),
    ({"train": "/etc"}, r"data\.yaml: train is '/etc', which is not a folder or a list of images below"),
    ({"kpt_shape": [17, 3]}, r"data\.yaml has kpt_shape, so its labels hold keypoints; expected labels of boxes"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_YAML)
def test_bad_data_files_of_yolo_sets_are_explained(tmp_path, settings, message):
    sets.write_yolo(tmp_path, **settings)
    with pytest.raises((ValueError, OSError), match=message):
        open_detection(tmp_path, "train")


def test_yolo_lists_never_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "data"
    sets.write_yolo_lists(root)
    sets.save_image(tmp_path / "7.png")
    (root / "train.txt").write_text("./images/train/0.png\n../7.png\n")
    with pytest.raises(
        ValueError, match=r"train\.txt:2: '\.\./7\.png' leads out of .*data; expected such as \./images"
    ):
        open_detection(root, "train")
    (root / "train.txt").write_text("./images/train/none.png\n")
    with pytest.raises(ValueError, match=r"train\.txt:1: '\./images/train/none\.png' is not an image below"):
        open_detection(root, "train")


def test_yolo_labels_without_any_class_names(tmp_path):
    sets.write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(ValueError, match=r"holds YOLO labels, and no file names their classes; expected .*data\.yaml"):
        open_detection(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("apple\npear\nplum\n")
    assert open_detection(tmp_path, "val").classes == sets.NAMES
    (tmp_path / "data.yaml").write_text("names: [")
    with pytest.raises(ValueError, match=r"data\.yaml is not YAML: while parsing"):
        open_detection(tmp_path, "val")


def test_yolo_boxes_have_no_masks_and_unreadable_images_are_named(yolo, caplog, tmp_path):
    folder = yolo("0 .5 .5 .2 .2")
    text = r"1 of 4 annotations of .* have no mask, the first is annotation 1 \(in .*0\.txt\); this model learns masks"
    with pytest.raises(ValueError, match=text):
        open_detection(folder, "train", need_masks=True)
    (folder / "images" / "train" / "1.png").write_bytes(b"no image")
    source = open_detection(folder, "train")
    assert "1 images cannot be read, the first: " in caplog.text
    assert source.labels(1) == []
    for path in (folder / "labels" / "train").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"none of the 4 images of the split 'train' has a label file; expected one such"
    ):
        open_detection(folder, "train")


def test_yolo_labels_are_for_upright_images(tmp_path):
    from PIL import Image

    sets.write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (sets.HEIGHT, sets.WIDTH)).save(tmp_path / "images" / "train" / "1.png", exif=exif)
    image, found = open_detection(tmp_path, "train").read(1)
    assert image.size == (sets.WIDTH, sets.HEIGHT)
    assert found.boxes.tolist() == [[0, 0, 21, 17]]


@pytest.mark.parametrize("others", [3, 6])
@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_one_question_is_asked_about_the_frame_of_a_split(form, others, tmp_path, caplog):
    from PIL import Image

    (sets.write_voc if form == "voc" else sets.write_yolo)(tmp_path)
    place = tmp_path / ("JPEGImages" if form == "voc" else "images/train")
    for name, orientation in (("0", 3), ("1", 3), ("2", others)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = (sets.WIDTH, sets.HEIGHT) if orientation == 3 else (sets.HEIGHT, sets.WIDTH)
        Image.new("RGB", size, (int(name), 0, 0)).save(place / f"{name}.png", exif=exif)
    warn_of_frames(open_detection(tmp_path, "train"))
    # YOLO's labels are for upright images, and an image turned by 90° shows it for all.
    texts = [problem.text for problem in check_detection(tmp_path).problems if "frame" in problem.kind]
    warnings = [line for line in caplog.messages if line.startswith("EXIF turns")]
    assert len(texts) == len(warnings) == (form == "voc" and others == 3)
    assert all(text.startswith("EXIF turns or mirrors 3 images without changing their size") for text in texts)


OBJECT = "<annotation>\n<object><name>apple</name>{}</object></annotation>"
BOX = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
BAD_XML = [
    ("<annotation>", r"0\.xml:1: this is not XML: no element found$"),
    ("", r"0\.xml:1: this is not XML: no element found$"),
    ("<html/>", r"0\.xml: expected <annotation>, got <html>$"),
    (OBJECT.format(""), r"0\.xml:2: the object 'apple' has <bndbox> None, None, None, None; expected numbers <xmin>"),
    (
        OBJECT.format(BOX.format("left")),
        r"0\.xml:2: the object 'apple' has <bndbox> 'left', '2', '9', '9'; expected num",
    ),
    (OBJECT.format(BOX.format("nan")), r"0\.xml:2: the object 'apple' has <bndbox> 'nan', '2', '9', '9'; expected num"),
    (OBJECT.format("<difficult>yes</difficult>" + BOX.format(2)), r"has <difficult> 'yes'; expected 0 or 1$"),
    (
        "<annotation><object><name> </name></object></annotation>",
        r"0\.xml:1: the object has no <name>; expected its class",
    ),
    (
        '<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>',
        r"0\.xml:1: <!DOCTYPE> is not allowed here; remove it$",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_XML)
def test_bad_xml_is_named_with_file_and_line(voc, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_detection(voc(text), "train")
    assert "\n" not in str(caught.value)


def test_difficult_objects_of_voc_are_read_as_crowds(voc):
    folder = voc(OBJECT.format("<difficult>1</difficult>" + BOX.format(3)))
    _, found = open_detection(folder, "train").read(0)
    assert found.is_crowd.tolist() == [True]
    assert found.boxes.tolist() == [[2, 1, 9, 9]]
    _, found = open_detection(folder, "train", crowd_as_instances=True).read(0)
    assert found.is_crowd.tolist() == [False]


def test_voc_sizes_that_do_not_fit_are_named_with_the_image(voc):
    folder = voc(sets.xml("0.png", [], size=(90, 70)))
    text = r"0\.png has 60×44 pixels, but .*Annotations/0\.xml says 90×70; its boxes are of another image"
    with pytest.raises(ValueError, match=text):
        open_detection(folder, "train").read(0)
    assert [problem.kind for problem in check_detection(folder).problems] == ["other size"]


def test_voc_counts_from_0_where_a_corner_shows_it(voc, caplog):
    folder = voc(OBJECT.format(BOX.format(0)))
    with caplog.at_level(logging.INFO):
        _, found = open_detection(folder, "train").read(0)
    assert found.boxes.tolist() == [[0, 2, 9, 9]]
    assert "Annotations: pixels are counted from 0, since " in caplog.text
    assert "0.xml:2 has the corner 0, 2; VOC counts from 1" in caplog.text


def test_voc_without_splits_and_with_other_classes(tmp_path):
    sets.write_voc(tmp_path)
    for path in (tmp_path / "ImageSets" / "Main").iterdir():
        path.unlink()
    source = open_detection(tmp_path, "train")
    assert (len(source), source.classes) == (6, sets.NAMES)
    assert open_detection(tmp_path, "train", classes=(*sets.NAMES, "fig")).classes == (*sets.NAMES, "fig")
    with pytest.raises(ValueError, match=r"not the 2 classes expected: unexpected 'plum'; give every split"):
        open_detection(tmp_path, "train", classes=("apple", "pear"))
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("../../0\n")
    with pytest.raises(ValueError, match=r"trainval\.txt:1: '\.\./\.\./0' leads out of the data set; expected a name"):
        open_detection(tmp_path, "train")
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("99\n")
    with pytest.raises(
        FileNotFoundError, match=r"none of the 1 images of the split 'train' is in .*JPEGImages, such as 99"
    ):
        open_detection(tmp_path, "train")


@pytest.mark.parametrize("name", ["yolo by split", "voc flat", "label studio", "roboflow"])
def test_data_check_names_the_format(name, tmp_path, capsys):
    ALL[name](tmp_path)
    form = {"voc flat": "voc", "yolo by split": "yolo"}.get(name, "coco")
    assert main(["data", "check", "--data-dir", str(tmp_path), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert f"note: format: {form}, " in out
    assert "no problems found" in out
    if name == "yolo by split":
        assert "note: no label file: train: 1 of 4 images have no file of labels and show no objects" in out


def test_data_check_takes_text_files_for_labels_of_objects(yolo, tmp_path, capsys):
    assert main(["data", "check", "--data-dir", str(tmp_path), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "note: format: yolo, YOLO labels, data.yaml" in out
    assert "label map" not in out


def test_data_check_finds_bad_labels_and_takes_given_files(yolo, tmp_path, capsys):
    folder = yolo("9 .5 .5 .2 .2")
    assert main(["data", "check", "--data-dir", str(folder), "--workers", "0"]) == 1
    assert "0.txt:1: expected a class from 0 to 2" in capsys.readouterr().out
    sets.write_json(tmp_path / "mine.json", sets.coco("train"))
    command = ["data", "check", "--data-dir", str(folder), "--workers", "0", "--train-annotations", "mine.json"]
    assert main(command) == 0
    assert "train" in capsys.readouterr().out


def test_values_of_data_files_stay_texts(tmp_path):
    sets.write_yolo(tmp_path, names=None, nc=None, test=None)
    text = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(f"{text}test:\nnames:\n  0: no\n  1: 2024-01-01\n  2: null_\n")
    assert open_detection(tmp_path, "train").classes == ("no", "2024-01-01", "null_")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_files_of_any_name_and_encoding_are_found(tmp_path, reference, encoding):
    sets.write_label_studio(tmp_path)
    path = tmp_path / "result.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert_same(open_detection(tmp_path, "train"), open_detection(reference, "train"), with_masks=True)


def test_an_xml_file_of_another_name_than_its_image(voc, tmp_path):
    (tmp_path / "JPEGImages" / "0.png").rename(tmp_path / "JPEGImages" / "zero.png")
    folder = voc(sets.xml("zero.png", sets.IMAGES["train/0.png"]))
    assert open_detection(folder, "train").name(0).endswith("JPEGImages/zero.png")


def test_folders_one_level_too_high_are_noticed(tmp_path):
    sets.write_voc(tmp_path / "VOC2012")
    with pytest.raises(FileNotFoundError, match=r"or Annotations/ of Pascal VOC\. Did you mean .*/VOC2012\?"):
        open_detection(tmp_path, "train")


def test_the_folder_of_a_split_is_noticed(tmp_path):
    sets.write_roboflow(tmp_path)
    with pytest.raises(NoSplitError, match=r"train looks like a split: did you mean its parent, /.*0\?$"):
        open_detection(tmp_path / "train", "train")


def test_nested_xml_of_any_depth(voc):
    with pytest.raises(ValueError, match=r"0\.xml:1: this is not XML: no element found"):
        open_detection(voc("<annotation>" + "<a>" * 200_000), "train")
    assert len(open_detection(voc("<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>"), "train")) == 4


def test_the_format_of_label_maps_must_fit(yolo, tmp_path):
    config = TrainConfig(model="gcvit_xxtiny_segformer", data_dir=str(tmp_path), format="coco")
    with pytest.raises(ValueError, match=r"does not hold data in the format coco; it fits yolo \("):
        open_splits(config)


def test_unsplit_labels_of_other_formats_are_not_split(yolo, tmp_path, capsys):
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "a")
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "b")
    assert main(["data", "split", str(tmp_path), str(tmp_path.parent / "out")]) == 1
    text = "got object labels in another format; to hold out images, train with --val-fraction"
    assert text in capsys.readouterr().err


def test_validation_takes_format_and_annotations_of_the_run_unless_other_data_are_given(tmp_path):
    trained = TrainConfig(data_dir="a", format="coco", val_annotations="mine.json", val_fraction=0.1)
    (tmp_path / "config.yaml").write_text(to_yaml(trained))

    def settings(**options):
        chosen = ValidateOptions(checkpoint=tmp_path, **options).settings()
        return chosen.format, chosen.val_annotations, chosen.val_fraction

    with pytest.raises(ValueError, match="expected --max-detections from 1 to 1000, got 1001"):
        ValidateOptions(checkpoint=tmp_path, max_detections=1001)
    assert settings() == ("coco", "mine.json", 0.1)
    assert settings(val_annotations="other.json") == ("coco", "other.json", 0)
    assert settings(data_dir="b") == (None, None, 0)
    assert settings(data_dir="b", format="yolo") == ("yolo", None, 0)
