"""Models and weights go to files and come back."""

import keras
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import globalvit as gv
import globalvit.keras as gk
from globalvit.keras.files import read_file
from globalvit.keras.load import state_dict, variables
from globalvit.weights import keras as keras_form

APPLICATIONS = {"gcvit_xxtiny": gk.GCViTXXTiny, "gpvit_l1": gk.GPViTL1}
LOAD = """
import sys, numpy as np, keras, globalvit.keras
for file in sys.argv[1:]:
    model = keras.models.load_model(file)
    saved = np.load(file + ".npz")
    outputs = model.predict(saved["images"], verbose=0)
    print(np.abs(outputs - saved["outputs"]).max() / np.abs(saved["outputs"]).max(), model.name)
"""


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 40, 56, 3)).astype("float32")


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_a_saved_model_is_loaded_and_saved_again(name, images, tmp_path, relative):
    model = APPLICATIONS[name](weights=None, classes=5, input_shape=(40, 56, 3))
    outputs = model.predict(images, verbose=0)
    for file in ("model.keras", "again.keras"):
        model.save(tmp_path / file)
        model = keras.models.load_model(tmp_path / file)
        assert relative(model.predict(images, verbose=0), outputs) < 1e-6


# On another backend that is always tested, below.
@pytest.mark.slow
@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_a_saved_model_loads_in_a_fresh_process(name, images, tmp_path, fresh_process):
    file = tmp_path / "model.keras"
    model = APPLICATIONS[name](weights=None, classes=5, input_shape=(40, 56, 3))
    model.save(file)
    np.savez(f"{file}.npz", images=images, outputs=model.predict(images, verbose=0))
    difference, its_name = fresh_process(LOAD, file).split()
    assert float(difference) < 1e-6
    assert its_name == name


@pytest.mark.usefixtures("toy")
def test_models_saved_on_one_backend_answer_the_same_on_another(reference, tmp_path, fresh_process):
    size = (40, 56)
    for name, build in APPLICATIONS.items():
        # As PyTorch's model of the same weights answers: values at which every parameter matters.
        expected = reference(name, size)
        model = build(weights=expected.file, classes=7, classifier_activation=None, input_shape=(*size, 3))
        model.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.keras.npz", images=expected.images, outputs=expected.outputs["head_linear"])
    files = (tmp_path / f"{name}.keras" for name in APPLICATIONS)
    answers = [line.split() for line in fresh_process(LOAD, *files, backend="jax").splitlines()]
    assert [name for _, name in answers] == list(APPLICATIONS)
    assert all(float(difference) < 1e-5 for difference, _ in answers), answers


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", APPLICATIONS)
def test_weights_files_of_keras_are_taken_with_and_without_a_head(name, images, tmp_path, relative):
    model = APPLICATIONS[name](weights=None, classes=5)
    model.save_weights(tmp_path / "x.weights.h5")
    again = APPLICATIONS[name](weights=str(tmp_path / "x.weights.h5"), classes=5)
    assert relative(again.predict(images, verbose=0), model.predict(images, verbose=0)) < 1e-6
    headless = APPLICATIONS[name](weights=tmp_path / "x.weights.h5", include_top=False)
    expected = keras.Model(model.inputs, model.get_layer("norm").output)
    assert relative(headless.predict(images, verbose=0), expected.predict(images, verbose=0)) < 1e-6


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path, make_pipe):
    model = APPLICATIONS["gcvit_xxtiny"](weights=None, classes=5)
    kernel = variables(model)["head_linear/kernel"]
    kernel.assign(np.full(kernel.shape, value, np.float32))
    safe, own = tmp_path / "x.safetensors", tmp_path / "x.weights.h5"
    save_file(state_dict(model), safe)
    model.save_weights(own)
    for path in (safe, own):
        message = f"{path} has NaN or infinity in 1 of its entries: 'head_linear/kernel'; take an earlier checkpoint"
        with pytest.raises(ValueError, match=message):
            APPLICATIONS["gcvit_xxtiny"](weights=path, classes=5)
    make_pipe(tmp_path / "pipe.weights.h5")
    with pytest.raises(OSError, match=r"is a pipe \(FIFO\), expected a regular file; give a weight file"):
        read_file(tmp_path / "pipe.weights.h5")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", APPLICATIONS)
def test_weights_come_back_to_torch_as_they_were(name, reference):
    expected = reference(name, (64, 64))
    model = APPLICATIONS[name](weights=expected.file, classes=7, input_shape=(64, 64, 3))
    state, own = gk.state_dict(model), expected.model.state_dict()
    assert state.keys() == own.keys()
    for key, value in own.items():
        if not key.endswith("num_batches_tracked"):
            assert np.array_equal(state[key], value.numpy()), key
    fresh = gv.create_model(name, num_classes=7, image_size=64)
    assert gv.load_weights(fresh, state).fresh == ()


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gcvit_small", "gpvit_l1", "gpvit_l4"])
def test_names_are_those_of_torch_both_ways(name):
    with torch.device("meta"):
        own = gv.create_model(name).state_dict()
    state = {key: np.broadcast_to(np.float32(0), tuple(value.shape)) for key, value in own.items()}
    variables = keras_form.from_ours(state)
    assert {key: value.shape for key, value in keras_form.to_ours(variables).items()} == {
        key: value.shape for key, value in state.items()
    }


@pytest.mark.usefixtures("toy")
def test_tables_are_resized_to_the_windows_of_the_input_shape(reference, relative):
    expected = reference("gcvit_xxtiny", (224, 224))
    model = gk.GCViTXXTiny(weights=expected.file, classes=7, input_shape=(64, 96, 3))
    theirs = gv.create_model("gcvit_xxtiny", expected.file, num_classes=7, image_size=(64, 96)).state_dict()
    state = gk.state_dict(model)
    key = "backbone.stages.2.blocks.0.attention.bias_table"
    assert state[key].shape == (7**2, 4)
    assert relative(state[key], theirs[key].numpy()) < 1e-5


@pytest.mark.usefixtures("toy")
def test_the_norms_of_a_backbones_other_outputs_are_fresh(reference):
    expected = reference("gpvit_l1", (64, 64))
    state = gk.state_dict(gk.backbone("gpvit_l1", weights=expected.file, outputs=(0, 2)))
    assert (state["backbone.norms.0.weight"] == 1).all()
    assert np.array_equal(state["backbone.norm.weight"], expected.model.backbone.norm.weight.detach().numpy())
