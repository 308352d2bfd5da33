"""`globalvit models`: the table, the file, and counting on the model itself."""

import json
import subprocess
import sys

import pytest
import torch

from globalvit.build import create_model
from globalvit.cli.main import main
from globalvit.cli.models import matching, measure
from globalvit.models.systems import SYSTEMS
from globalvit.models.variants import PUBLISHED, VARIANTS
from globalvit.train.config import RECIPES


def test_the_table_has_counted_and_published_figures_side_by_side(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in VARIANTS)
    (line,) = (line for line in lines if line.split()[:1] == ["gcvit_tiny2"])
    figures = ["gcvit_tiny2", "224", "34.54", "34", "6.18", "5.5", "nvidia_in1k", "83.7", "CC-BY-NC-SA-4.0"]
    assert line.split() == figures


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("gcvit_x*", ["gcvit_xxtiny", "gcvit_xtiny"]),
        ("gcvit_tiny", ["gcvit_tiny"]),
        ("gc_vit_tiny", ["gcvit_tiny"]),
        ("large_", ["gcvit_large_384", "gcvit_large_512"]),
        ("gpvit_l1_segformer", ["gpvit_l1_segformer"]),
        ("gpvit_*_cascade_mask_rcnn", [f"gpvit_l{size}_cascade_mask_rcnn" for size in (1, 2, 3, 4)]),
    ],
)
def test_a_pattern_a_name_an_alias_or_a_part_chooses(pattern, names):
    assert matching(pattern) == names


def test_a_pattern_without_a_match_is_answered_with_the_closest(capsys):
    assert main(["models", "gcvit_tinny"]) == 1
    assert "no model matches 'gcvit_tinny'. Did you mean 'gcvit_tiny'" in capsys.readouterr().err


def test_the_file_holds_everything_known(tmp_path, capsys):
    assert main(["models", "gcvit_large", "--json", str(tmp_path / "m.json")]) == 0
    (model,) = json.loads((tmp_path / "m.json").read_text())
    assert model["params"] == 202_075_570
    assert [weights["weights"] for weights in model["weights"]] == ["nvidia_in1k", "nvidia_in21k_ft_in1k"]
    assert model["weights"][0]["address"].startswith("https://")
    assert "nvidia_in21k_ft_in1k" in capsys.readouterr().out


# The other variants: test_gcvit.py and test_gpvit.py.
@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_what_is_counted_on_the_model_is_what_the_table_says(name):
    counted = measure(name)
    assert counted["params"] == PUBLISHED[name].params
    assert counted["gmacs"] == pytest.approx(PUBLISHED[name].gmacs, rel=5e-3)


def test_measuring_adds_columns(capsys):
    assert main(["models", "gcvit_xxtiny", "--measure"]) == 0
    page = capsys.readouterr().out
    assert "params measured" in page
    assert "11995428" in page


def test_the_table_needs_no_torch():
    code = "import sys; from globalvit.cli.main import main; main(['models']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_systems_stand_beside_what_their_papers_print(capsys):
    assert main(["models", "gpvit_l2_*t*"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if "gpvit" in line}
    assert rows["gpvit_l2_upernet"] == ["gpvit_l2_upernet", "53.43", "53", "50.2", "–", "–"]
    assert " ".join(rows["gpvit_l2_retinanet"][1:]) == "37.91 37 – 48.0 (1x), 49.0 (3x) –"
    assert main(["models", "gpvit_l2_cascade_mask_rcnn"]) == 0
    assert capsys.readouterr().out.split()[-5:] == ["–"] * 5


@pytest.mark.parametrize("name", ["gpvit_l1_upernet", "gcvit_tiny_mask_rcnn"])
def test_a_system_has_the_parameters_of_the_table(name):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == SYSTEMS[name].params


def test_recipes_expect_what_the_table_says():
    for name, system in SYSTEMS.items():
        scores = {"": (system.miou,)} if system.miou else {f"_{key}": (score,) for key, score in system.ap_box}
        for suffix, (score,) in scores.items():
            assert f"{score} " in (RECIPES / f"{name}{suffix}.yaml").read_text(), name


def test_complexity_is_shown_drawn_and_written(tmp_path, capsys):
    files = {ending: tmp_path / f"c.{ending}" for ending in ("png", "csv", "json")}
    words = ["--plot", str(files["png"]), "--csv", str(files["csv"]), "--json", str(files["json"])]
    assert main(["models", "--complexity", "gcvit_xxtiny", "--image-size", "224,256", *words]) == 0
    own, padded, *others = [line.split() for line in capsys.readouterr().out.splitlines() if "gcvit" in line]
    assert (own[-5], own[-3]) == ("2.12", "0.0")
    assert float(padded[-3]) > 10
    assert len(others) == 4
    rows = json.loads(files["json"].read_text())
    assert [row["attention"] for row in rows] == ["own"] * 2 + ["swin"] * 2 + ["full"] * 2
    assert files["csv"].read_text().splitlines()[1].startswith("gcvit_xxtiny,own,224,2120792320,")
    assert files["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--plot", "x.png"], 2, "--image-size, --plot and --csv require --complexity; add it"),
        (["--complexity", "--plot", "x.foo"], 2, "--plot x.foo must end in .png, .pdf, .svg"),
        (["--complexity", "--image-size", "16"], 2, "too small; give 32 pixels or more a side"),
        (["gpvit_l1_upernet", "--complexity"], 1, "expected a classifier, got gpvit_l1_upernet; give its"),
        (["--complexity", "--measure"], 2, "--complexity already counts on the built model; leave out --measure"),
    ],
)
def test_what_complexity_cannot_do_is_said(words, status, message, capsys):
    assert main(["models", *words]) == status
    assert message in capsys.readouterr().err
