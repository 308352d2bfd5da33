"""Small models to export."""

from dataclasses import replace
from functools import partial

import pytest

from globalvit.build import create_model
from globalvit.detectors import retinanet, roi, rpn
from globalvit.heads import upernet
from globalvit.models import variants
from globalvit.necks.fpn import FPN
from globalvit.tasks import detect

TINY = {
    "gcvit_xxtiny": {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "width": 16},
    "gpvit_l1": {"width": 24},
}
# One block of each kind for classifiers, one for each interaction of the adapter; segmenters look at blocks 2 to 11.
SHALLOW = {
    None: {"depth": 2, "group_tokens": ((1, 8),), "outputs": (1,)},
    "detect": {"depth": 4, "group_tokens": ((1, 8),), "outputs": ()},
    "segment": {},
}


@pytest.fixture
def tiny(monkeypatch):
    """Build a model whose backbone and heads are made tiny."""
    # A thousand regions through the published heads take many seconds.
    monkeypatch.setattr(detect, "FPN", partial(FPN, out_channels=16))
    monkeypatch.setattr(roi, "FC_WIDTH", 32)
    for module in (rpn, roi, retinanet, upernet):
        monkeypatch.setattr(module, "WIDTH", 16)

    def build(name, **arguments):
        backbone, head = variants.split_name(name)
        shallow = SHALLOW[head and variants.HEADS[head]] if backbone == "gpvit_l1" else {}
        smaller = TINY[backbone] | shallow
        monkeypatch.setitem(variants.VARIANTS, backbone, replace(variants.VARIANTS[backbone], **smaller))
        return create_model(name, **{"num_classes": 3} | arguments)

    return build
