"""Options: flags in every spelling, values of every type, and what is said when one is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from globalvit.cli.options import UsageError, choose, parse, parse_flags


@dataclass(frozen=True)
class Bake:
    """Options of every type the commands use."""

    loaves: tuple[str, ...] = field(metadata={"help": "what to bake", "metavar": "LOAF"})
    batch_size: int = field(default=64, metadata={"help": "loaves at a time"})
    heat: float = field(default=1e-3, metadata={"help": "how hot", "group": "oven"})
    oven: Literal["gas", "wood"] = field(default="gas", metadata={"help": "which oven", "group": "oven"})
    amp: bool = field(default=False, metadata={"help": "louder"})
    crust: bool = field(default=True, metadata={"help": "keep the crust"})
    steam: bool | str = field(default=False, metadata={"help": "steam, or which kind", "metavar": "KIND"})
    window: tuple[int, int] | Literal["ratio"] | None = field(default=None, metadata={"help": "two sides"})
    betas: tuple[float, ...] = field(default=(0.9, 0.999), metadata={"help": "averages"})
    output: Path | None = field(default=None, metadata={"help": "folder", "aliases": ("out",)})
    note: str | None = field(default=None, metadata={"help": "any text"})
    limit: int | None = field(default=10, metadata={"help": "at most"})

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


def bake(*words):
    return parse(Bake, ["rye", *words], "bake", "Bakes bread.", positional=("loaves",))


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
@pytest.mark.parametrize("joint", ["=", " "])
def test_dashes_and_underscores_mean_the_same(flag, joint):
    assert bake(*f"{flag}{joint}3".split()).batch_size == 3


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--amp"], True),
        (["--amp", "true"], True),
        (["--amp=false"], False),
        (["--amp", "False"], False),
        (["--amp=1"], True),
        (["--no-amp"], False),
        (["--no_amp"], False),
        (["--amp", "--no-amp"], False),
        (["--amp", "white"], True),
    ],
)
def test_booleans_stand_bare_or_with_a_value(words, value):
    assert bake(*words).amp is value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--heat", "5e-4"], "heat", 5e-4),
        (["--heat", "-1"], "heat", -1.0),
        (["--oven", "wood"], "oven", "wood"),
        (["--steam"], "steam", True),
        (["--steam", "wet"], "steam", "wet"),
        (["--no-steam"], "steam", False),
        (["--window", "7", "14"], "window", (7, 14)),
        (["--window", "7,14"], "window", (7, 14)),
        (["--window=[7,14]"], "window", (7, 14)),
        (["--window", "ratio"], "window", "ratio"),
        (["--window", "none"], "window", None),
        (["--betas", "0.9"], "betas", (0.9,)),
        (["--betas", "0.9", "0.95", "0.99"], "betas", (0.9, 0.95, 0.99)),
        (["--out", "a b/[c]"], "output", Path("a b/[c]")),
        (["--out", "#1"], "output", Path("#1")),
        (["--out", "12"], "output", Path("12")),
        (["--note", "#1: [x]"], "note", "#1: [x]"),
        (["--note=true"], "note", "true"),
        (["--limit", "None"], "limit", None),
        (["--batch-size", "1", "--batch-size", "2"], "batch_size", 2),
    ],
)
def test_values_are_read_by_the_type_of_the_field(words, name, value):
    assert getattr(bake(*words), name) == value


def test_words_without_a_flag_fill_the_positional_field():
    assert bake("--batch-size", "2", "white", "--", "--sour").loaves == ("rye", "white", "--sour")


def test_numbers_are_gathered_up_to_the_length_of_the_field():
    assert bake("--window", "7", "14", "21").loaves == ("rye", "21")


def test_parse_flags_returns_only_what_was_given():
    given = parse_flags(Bake, ["--batch_size", "64", "--no-crust"], "bake", "Bakes bread.", positional=("loaves",))
    assert given == {"batch_size": 64, "crust": False}


@pytest.mark.parametrize("words", [["--local-rank", "3"], ["--local_rank=3"]])
def test_the_rank_of_old_launchers_is_ignored(words):
    assert bake(*words) == bake()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bach-size", "3"], r"unknown option --bach-size\. Did you mean '--batch-size'\? See bake --help"),
        (["--no-heat"], r"unknown option --no-heat"),
        (["-b", "3"], r"unknown option -b"),
        (["--batch", "3"], r"unknown option --batch\. Did you mean '--batch-size'\? See bake --help"),
        (["--work_dir", "x"], r"unknown option --work_dir\. Did you mean '--output'\? See bake --help"),
        (["--imgsz", "3"], r"unknown option --imgsz\. See bake --help"),
        (
            ["--eval", "bbox", "segm"],
            r"unknown option --eval: the model's task decides what is measured",
        ),
        (["--metrics", "accuracy"], r"unknown option --metrics: the model's task decides .*; leave it out"),
        (["--launcher=pytorch"], r"unknown option --launcher: start the command with torchrun"),
        (["--batch-size", "many"], r"--batch-size 'many' is not understood: expected a whole number"),
        (["--batch-size", "3.5"], r"--batch-size '3.5' is not understood: expected a whole number"),
        (["--heat", "hot"], r"expected a number"),
        (["--limit", "x"], r"expected a whole number or none"),
        (["--amp=maybe"], r"--amp 'maybe' is not understood: expected true or false"),
        (["--oven", "wod"], r"expected one of gas, wood\. Did you mean 'wood'\?"),
        (["--window", "7"], r"expected 2 whole numbers or one of ratio or none"),
        (["--batch-size"], r"--batch-size requires a value: a whole number"),
        (["--batch-size", "--amp", "3"], r"--batch-size requires a value"),
        (["--batch-size", "0"], r"batch_size=0 must be at least 1"),
    ],
)
def test_bad_use_is_one_line_that_says_what_came_and_what_was_expected(words, text):
    with pytest.raises(UsageError, match=text) as caught:
        bake(*words)
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named():
    with pytest.raises(UsageError, match=r"bake requires LOAF; see bake --help"):
        parse(Bake, [], "bake", "Bakes bread.", positional=("loaves",))


def test_a_word_too_many_is_named():
    with pytest.raises(UsageError, match=r"unexpected 'rye': bake takes flags only; see bake --help"):
        parse_flags(Bake, ["rye"], "bake", "Bakes bread.")


def test_help_shows_flags_groups_and_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        bake("--help")
    page = capsys.readouterr().out
    assert stop.value.code == 0
    assert page.startswith("usage: bake LOAF... [options]\n\nBakes bread.\n")
    assert "\n  --batch-size N          loaves at a time (default: 64)\n" in page
    assert "\noven:\n  --heat X                how hot (default: 0.001)\n" in page
    assert "\n  --oven gas|wood         which oven (default: gas)\n" in page
    assert "\n  --crust, --no-crust     keep the crust (default: on)\n" in page
    assert "\n  --steam [KIND]          steam, or which kind\n" in page
    assert max(map(len, page.splitlines())) <= 80


def test_a_command_is_chosen_by_its_first_word():
    assert choose({"rye": "dark", "white": "light"}, ["rye", "--amp"], "bake", "Bakes.") == ("rye", ["--amp"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["ry"], r"unknown command 'ry' of bake\. Did you mean 'rye'\? Known: rye, white"),
        ([], r"bake requires a command\. Known: rye, white"),
    ],
)
def test_an_unknown_command_is_answered_with_the_closest(words, text):
    with pytest.raises(UsageError, match=text):
        choose({"rye": "dark", "white": "light"}, words, "bake", "Bakes.")


def test_some_flags_add_to_what_they_hold_when_given_again():
    @dataclass(frozen=True)
    class Guests:
        names: tuple[str, ...] = field(default=("me",), metadata={"help": "who", "adds": True})
        days: tuple[int, ...] = field(default=(1,), metadata={"help": "when"})

    words = ["--names", "a,b", "--days", "1,2", "--names=c", "--days", "3"]
    assert parse(Guests, words, "invite", "Invites.") == Guests(names=("a", "b", "c"), days=(3,))
