"""The checkout as the tests of its pages see it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root():
    """The checkout's folder."""
    return ROOT
