"""Keras models train on whatever backend the tests run with."""

import keras
import numpy as np
import pytest

import globalvit.keras as gk
from globalvit.data.built_in.digits import Digits
from globalvit.keras.layers import DropPath

SIDE = 32


def digits(split, count=None):
    """Images (N, 32, 32, 3), uint8, and labels."""
    source = Digits(split)
    chosen = range(count or len(source))
    images = [np.asarray(source.read(i).resize((SIDE, SIDE))) for i in chosen]
    return np.stack(images), np.array([source.label(i) for i in chosen], "int32")  # JAX has no int64 by default


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("build", [gk.GCViTXXTiny, gk.GPViTL1], ids=["gcvit", "gpvit"])
def test_fit_learns_the_digits(build):
    images, labels = digits("train", 512)
    model = build(weights=None, classes=10, input_shape=(SIDE, SIDE, 3))
    model.compile(keras.optimizers.AdamW(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(gk.preprocess_input(images), labels, batch_size=64, epochs=4, verbose=0).history
    held_out, answers = digits("val", 128)
    loss, accuracy = model.evaluate(gk.preprocess_input(held_out), answers, batch_size=64, verbose=0)
    print(keras.backend.backend(), history, loss, accuracy)
    assert history["loss"][-1] < 0.75 * history["loss"][0]
    assert accuracy > 0.5


@pytest.mark.slow
@pytest.mark.backends
def test_the_smallest_variant_learns_the_digits_well():
    images, labels = digits("train")
    model = gk.GCViTXXTiny(weights=None, classes=10, input_shape=(SIDE, SIDE, 3))
    model.compile(keras.optimizers.AdamW(5e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(gk.preprocess_input(images), labels, batch_size=64, epochs=8, verbose=0)
    held_out, answers = digits("val")
    _, accuracy = model.evaluate(gk.preprocess_input(held_out), answers, batch_size=60, verbose=0)
    print(keras.backend.backend(), accuracy)
    assert accuracy > 0.9


@pytest.mark.backends
def test_drop_path_leaves_out_whole_images_and_keeps_expectations():
    x = np.ones((4000, 2, 3), "float32")
    layer = DropPath(0.25)
    kept = keras.ops.convert_to_numpy(layer(x, training=True))
    assert set(np.unique(kept.round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean() == pytest.approx(1, abs=0.05)
    assert (keras.ops.convert_to_numpy(layer(x, training=False)) == x).all()


@pytest.mark.usefixtures("toy")
def test_drop_path_grows_over_the_network_and_works_in_training_alone():
    model = gk.GCViTXXTiny(weights=None, classes=3, input_shape=(32, 32, 3))
    rates = [layer.drop_path_rate for layer in model.layers if "_blocks_" in layer.name]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(8)])
    x = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype("float32")
    once, again = (keras.ops.convert_to_numpy(model(x, training=True)) for _ in range(2))
    assert np.abs(once - again).max() > 0
    once, again = (keras.ops.convert_to_numpy(model(x, training=False)) for _ in range(2))
    assert (once == again).all()


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("build", [gk.GCViTXXTiny, gk.GPViTL1])
def test_fresh_weights_are_those_of_the_papers(build):
    model = build(weights=None, classes=3)
    for variable in model.trainable_weights:
        values, name = keras.ops.convert_to_numpy(variable), variable.path.rpartition("/")[2]
        if name in ("bias", "beta", "token"):
            assert not values.any(), variable.path
        elif name == "gamma":
            assert (values == 1).all(), variable.path
        elif values.ndim == 4:
            taps = values.shape[0] * values.shape[1] * (1 if values.shape[3] == 1 else values.shape[2])
            assert np.abs(values).max() == pytest.approx(taps**-0.5, rel=0.2), variable.path
        else:
            assert values.std() == pytest.approx(0.02, rel=0.35), variable.path
