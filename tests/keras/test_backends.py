"""The tests marked `backends` again in a process whose Keras runs on JAX.

TensorFlow is not among what the development environment installs: where it is at hand,
`KERAS_BACKEND=tensorflow pytest -m "backends" tests/keras` runs the same tests on it (`.ci/keras_tensorflow` does).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras

HERE = Path(__file__).parent
IMPORTS = """
import sys
import globalvit.keras as gk
from globalvit.keras.files import read_file
gk.GCViTXXTiny(weights=sys.argv[1], classes=7, input_shape=(32, 32, 3))
print([name for name in ("torch", "tensorflow", "timm") if name in sys.modules])
"""


def run_again(selection):
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    # Compiling is most of the time; the numbers are the same without the last passes.
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:xdist", "-q", "-rs"]
    done = subprocess.run(
        [*command, "-m", selection, HERE], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    print(done.stdout[-5000:])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="starts from the default backend")
def test_everything_holds_on_jax():
    run_again("backends and not slow")


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="starts from the default backend")
def test_everything_slow_holds_on_jax():
    run_again("backends and slow")


def test_without_torch_as_the_backend_torch_is_not_imported(reference, fresh_process):
    file = reference("gcvit_xxtiny", (32, 32)).file
    assert fresh_process(IMPORTS, file, backend="jax").strip() == "[]"
