"""Published outputs under deterministic weights, and the comparison with ours.

The full vectors lie beside the checkout in `../shared/golden`; where they are absent the small ones of this folder
(every eighth sample of the same arrays, or fewer) stand in, so that the same claims are tested everywhere.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import fill
import numpy as np
import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
FULL = HERE.parents[2] / "shared" / "golden"
SAMPLES = 2048


# Of one case only, as the largest take hundreds of megabytes; tests of one file mostly ask for the same.
@lru_cache(maxsize=1)
def _filled(entries: tuple[tuple[str, tuple[int, ...], str], ...]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill.entry(name, list(shape), dtype)) for name, shape, dtype in entries}


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
        """The checkpoint's entries, whole-number buffers included, which the caller may change."""
        entries = tuple((name, tuple(shape), dtype) for name, shape, dtype in self.entries)
        return {name: value.clone() for name, value in _filled(entries).items()}

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

    def rows(
        self,
        name: str,
        ours: Tensor,
        *,
        kinds: tuple[np.ndarray, Tensor] | None = None,
        fraction: float = 1.0,
        tolerance: float = 1e-3,
    ) -> np.ndarray:
        """Assert that there are as many rows and that a `fraction` of the published ones has its own row of ours.

        Rows match only where their `kinds`, published and ours, are equal: one box may be found as two classes.

        Returns:
            For each published row the index of the nearest of ours.
        """
        published, got = self.arrays[name].astype(np.float64), ours.detach().numpy()
        assert got.shape == published.shape, name
        if len(published) == 0:
            return np.zeros(0, np.int64)
        distances = np.abs(published[:, None] - got[None]).max(-1)
        if kinds is not None:
            distances[kinds[0][:, None] != kinds[1].numpy()[None]] = np.inf
        nearest, near = distances.argmin(1), distances.min(1) <= tolerance
        print(f"{self.case} {name}: {near.sum()} of {len(near)} rows matched, farthest {distances.min(1).max():.2e}")
        assert near.mean() >= fraction, name
        assert len(set(nearest[near])) == near.sum(), f"{name}: rows share a match"
        return nearest

    def _published(self, name: str) -> np.ndarray:
        return self.arrays[name] if name in self.arrays else self.arrays[f"{name}.samples"]


class PublishedLosses:
    """The losses of one training case: its objects, and every term before it is summed over levels."""

    def __init__(self, case: str) -> None:
        self.is_full = (FULL / f"{case}.json").exists()
        meta = json.loads(((FULL if self.is_full else HERE) / f"{case}.json").read_text())
        self.terms: dict[str, list[float]] = {
            name: values for name, values in meta["losses"].items() if not name.endswith("acc")
        }
        self.like: str = meta["like"]
        self.size: tuple[int, int] = tuple(meta["input_shape"][2:])
        self.boxes = torch.tensor(meta["gt_boxes"], dtype=torch.float32)
        self.labels = torch.tensor(meta["gt_labels"])

    def masks(self) -> Tensor:
        """The ellipse that touches each box's sides, sampled at the pixels' centers: (G, H, W) bool."""
        y, x = (torch.arange(side) + 0.5 for side in self.size)
        left, top, right, bottom = self.boxes[:, :, None, None].unbind(1)
        across = (x - (left + right) / 2) / ((right - left) / 2)
        down = (y[:, None] - (top + bottom) / 2) / ((bottom - top) / 2)
        return across**2 + down**2 <= 1

    def check(self, ours: dict[str, Tensor], tolerance: float = 1e-4) -> None:
        """Assert that there are the same terms, each within `tolerance` of the published one, level by level."""
        assert ours.keys() == self.terms.keys()
        for name, published in self.terms.items():
            got = ours[name].detach().reshape(-1).tolist()
            print(f"{self.like} {name}: {got}, published {published}")
            assert got == pytest.approx(published, rel=tolerance, abs=0.0), name
