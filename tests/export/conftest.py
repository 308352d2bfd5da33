"""Small models to export."""

from dataclasses import replace

import pytest

from globalvit.build import create_model
from globalvit.models import variants

TINY = {
    "gcvit_xxtiny": {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "width": 16},
    "gpvit_l1": {"width": 24},
}


@pytest.fixture
def tiny(monkeypatch):
    """Build a model whose backbone is made tiny."""

    def build(name, **arguments):
        for backbone, smaller in TINY.items():
            monkeypatch.setitem(variants.VARIANTS, backbone, replace(variants.VARIANTS[backbone], **smaller))
        return create_model(name, **{"num_classes": 3} | arguments)

    return build
