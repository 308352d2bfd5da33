"""`globalvit convert --to keras`, and back."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import globalvit as gv
import globalvit.keras as gk
from globalvit.cli.main import main


@pytest.mark.parametrize(("name", "build"), [("gcvit_xxtiny", gk.GCViTXXTiny), ("gpvit_l1", gk.GPViTL1)])
def test_files_go_to_keras_and_back(name, build, reference, relative, tmp_path, capsys):
    expected = reference(name, (64, 64))
    there, back = tmp_path / "there.weights.h5", tmp_path / "back.safetensors"
    assert main(["convert", str(expected.file), str(there), "--to", "keras"]) == 0
    out = capsys.readouterr().out
    assert f"target: {there}, the form of globalvit.keras, " in out
    assert f"model: {name}, 7 classes, 3 input channels" in out
    model = build(weights=there, classes=7, classifier_activation=None, input_shape=(64, 64, 3))
    assert relative(model.predict(expected.images, verbose=0), expected.outputs["head_linear"]) < 1e-4
    assert main(["convert", str(there), str(back), "--to", "ours"]) == 0
    assert f"source: {there}, our form, " in capsys.readouterr().out
    ours, theirs = load_file(back), load_file(expected.file)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert gv.open_checkpoint(back).spec.window == expected.model.spec.window or name == "gcvit_xxtiny"


def test_the_target_must_be_named_for_keras(reference, tmp_path, capsys):
    file = reference("gcvit_xxtiny", (32, 32)).file
    assert main(["convert", str(file), str(tmp_path / "x.h5"), "--to", "keras"]) == 1
    assert r"x.h5 must end in .weights.h5 for the format 'keras'" in capsys.readouterr().err
