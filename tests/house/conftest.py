"""The checkout as the house tests see it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root():
    """The checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def package(root):
    """The package's folder."""
    return root / "src" / "globalvit"


@pytest.fixture(scope="session")
def python_files(root):
    """Every Python file of the checkout that is ours, tests and benchmarks among them."""
    folders = [root / name for name in ("src", "tests", "benchmarks", "docs", ".ci")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))
