"""The tests marked `backends` again in a process whose Keras runs on JAX.

TensorFlow is not among what the development environment installs: where it is installed,
`KERAS_BACKEND=tensorflow pytest -m "backends" tests/keras` runs the same tests on it, and those of what only it has
(`.ci/keras_tensorflow` does).
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

HERE = Path(__file__).parent
# Compiling is what takes the time there: the rest of what is marked `backends` is run among the slow tests. That models
# answer there as they do here: test_saving.py.
BRIEF = "test_training.py::test_fit_learns_the_digits[gpvit]"
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
IMPORTS = """
import sys
import keras
import globalvit.keras as gk
gk.GCViTXXTiny(weights=sys.argv[1], classes=7, input_shape=(32, 32, 3))
others = {"torch", "tensorflow", "timm"} - {keras.backend.backend()}
print([name for name in others if name in sys.modules])
"""


def run_again(*selection, **environment):
    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", "-rs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *selection],
        env=os.environ | {"KERAS_BACKEND": "jax"} | environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    print(done.stdout[-5000:])
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout


def test_jax_learns_the_same():
    run_again(f"{HERE}/{BRIEF}", XLA_FLAGS=QUICK_COMPILER)


@pytest.mark.slow
def test_everything_holds_on_jax():
    run_again("-m", "backends", str(HERE))


@pytest.mark.backends
def test_without_torch_as_the_backend_torch_is_not_imported(reference, fresh_process):
    file = reference("gcvit_xxtiny", (32, 32)).file
    backend = keras.backend.backend().replace("torch", "jax")
    assert ast.literal_eval(fresh_process(IMPORTS, file, backend=backend)) == []
