"""COCO's files as files: encodings, what is not JSON, and names that lead out of the data folder."""

import copy
import json

import pytest

from globalvit.data.detection.dataset import open_detection


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_other_unicode_encodings_are_read(write, encoding, content):
    content["categories"][0]["name"] = "grün"
    data = json.dumps(content, ensure_ascii=False).encode(encoding)
    assert open_detection(write(data), "train").classes == ("grün", "blue")


NO_JSON = {
    "empty": (b"", "the file is empty; expected COCO's JSON"),
    "blanks": (b" \n ", "the file is empty; expected COCO's JSON"),
    "cut off": (b'{"images": [{"id": 1, ', "this is not JSON: Expecting"),
    "several": (b"{}\n{}\n", "this is not JSON: Extra data"),
    "Latin-1": ('{"images": "é"}'.encode("latin-1"), "this is not JSON in UTF-8 or UTF-16: "),
    "deep": (b"[" * 200_000, "this is JSON nested too deeply to be COCO's"),
    "deep objects": (b'{"a":' * 100_000, "this is JSON nested too deeply to be COCO's"),
    "results": (b"[1, 2]", "this is JSON that is a list, as of results, and not COCO's; expected an object with lists"),
    "a number": (b"5", "this is JSON without images and annotations and categories, and not COCO's"),
    "endless digits": (b'{"images": ' + b"9" * 5000 + b"}", "this is not JSON: Exceeds the limit"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_not_json_of_coco_is_refused_in_one_line(write, name, refused):
    data, message = NO_JSON[name]
    assert message in refused(write(data))


@pytest.mark.parametrize("depth", [50, 400, 900])
def test_deep_values_that_json_still_reads_are_shown_in_short(write, depth, content, refused):
    deep = [1]
    for _ in range(depth):
        deep = [deep]
    for part, key in (("annotations", "bbox"), ("annotations", "segmentation"), ("images", "file_name")):
        edited = copy.deepcopy(content)
        edited[part][0][key] = deep
        assert "[[" in refused(write(edited))


def test_links_in_the_data_folder_may_lead_out_of_it(write, folder, content):
    link = folder / "train" / "link.png"
    if not link.exists():
        link.symlink_to(folder / "train" / "1.png")
    content["images"][0]["file_name"] = "link.png"
    assert open_detection(write(content), "train").read(0)[0].size == (64, 48)


def test_an_absolute_path_in_the_data_folder_is_read(write, folder, content):
    for row in content["images"]:
        row["file_name"] = str(folder / "train" / row["file_name"])
    assert open_detection(write(content), "train").read(2)[0].getpixel((0, 0)) == (3, 0, 0)
