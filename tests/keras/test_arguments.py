"""Arguments that do not fit are refused as Keras refuses them; the license is shown once."""

import logging
import re
from io import BytesIO

import keras
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import globalvit.keras as gk
from globalvit.keras import load
from globalvit.models.variants import VARIANTS
from globalvit.weights import catalog

pytestmark = pytest.mark.usefixtures("toy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenett"}, "`weights` argument should be either `None` (random initialization), `imagenet`"),
        ({"weights": "missing.weights.h5"}, "'nvidia_in1k', 'timm_in1k', or the path to the weights file to be loaded"),
        ({"weights": 3}, "Received: weights=3"),
        ({"weights": np.zeros(2)}, "Received: weights=array([0., 0.])"),
        ({"classes": 10}, 'If using `weights="imagenet"` with `include_top=True`, `classes` should be 1000.'),
        ({"classes": 10}, "Received: classes=10"),
        ({"weights": "timm_in1k", "classes": 10}, 'If using `weights="timm_in1k"` with `include_top=True`, `classes`'),
        ({"weights": None, "classes": 0}, "`classes` should be a positive integer. Received: classes=0"),
        ({"weights": None, "classes": True}, "`classes` should be a positive integer. Received: classes=True"),
        ({"weights": None, "classes": "ten"}, "`classes` should be a positive integer. Received: classes='ten'"),
        ({"classifier_activation": "sigmoid"}, "Only `None` and `softmax` activations are allowed for the"),
        ({"pooling": "mean"}, "The `pooling` argument should be `None`, 'avg' or 'max'. Received: pooling='mean'"),
        ({"weights": None, "input_shape": (224, 224)}, "`input_shape` should be a tuple of three integers"),
        ({"weights": None, "input_shape": 224}, "`input_shape` should be a tuple of three integers"),
        (
            {"weights": None, "input_shape": (64.0, 64, 3)},
            "three integers, (height, width, channels). Received: ",
        ),
        ({"input_shape": (64, 64, 1)}, "The input should have 3 channels, those of the weights"),
        ({"weights": None, "input_shape": (3, 64, None)}, "The input should have a known number of channels"),
        (
            {"weights": None, "input_shape": (31, 64, 3)},
            "Input size should be at least 32x32, in the layout (h",
        ),
        ({"weights": None, "input_shape": (3, 64, 64)}, "Received: input_shape=(3, 64, 64)"),
        ({"weights": None, "input_tensor": 5}, "`input_tensor` argument should be a Keras tensor, such as the output"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gk.GCViTXXTiny(**arguments)


def test_shape_and_tensor_must_agree():
    tensor = keras.Input((64, 64, 3))
    message = r"`input_shape` should be that of `input_tensor`, \(64, 64, 3\), or be left out\. Received: .*\(32, 32"
    with pytest.raises(ValueError, match=message):
        gk.GCViTXXTiny(weights=None, input_tensor=tensor, input_shape=(32, 32, 3))
    assert gk.GCViTXXTiny(weights=None, input_tensor=tensor).inputs[0] is tensor


def test_numbers_of_numpy_are_numbers():
    sides = np.array([64, 32, 3])
    model = gk.GCViTXXTiny(weights=None, classes=np.int64(5), input_shape=list(sides))
    assert (model.input_shape, model.output_shape) == ((None, 64, 32, 3), (None, 5))


def test_backbones_are_named_and_their_outputs_are_blocks():
    with pytest.raises(ValueError, match=r"Model 'gcvit_tny' is not known\. Did you mean"):
        gk.backbone("gcvit_tny", weights=None)
    with pytest.raises(ValueError, match=r"Model 'gcvit_tiny_upernet' is not known\.(?!.*upernet)"):
        gk.backbone("gcvit_tiny_upernet", weights=None)
    message = r"`outputs` chooses blocks of GPViT; gcvit_xxtiny gives the maps of its four stages. Received: out"
    with pytest.raises(ValueError, match=message):
        gk.backbone("gc_vit_xxtiny", weights=None, outputs=(1,))
    with pytest.raises(ValueError, match=r"outputs=\(7,\) must be growing numbers of blocks under 3"):
        gk.backbone("gpvit_l1", weights=None, outputs=(7,))


def test_files_of_another_model_or_head_are_told(reference, monkeypatch, tmp_path):
    file = reference("gcvit_xxtiny", (64, 64)).file
    with pytest.raises(ValueError, match=r"The weights of .*gcvit_xxtiny\.safetensors should be those of gpvit_l1\."):
        gk.GPViTL1(weights=file, classes=7)
    monkeypatch.setattr(load.forms, "infer_model", lambda _: "gcvit_xxtiny")
    message = r'safetensors"` with `include_top=True`, `classes` should be 7. Received: classes=1000'
    with pytest.raises(ValueError, match=message):
        gk.GCViTXXTiny(weights=file)
    (tmp_path / "x.weights.h5").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"x\.weights\.h5 is damaged or holds no variables of a globalvit"):
        gk.GCViTXXTiny(weights=tmp_path / "x.weights.h5")
    (tmp_path / "x.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged, cut short, or in a dtype such as bfloat16"):
        gk.GCViTXXTiny(weights=tmp_path / "x.safetensors")


def test_weights_of_keras_files_from_elsewhere_are_refused(tmp_path):
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(3)(inputs)).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match=r"other\.weights\.h5 should be those of gcvit_xxtiny\. Received: a model"):
        gk.GCViTXXTiny(weights=tmp_path / "other.weights.h5")


def test_default_weights_are_the_published_ones_and_their_license_is_told_once(monkeypatch, tmp_path, golden, caplog):
    monkeypatch.undo()  # the real variants: the file is of one
    vectors = golden("gcvit_cls_xxtiny")
    torch.save({"state_dict": vectors.state_dict()}, tmp_path / "file.pth.tar")
    asked = []
    monkeypatch.setattr(load, "download", lambda record: asked.append(record) or tmp_path / "file.pth.tar")
    load._say_license.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            model = gk.GCViTXXTiny()
    assert asked == [catalog.find("gcvit_xxtiny", "nvidia_in1k")] * 2
    assert [record.message for record in caplog.records if record.name.startswith("globalvit")] == [
        "The weights of GC ViT are under CC-BY-NC-SA-4.0: for non-commercial use only."
    ]
    assert model.output_shape == (None, 1000)
    assert model.layers[-1].activation is keras.activations.softmax


def test_channels_first_shapes_are_read_in_their_order():
    keras.config.set_image_data_format("channels_first")
    with pytest.raises(ValueError, match=re.escape("(channels, height, width). Received: input_shape=(64, 64, 3)")):
        gk.GCViTXXTiny(input_shape=(64, 64, 3))
    assert gk.GCViTXXTiny(weights=None, include_top=False).output_shape == (None, 128, None, None)
    assert gk.GCViTXXTiny(weights=None, include_top=False, pooling="avg").output_shape == (None, 128)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling_gives_vectors(pooling):
    model = gk.GCViTXXTiny(weights=None, include_top=False, pooling=pooling)
    maps = gk.GCViTXXTiny(weights=None, include_top=False)
    maps.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    reduce = np.mean if pooling == "avg" else np.max
    assert model.predict(x, verbose=0) == pytest.approx(reduce(maps.predict(x, verbose=0), axis=(1, 2)), abs=1e-5)


def test_every_variant_has_an_application_of_its_parameters():
    names = {name for name in gk.__all__ if name.startswith(("GCViT", "GPViT"))}
    assert {name.lower() for name in names} == {name.replace("_", "") for name in VARIANTS}
    assert gk.GCViTTiny2.__name__ == "GCViTTiny2"
    assert "gcvit_tiny2" in gk.GCViTTiny2.__doc__


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_preprocessing_is_imagenets(data_format, dtype, relative):
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(dtype)
    expected = (x / 255 - catalog.IMAGENET_MEAN) / catalog.IMAGENET_STD
    given = x.transpose(0, 3, 1, 2) if data_format == "channels_first" else x
    for one in (given, keras.ops.convert_to_tensor(given)):
        found = gk.preprocess_input(one, data_format)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        found = keras.ops.convert_to_numpy(found)
        assert relative(found.transpose(0, 2, 3, 1) if data_format == "channels_first" else found, expected) < 1e-6
    assert isinstance(gk.preprocess_input(given[0], data_format), np.ndarray)
    assert (gk.preprocess_input(given.tolist(), data_format) == gk.preprocess_input(given, data_format)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_with_an_exif_orientation_is_taken_upright(orientation):
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    image, stream, exif = Image.fromarray(values), BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "PNG", exif=exif)
    expected = gk.preprocess_input(np.asarray(ImageOps.exif_transpose(Image.open(stream))), "channels_last")
    np.testing.assert_array_equal(gk.preprocess_input(Image.open(stream), "channels_last"), expected)


def test_preprocessing_and_decoding_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match=r"one of `channels_first` or `channels_last`\. Received: data_format=last"):
        gk.preprocess_input(np.zeros((2, 2, 3)), "last")
    with pytest.raises(ValueError, match=r"three channels on axis -1 \(channels_last\). Received: x of shape"):
        gk.preprocess_input(np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match=r"2D array of shape \(samples, 1000\)\). Received array with shape"):
        gk.decode_predictions(np.zeros((2, 10)))


def test_predictions_are_decoded_best_first():
    scores = np.zeros((2, 1000), "float32")
    scores[0, [1, 0]] = 0.7, 0.2
    scores[1, 999] = 1
    first, second = gk.decode_predictions(scores, top=2)
    assert [(synset, name) for synset, name, _ in first] == [("n01443537", "goldfish"), ("n01440764", "tench")]
    assert first[0][2] == pytest.approx(0.7)
    assert second[0][0] == "n15075141"
