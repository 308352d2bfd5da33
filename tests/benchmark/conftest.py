"""The smallest variant made tiny, and a cell of it."""

from dataclasses import replace

import pytest

from globalvit.benchmark.cells import OURS, Cell, Entry
from globalvit.models.variants import VARIANTS


@pytest.fixture
def toy(monkeypatch):
    """gcvit_xxtiny with two blocks a stage and sixteen channels; its name."""
    toy = replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16)
    monkeypatch.setitem(VARIANTS, "gcvit_xxtiny", toy)
    return "gcvit_xxtiny"


@pytest.fixture
def make_cell():
    """A cell of two images of 32 pixels; its entries are ours and those named, all of one way."""

    def make(*peers, way="eager", **changes):
        names = [(OURS, "gcvit_xxtiny"), *(("timm", peer) for peer in peers)]
        entries = tuple(Entry(source=source, model=model, way=way) for source, model in names)
        cell = Cell(
            model="gcvit_xxtiny", mode="inference", precision="fp32", batch_size=2, image_size=(32, 32), entries=entries
        )
        return replace(cell, **changes)

    return make
