"""Keras models give what PyTorch's give, layer by layer, on whatever backend the tests run with."""

import keras
import numpy as np
import pytest
import torch

import globalvit.keras as gk
from globalvit.keras.gpvit import PositionEmbedding
from globalvit.keras.layers import resize_bicubic

APPLICATIONS = {"gcvit_xxtiny": gk.GCViTXXTiny, "gcvit_small": gk.GCViTSmall, "gpvit_l1": gk.GPViTL1}
TOYS = ["gcvit_xxtiny", "gpvit_l1"]
TOLERANCE = 1e-4
LARGE = [(name, size) for name in APPLICATIONS for size in ((224, 224), (256, 320))]


def check_every_layer(name, size, reference, relative, input_shape):
    expected = reference(name, size)
    model = APPLICATIONS[name](weights=expected.file, classes=7, classifier_activation=None, input_shape=input_shape)
    # The position embedding is a parameter there and a layer here; its sum is the first block's input.
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer | PositionEmbedding)]
    outputs = keras.Model(model.inputs, [layer.output for layer in layers]).predict(expected.images, verbose=0)
    found = {
        layer.name: relative(output, expected.outputs[layer.name])
        for layer, output in zip(layers, outputs, strict=True)
    }
    print(keras.backend.backend(), name, size, {key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) < TOLERANCE, found
    blocks = [key for key in expected.outputs if key.rpartition("_")[0].endswith("blocks")]
    assert {key for key in blocks if "query" not in key} <= found.keys()


@pytest.mark.backends
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gcvit_xxtiny", (64, 64)),
        ("gcvit_xxtiny", (75, 109)),
        ("gpvit_l1", (64, 64)),
        ("gpvit_l1", (75, 109)),
    ],
    ids=["xxtiny-small", "xxtiny-odd", "gpvit-small", "gpvit-odd"],
)
def test_every_layer_gives_what_torchs_gives(name, size, reference, relative):
    check_every_layer(name, size, reference, relative, (*size, 3))


@pytest.mark.slow
@pytest.mark.backends
@pytest.mark.parametrize(("name", "size"), LARGE)
def test_every_layer_gives_what_torchs_gives_at_published_sizes(name, size, reference, relative):
    check_every_layer(name, size, reference, relative, None)


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", TOYS)
def test_one_model_takes_images_of_every_size(name, reference, relative):
    for size in ((224, 224), (230, 261)):
        expected = reference(name, size)
        model = APPLICATIONS[name](weights=expected.file, classes=7, classifier_activation=None)
        assert model.input_shape == (None, None, None, 3)
        logits = expected.outputs["head_linear"]
        assert relative(model.predict(expected.images, verbose=0), logits) < TOLERANCE


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", TOYS)
def test_images_do_not_mix(name, relative):
    model = APPLICATIONS[name](weights=None, classes=5, input_shape=(48, 64, 3))
    images = np.random.default_rng(0).normal(size=(3, 48, 64, 3)).astype("float32")
    together = model.predict(images, verbose=0)
    for index in range(3):
        assert relative(model.predict(images[index : index + 1], verbose=0)[0], together[index]) < 1e-5


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", TOYS)
def test_maps_are_torchs_in_both_layouts(name, reference, relative):
    expected = reference(name, (64, 80))
    with torch.inference_mode():
        maps = expected.model.backbone(torch.from_numpy(expected.images).permute(0, 3, 1, 2))
    last = gk.backbone(name, weights=expected.file, input_shape=(64, 80, 3))
    found = last.predict(expected.images, verbose=0)
    for ours, theirs in zip(found if isinstance(found, list) else [found], maps, strict=True):
        assert relative(ours, theirs.permute(0, 2, 3, 1).numpy()) < TOLERANCE
    keras.config.set_image_data_format("channels_first")
    first = gk.backbone(name, weights=expected.file, input_shape=(3, 64, 80))
    found = first.predict(np.ascontiguousarray(expected.images.transpose(0, 3, 1, 2)), verbose=0)
    for ours, theirs in zip(found if isinstance(found, list) else [found], maps, strict=True):
        assert relative(ours, theirs.numpy()) < TOLERANCE


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(("name", "outputs"), [("gcvit_xxtiny", None), ("gpvit_l1", (0, 1, 2))])
def test_a_backbone_has_an_output_for_each_stage_or_block(name, outputs):
    model = gk.backbone(name, weights=None, outputs=outputs)
    shapes = [tuple(output.shape) for output in model.outputs]
    expected = [(None, None, None, 16 * 2**i) for i in range(4)] if outputs is None else [(None, None, None, 24)] * 3
    assert shapes == expected


@pytest.mark.usefixtures("toy")
@pytest.mark.backends
@pytest.mark.parametrize("name", TOYS)
def test_mixed_precision_is_close_and_scores_are_float32(name, reference, relative):
    expected = reference(name, (64, 64))
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = APPLICATIONS[name](weights=expected.file, classes=7, classifier_activation=None, input_shape=(64, 64, 3))
    assert {layer.output.dtype for layer in model.layers[1:-1]} == {"bfloat16"}
    assert {variable.dtype for variable in model.weights} == {"float32"}
    scores = model.predict(expected.images, verbose=0)
    assert scores.dtype == np.float32
    assert relative(scores, expected.outputs["head_linear"]) < 0.05


@pytest.mark.backends
@pytest.mark.parametrize(
    ("source", "target"), [((28, 28), (9, 14)), ((5, 3), (7, 7)), ((13, 13), (27, 27)), ((4, 6), (4, 6))]
)
def test_resizing_is_torchs(source, target, relative):
    x = torch.randn(2, *source, 3)
    expected = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), size=target, mode="bicubic")
    assert relative(resize_bicubic(x.numpy(), *target), expected.permute(0, 2, 3, 1).numpy()) < 1e-5


@pytest.mark.backends
@pytest.mark.parametrize(
    ("case", "name"),
    [("gcvit_cls_xxtiny", "gcvit_xxtiny"), ("gpvit_cls_L1", "gpvit_l1")],
)
def test_official_files_give_the_published_outputs(case, name, golden, tmp_path):
    vectors = golden(case)
    torch.save({"state_dict": vectors.state_dict(), "epoch": 300}, tmp_path / "official.pth.tar")
    model = APPLICATIONS[name](weights=tmp_path / "official.pth.tar", classifier_activation=None)
    images = np.ascontiguousarray(vectors.images().permute(0, 2, 3, 1).numpy())
    last = keras.Model(model.inputs, [model.get_layer("norm").output, model.output])
    norm, logits = last.predict(images, verbose=0)
    vectors.check("logits", torch.from_numpy(logits), tolerance=1e-4)
    if name == "gcvit_xxtiny":
        vectors.check("norm", torch.from_numpy(norm), tolerance=1e-4)
