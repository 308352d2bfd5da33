"""What only TensorFlow has: graphs, `tf.data` and exported models. Collected where Keras runs on it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import globalvit.keras as gk

pytestmark = [pytest.mark.usefixtures("toy"), pytest.mark.backends]
SIZES = [(64, 64), (75, 109)]


def make_images(*size, count=2):
    return np.random.default_rng(0).normal(size=(count, *size, 3)).astype("float32")


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "gpvit_l1"])
def test_one_graph_takes_images_of_every_size_and_number(name, relative):
    model = gk.backbone(name, weights=None)
    traced = []

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
    def graph(images):
        traced.append(images.shape)
        return model(images, training=False)

    for count, size in enumerate(SIZES, start=1):
        images = make_images(*size, count=count)
        for found, expected in zip(graph(images), model(images, training=False), strict=True):
            assert relative(found, expected) < 1e-5
    assert len(traced) == 1


def test_the_evaluation_example_runs_on_a_tf_dataset():
    def prepare(image, label):
        image = tf.image.resize(image, (73, 73), method=tf.image.ResizeMethod.BICUBIC)
        return gk.preprocess_input(tf.image.central_crop(image, 64 / 73)), label

    random = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((random.integers(0, 256, (5, 90, 70, 3), "uint8"), np.arange(5)))
    data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).batch(2)
    model = gk.GCViTXXTiny(weights=None)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy", "sparse_top_k_categorical_accuracy"])
    assert np.isfinite(model.evaluate(data, verbose=0)).all()


def test_an_exported_model_runs_without_this_package(tmp_path, relative):
    model = gk.GCViTXXTiny(weights=None, classes=5)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for size in SIZES:
        images = make_images(*size)
        assert relative(served.serve(images), model.predict(images, verbose=0)) < 1e-5


def test_channels_first_images_train_on_a_cpu():
    keras.config.set_image_data_format("channels_first")
    model = gk.GCViTXXTiny(weights=None, classes=3, input_shape=(3, 32, 32))
    model.compile("sgd", "sparse_categorical_crossentropy")
    images = np.ascontiguousarray(make_images(32, 32, count=4).transpose(0, 3, 1, 2))
    assert np.isfinite(model.fit(images, np.array([0, 1, 2, 0]), verbose=0).history["loss"]).all()
