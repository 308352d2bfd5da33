"""A plugin of pytest: the tests of the kernels load the sanitized libraries."""

import os
from pathlib import Path

from globalvit.kernels.cpu import library
from globalvit.kernels.cpu.variants import VARIANTS


def pytest_configure() -> None:
    """Load the library of the level that is asked for."""
    library.PREBUILT = Path(os.environ["SANITIZED"])
    # The intrinsics are emulated, so this CPU need not have them.
    features = frozenset().union(*(one.features for one in VARIANTS.values() if one.machine == "x86_64"))
    library.cpu_features = lambda: features
    assert library.loaded().origin == "part of the package"
