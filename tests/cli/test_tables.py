"""Tables and the files that hold the same rows."""

import csv
import json

from globalvit.cli import tables
from globalvit.jobs import files

ROWS = [{"name": "a [x]" + "y" * 200, "score": "1.0"}, {"name": "b,c", "score": "–"}]


def test_a_table_that_is_not_on_a_terminal_is_never_cut(capsys):
    tables.show(ROWS)
    page = capsys.readouterr().out
    assert ROWS[0]["name"] in page
    assert "\x1b" not in page


def test_numbers_are_rounded_and_a_missing_one_is_a_dash():
    assert [tables.number(79.96, 1), tables.number(None, 1)] == ["80.0", "–"]


def test_files_hold_the_rows(tmp_path):
    files.write_json(tmp_path / "new" / "x.json", ROWS)
    files.write_csv(tmp_path / "x.csv", ["name", "score"], [row.values() for row in ROWS])
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == ROWS
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == ROWS
