"""Every kernel compiles to machine code for Hopper GPUs as it is launched: no GPU is needed for that."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# Triton's compiler needs a process that has not imported it as an interpreter.
CODE = """
import json, sys
from contextlib import nullcontext
import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Hopper:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

driver.set_active(Hopper())
torch.cuda.device_of = lambda tensor: nullcontext()
built, run = [], JITFunction.run

def build(self, *arguments, grid, warmup, **keywords):
    kernel = run(self, *arguments, grid=grid, warmup=True, **keywords)
    built.append((self.fn.__name__, kernel.metadata.shared, len(kernel.asm["cubin"])))

JITFunction.run = build
from globalvit.kernels.gpu import operators

for dtype, what, *sizes in json.loads(sys.argv[1]):
    dtype = getattr(torch, dtype)
    if what == "window":
        window, height, heads, dim, is_global = sizes
        projected = torch.zeros(2, height, height, heads * dim * (2 if is_global else 3), dtype=dtype)
        table = torch.zeros((2 * window - 1) ** 2, heads, requires_grad=True)
        query = torch.zeros(2, heads, window**2, dim, dtype=dtype) if is_global else None
        operators.windows(projected.requires_grad_(), table, window, query).sum().backward()
    else:
        height, heads, dim = sizes
        half = heads * dim
        qkv = torch.zeros(2, height, height, 6 * half, dtype=dtype, requires_grad=True)
        convs = [nn.Conv2d(half, half, 3, groups=half) for _ in range(2)]
        operators.stripes(qkv, *convs, 2, heads).sum().backward()
print(json.dumps(built))
"""
# Most of shared memory a program may use on a Hopper GPU.
SHARED_BYTES = 227 * 1024
WHOLE = {"forward", "backward_whole", "fold_pairs"}
BLOCKS = {"forward", "backward_queries", "backward_keys", "backward_pairs", "fold_pairs"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        (("bfloat16", "window", 7, 56, 2, 32, False), WHOLE),
        (("float32", "window", 7, 28, 4, 32, True), WHOLE),
        (("bfloat16", "window", 14, 14, 8, 32, True), BLOCKS),
        (("float32", "window", 24, 24, 4, 32, False), BLOCKS),
        (("float16", "stripe", 28, 6, 18), WHOLE - {"fold_pairs"}),
        (("bfloat16", "stripe", 64, 6, 52), BLOCKS - {"fold_pairs", "backward_pairs"}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_kernels_compile_for_hopper_as_they_are_launched(case, kernels, tmp_path):
    assert importlib.util.find_spec("triton") is not None
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, "-c", CODE, json.dumps([case])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    built = json.loads(done.stdout)
    assert {name for name, _, _ in built} == kernels
    assert all(shared <= SHARED_BYTES and size > 0 for _, shared, size in built)
