"""Fixtures of all tests, and the count of golden cases that `pytest` prints at the end."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if not Path("/dev/nvidia0").exists():
    # Kernels written in Triton run on the CPU then, in its interpreter. Triton reads this when PyTorch imports it.
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from vectors import Golden

from globalvit.models.ops import chosen_kernels, set_kernels

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Every test starts from the same random state and leaves the process's own untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _automatic_kernels() -> Iterator[None]:
    """Tests use the kernels wherever they can, whatever is faster on this machine, and leave no other choice behind."""
    with set_kernels("auto", torch_operations=()):
        yield
        assert chosen_kernels() == "auto"


@pytest.fixture
def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let searching folders of a name fail for want of permission; root, who may run the tests, could read them."""
    scandir = os.scandir

    def forbid(name: str) -> None:
        def refuse(path: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return forbid


@pytest.fixture
def make_pipe() -> Callable[[Path], None]:
    """Make a named pipe."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    return os.mkfifo


@pytest.fixture
def golden(record_property: Callable[[str, object], None]) -> Callable[[str], Golden]:
    """Open a golden case by name; the case is counted in the summary."""

    def open_case(case: str) -> Golden:
        opened = Golden(case)
        record_property("golden", f"{case} ({'full' if opened.is_full else 'small'} vectors)")
        return opened

    return open_case


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.golden)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays, modules and tests: every run of training ends with a collection."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", [])
    cases = sorted({value for report in passed for name, value in report.user_properties if name == "golden"})
    if cases:
        terminalreporter.write_line(f"golden cases passed: {len(cases)}: {', '.join(cases)}")
