"""The examples that users of tfgcvit know, with the import line changed, fresh weights and generated data."""

import keras
import numpy as np
import pytest

import globalvit.keras as gk

EVALUATION_METRICS = ["accuracy", "sparse_top_k_categorical_accuracy"]


def generated(count, side, classes, dtype="uint8"):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, side, side, 3)).astype(dtype)
    return images, random.integers(0, classes, count)


def default_use(build):
    images, labels = generated(2, 224, 1000)
    model = build(weights=None)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model.fit(gk.preprocess_input(images), labels, verbose=0)


def custom_classification(build):
    from keras import layers, models

    images, labels = generated(2, 224, 100)
    inputs = layers.Input(shape=(224, 224, 3), dtype="uint8")
    outputs = layers.Lambda(gk.preprocess_input)(inputs)
    outputs = build(include_top=False, weights=None)(outputs)
    # The map is pooled by hand there; Keras 3's loss wants one answer an image.
    outputs = layers.GlobalAveragePooling2D()(outputs)
    outputs = layers.Dense(100, activation="softmax")(outputs)
    model = models.Model(inputs=inputs, outputs=outputs)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model.fit(images, labels, verbose=0)


def evaluation(build):
    # Keras 3 takes metrics by name only, where the example gives them third.
    # 256 pixels through the model that is built by default: any size goes.
    images, labels = generated(2, 256, 1000)
    model = build(weights=None)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=EVALUATION_METRICS)
    return model.evaluate(gk.preprocess_input(images), labels, batch_size=2, verbose=0)


EXAMPLES = [default_use, custom_classification, evaluation]


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example):
    check(example(gk.GCViTXXTiny))


@pytest.mark.slow
@pytest.mark.backends
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run_with_the_model_they_name(example):
    check(example(gk.GCViTTiny))


def check(result):
    values = result.history["loss"] if isinstance(result, keras.callbacks.History) else result
    assert np.isfinite(values).all()


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
def test_a_model_with_preprocessing_inside_is_saved_and_loaded(tmp_path, relative):
    images, _ = generated(2, 64, 10)
    inputs = keras.Input((64, 64, 3), dtype="uint8")
    outputs = gk.GCViTXXTiny(include_top=False, weights=None, pooling="avg")(
        keras.layers.Lambda(gk.preprocess_input)(inputs)
    )
    model = keras.Model(inputs, outputs)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert relative(again.predict(images, verbose=0), model.predict(images, verbose=0)) < 1e-6
