"""File and class names that are hard to write: not UTF-8, with line breaks, very long, alike but for case."""

import csv
import io
import json
import os
import sys
from pathlib import PurePosixPath

import pytest

from globalvit.cli import tables
from globalvit.cli.main import main
from globalvit.data.segmentation.class_table import read_class_file
from globalvit.jobs import files
from globalvit.jobs.images import LONGEST_NAME, Source, Writer
from globalvit.printable import printable
from globalvit.train.config import load_config
from globalvit.train.plots import plot_confusion

NAMES = [os.fsdecode(b"caf\xe9.png"), 'a\nb,"c".png', "🍎.png", "tab\t.png", "back\\slash.png", "\r.png"]


def test_json_and_csv_keep_every_name(tmp_path):
    files.write_json(tmp_path / "names.json", {"names": NAMES})
    assert json.loads((tmp_path / "names.json").read_text(encoding="utf-8"))["names"] == NAMES
    files.write_csv(tmp_path / "names.csv", ["name", "score"], [(name, 1) for name in NAMES])
    with (tmp_path / "names.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [r"caf\udce9.png", *NAMES[1:]]


def test_names_are_printed_on_one_line():
    assert printable("a\nb\x1b[31m\u202e\u2028" + NAMES[0]) == r"a\nb\x1b[31m\u202e\u2028caf\udce9.png"
    assert printable("é 日本 🍎‍👩 \\n") == "é 日本 🍎‍👩 \\n"


def test_tables_and_lines_survive_a_strict_terminal(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--version"]) == 0
    tables.show([{"image": name, "class": "é"} for name in NAMES])
    tables.write_line(NAMES[0])
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert r"caf\udce9.png" in text
    assert r'a\nb,"c".png' in text
    assert text.count(".png") == len(NAMES) + 1


def test_written_images_have_names_that_file_systems_take(tmp_path):
    writer = Writer(tmp_path)
    places = [writer.place(Source(name, PurePosixPath(name)), "-mask.png") for name in ("a.jpg", "A.jpg", "a.png")]
    assert [place.name for place in places] == ["a-mask.png", "A-mask-2.png", "a-mask-3.png"]
    long = writer.place(Source("é" * 125 + ".jpg", PurePosixPath("é" * 125 + ".jpg")), "-mask.png").name
    assert long == "é" * 123 + "-mask.png"
    assert len(os.fsencode(long)) <= LONGEST_NAME


@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_a_byte_order_mark_is_no_part_of_a_class(tmp_path, name):
    (tmp_path / name).write_text('\ufeff["a", "b"]' if name.endswith("json") else "\ufeffa\nb\n", encoding="utf-8")
    assert read_class_file(tmp_path / name).names == ("a", "b")


def test_a_byte_order_mark_is_no_part_of_a_setting(tmp_path):
    (tmp_path / "mine.yaml").write_text("\ufeffmodel: gcvit_xxtiny\n", encoding="utf-8")
    assert load_config(tmp_path / "mine.yaml").model == "gcvit_xxtiny"


def test_a_confusion_matrix_is_drawn_of_any_names(tmp_path):
    plot_confusion(tmp_path / "matrix.png", [[1, 0], [0, 1]], [NAMES[0], r"$\nosuch$"])
    assert (tmp_path / "matrix.png").stat().st_size
