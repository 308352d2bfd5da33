"""Choices between implementations: measured once for each kind of CPU, kept, and obeyed everywhere."""

import json
import logging
import os
import platform
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from globalvit.build import create_model
from globalvit.deploy import deploying
from globalvit.kernels.cpu import choices
from globalvit.kernels.cpu.choices import Candidates, Choice, Choices, Group
from globalvit.models import ops


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def group(first=0.001, second=0.001, margin=choices.MARGIN):
    runs = {"c": lambda: busy(first), "torch": lambda: busy(second)}
    return Group("sleepers", lambda: [Candidates("nap", runs, margin)])


@pytest.fixture
def unlisted(monkeypatch, tmp_path):
    """A CPU missing from the table, with an empty cache."""
    monkeypatch.setattr(choices, "TABLE", tmp_path / "no_table.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choices.of_operations.cache_clear()
    yield tmp_path / "globalvit" / "choices.json"
    choices.of_operations.cache_clear()


@pytest.mark.parametrize(
    ("second", "margin", "used"), [(0.0005, 0.95, "torch"), (0.0005, 0.4, "c"), (0.001, 0.95, "c"), (0.002, 0.95, "c")]
)
def test_the_first_is_kept_unless_another_is_clearly_faster(second, margin, used):
    assert choices.measure(group(second=second, margin=margin))["nap"].used == used


def test_choices_are_measured_once_and_kept(unlisted):
    measured = choices.choose(group(second=0.0005))
    assert measured.used("nap", "c") == "torch"
    assert measured.origin == f"measured on this machine, saved in {unlisted}"
    kept = choices.choose(group(second=0.01))
    assert kept.by_name == measured.by_name


def test_damaged_choices_are_measured_again(unlisted):
    choices.choose(group())
    for text in ("", "{", "[]", '{"x": []}', '{"x": {"y": {"z": {}}}}'):
        unlisted.write_text(text)
        assert choices.choose(group(second=0.0005)).used("nap", "c") == "torch"
        assert json.loads(unlisted.read_text())


def test_the_table_comes_before_the_cache(unlisted, monkeypatch):
    table = unlisted.parent.parent / "table.json"
    listed = {"nap": {"used": "torch", "seconds": {"c": 2.0, "torch": 1.0}}}
    table.write_text(json.dumps({choices.cpu(): {"sleepers": listed}}))
    monkeypatch.setattr(choices, "TABLE", table)
    found = choices.choose(group())
    assert found.by_name == {"nap": Choice(used="torch", seconds={"c": 2.0, "torch": 1.0})}
    assert found.origin == f"shipped measurements of this CPU model ({choices.cpu()})"
    assert not unlisted.exists()


def test_choices_that_cannot_be_kept_are_not_measured(unlisted, caplog):
    unlisted.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        found = choices.choose(group())
    assert found.by_name == {}
    assert "kernels are not timed on this CPU, since the results cannot be saved: " in caplog.text


def test_an_unlisted_cpu_is_measured_within_seconds(unlisted):
    start = time.thread_time()
    choices.slower(torch.float32)
    # Calls that have to be made at least three times each take longer than the budget on a slow CPU.
    assert time.thread_time() - start < 4 * choices.BUDGET_S
    names = {name.split("/")[0] for name in choices.of_operations(torch.float32).by_name}
    assert names == {name for name, operation in ops.OPERATIONS.items() if "c" in operation.implementations}


def test_a_call_takes_pytorch_where_that_is_faster(monkeypatch):
    taken = []
    implementation = ops.linear.implementations["c"]
    monkeypatch.setitem(
        ops.linear.implementations,
        "c",
        ops.Implementation(implementation.accepts, lambda *args: taken.append(args) or implementation.run(*args)),
    )
    slow = Choice(used="torch", seconds={})
    found = Choices(by_name={"linear/float32/small": slow}, origin="a test")
    monkeypatch.setattr(choices, "of_operations", lambda _: found)
    layer, small, large = nn.Linear(64, 64), torch.randn(8, 64), torch.randn(choices.LARGE // 64, 64)
    for kernels, x, is_taken in (
        ("auto", small, False),
        ("auto", large, True),
        ("c", small, True),
        ("c", large, True),
        ("torch", large, False),
    ):
        taken.clear()
        with ops.set_kernels(kernels):
            ops.linear(x, layer)
        assert bool(taken) == is_taken, (kernels, len(x))
    with ops.set_kernels("auto"):
        assert ops.settled_operations("cpu", torch.float32) == ("linear/float32/small",)
    with ops.set_kernels("c", torch_operations=["linear/float32/large"]):
        taken.clear()
        ops.linear(large, layer)
        assert not taken
        assert ops.settled_operations("cpu", torch.float32) == ("linear/float32/large",)


@pytest.mark.parametrize(("used", "part"), [("c", "KernelBlock"), ("onednn", "OneDNNBlock"), ("torch", "FoldedBlock")])
def test_deployed_copies_are_made_of_what_is_fastest(monkeypatch, used, part):
    found = Choices(by_name={"block": Choice(used=used, seconds={})}, origin="a test")
    monkeypatch.setattr(deploying, "deployed_choices", lambda _: found)
    model = create_model("gcvit_xxtiny", image_size=64).eval()
    for block in model.backbone.block_modules():
        # Only blocks with a layer scale can be folded.
        block.scale1, block.scale2 = (nn.Parameter(torch.ones(block.norm1.normalized_shape)) for _ in range(2))
    with ops.set_kernels("auto"):
        deployed = model.deploy()
    assert {type(block).__name__ for block in deployed.backbone.block_modules()} == {part}


@pytest.mark.parametrize("name", ["linear", "linear/float32", "conv/float32/small", "linear/float16/small"])
def test_unknown_operations_are_refused(name):
    with pytest.raises(ValueError, match=f"torch_operations: '{name}': expected OPERATION/DTYPE/SIZE, of linear, "):
        ops.set_kernels("c", torch_operations=[name])
    assert ops.chosen_kernels() == "auto"


def test_the_table_names_operations_that_exist():
    for groups in json.loads(choices.TABLE.read_text()).values():
        assert {group.split(" in ")[0] for group in groups} == {"operations", "deployed blocks"}
        names = [name for group, found in groups.items() if group.startswith("operations") for name in found]
        with ops.set_kernels("auto", torch_operations=names):
            pass


WITHOUT_PAIRS = """
import torch
from torch import nn
from globalvit.kernels.cpu import choices
from globalvit.kernels.cpu.linear_training import norm_mlp
print(sorted({one.name.split("/")[0] for one in choices.operations(torch.bfloat16).candidates()}))
try:
    layers = nn.ModuleList([nn.LayerNorm(8), nn.Linear(8, 9), nn.Linear(9, 8)]).bfloat16()
    norm_mlp(torch.ones(7, 8).bfloat16(), *layers)
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="chooses an instruction set of x86-64")
def test_only_calls_that_the_kernels_compute_are_measured():
    # On a CPU without dot products of bfloat16, the kernels wrote behind their buffers when Linears were measured.
    answer = subprocess.run(
        [sys.executable, "-c", "import globalvit.kernels.cpu.register" + WITHOUT_PAIRS],
        env=os.environ | {"GLOBALVIT_CPU_LEVEL": "x86-64-v2"},
        capture_output=True,
        text=True,
        check=True,
    )
    names, refusal = answer.stdout.splitlines()
    assert names == "['attend_stripes', 'attend_windows', 'stripe_attention', 'window_attention']"
    assert refusal == (
        "expected a CPU with dot products of bfloat16 for training with the C kernels, got one without; use float32, "
        "or set_kernels('torch')"
    )
