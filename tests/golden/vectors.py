"""Published outputs under deterministic weights, and the comparison with ours.

The full vectors lie beside the checkout in `../shared/golden`; where they are absent the small ones of this folder
(every eighth sample of the same arrays) stand in, so that the same claims are tested everywhere.
"""

import json
from pathlib import Path
from typing import Any

import fill
import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
FULL = HERE.parents[2] / "shared" / "golden"
SAMPLES = 2048


class Golden:
    """One case: `golden.state_dict()` is the published checkpoint, `golden.check(name, tensor)` the comparison."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.is_full = (FULL / f"{case}.npz").exists()
        self.arrays = np.load((FULL if self.is_full else HERE) / f"{case}.npz")
        text = (FULL / f"{case}.json").read_text() if self.is_full else bytes(self.arrays["state_dict"]).decode()
        listed = json.loads(text)
        self.entries: list[Any] = listed["state_dict"] if self.is_full else listed

    def state_dict(self) -> dict[str, Tensor]:
        """The checkpoint's entries, whole-number buffers included."""
        return {name: torch.from_numpy(fill.entry(name, shape, dtype)) for name, shape, dtype in self.entries}

    def images(self) -> Tensor:
        """The input of the case."""
        return torch.from_numpy(fill.normal(0, tuple(self.arrays["input_shape"])))

    def check(self, name: str, ours: Tensor, tolerance: float = 5e-6) -> None:
        """Assert max |difference| ≤ tolerance · max |published|; maximum and mean go to the test's output."""
        published = self._published(name)
        got = ours.detach().contiguous().numpy()
        if f"{name}.shape" in self.arrays:
            assert got.shape == tuple(self.arrays[f"{name}.shape"]), name
            positions = np.linspace(0, got.size - 1, SAMPLES).astype(np.int64)
            got = got.reshape(-1)[positions[:: SAMPLES // published.size]]
        assert got.shape == published.shape, name
        difference = np.abs(got.astype(np.float64) - published)
        worst = float(difference.max() / np.abs(published).max())
        print(f"{self.case} {name}: relative difference max {worst:.2e}, mean {difference.mean():.2e}")
        assert worst <= tolerance, f"{self.case} {name}: {worst:.3g} > {tolerance}"

    def _published(self, name: str) -> np.ndarray:
        return self.arrays[name] if name in self.arrays else self.arrays[f"{name}.samples"]
