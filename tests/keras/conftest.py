"""Keras on the backend that KERAS_BACKEND names, PyTorch if none is, and PyTorch's models to compare with."""

import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
# Triton, which torch's CUDA builds bring, ends the process when it is imported after TensorFlow: both hold an LLVM.
import torch._dynamo

# isort: split
import keras
import numpy as np
import pytest

import globalvit as gv
from globalvit.models.variants import VARIANTS

HERE = Path(__file__).parent
# TensorFlow is imported at its head.
collect_ignore = [] if keras.backend.backend() == "tensorflow" else ["test_tensorflow.py"]
RANDOM = ("bias_table", "position_embedding", "group_tokens", "token")


def pytest_collection_modifyitems(items):
    # Keras hands NumPy tensors of PyTorch, which know an older form of NumPy's protocol.
    noise = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(noise)


@pytest.fixture(autouse=True)
def _keras_state():
    """Every test starts from Keras' own settings and a fixed seed."""
    keras.utils.set_random_seed(0)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def toy(monkeypatch):
    """The smallest variant of each family made tiny, for both packages."""
    small = replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16)
    monkeypatch.setitem(VARIANTS, "gcvit_xxtiny", small)
    plain = replace(VARIANTS["gpvit_l1"], width=24, depth=3, group_tokens=((1, 8),), outputs=(2,))
    monkeypatch.setitem(VARIANTS, "gpvit_l1", plain)


@pytest.fixture
def reference(tmp_path):
    """A torch model of random weights, its file in our form, images (channels-last) and what every module gives."""

    def make(name, size, num_classes=7, **options):
        model = gv.create_model(name, num_classes=num_classes, image_size=size, **options).eval()
        _randomise(model)
        gv.save_weights(model, tmp_path / f"{name}.safetensors")
        images = torch.randn(2, 3, *size)
        seen = {}
        for module_name, module in model.named_modules():
            key = module_name.removeprefix("backbone.").replace(".", "_")
            module.register_forward_hook(lambda *call, key=key: seen.update({key: call[2]}))
        with torch.inference_mode():
            model(images)
        outputs = {key: value.numpy() for key, value in seen.items() if isinstance(value, torch.Tensor)}
        inputs = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        return Namespace(file=tmp_path / f"{name}.safetensors", model=model, images=inputs, outputs=outputs)

    return make


@pytest.fixture
def relative():
    """max |difference| / max |reference|."""

    def compare(ours, theirs):
        ours, theirs = (np.asarray(keras.ops.convert_to_numpy(x), np.float64) for x in (ours, theirs))
        assert ours.shape == theirs.shape
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    return compare


@pytest.fixture
def fresh_process():
    """Run Python code in a process of its own, on a backend, and return what it prints."""
    import subprocess

    def run(code, *words, backend=None):
        environment = os.environ | {"KERAS_BACKEND": backend or keras.backend.backend()}
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _randomise(model):
    """Values at which every parameter matters."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(RANDOM):
                value.normal_(0, 0.5)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(0.5, 0.2)
