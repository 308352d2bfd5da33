"""Small models to export."""

from dataclasses import replace

import pytest

from globalvit.build import create_model
from globalvit.models import variants

TINY = {
    "gcvit_xxtiny": {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "width": 16},
    "gpvit_l1": {"width": 24},
}
# Heads look at blocks 2 to 11; a classifier needs but one of each kind.
SHALLOW = {"depth": 2, "group_tokens": ((1, 8),), "outputs": (1,)}


@pytest.fixture
def tiny(monkeypatch):
    """Build a model whose backbone is made tiny, `gpvit_l1` without a head the most."""

    def build(name, **arguments):
        backbone, head = variants.split_name(name)
        smaller = TINY[backbone] | (SHALLOW if backbone == "gpvit_l1" and head is None else {})
        monkeypatch.setitem(variants.VARIANTS, backbone, replace(variants.VARIANTS[backbone], **smaller))
        return create_model(name, **{"num_classes": 3} | arguments)

    return build
