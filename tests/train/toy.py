"""`globalvit` with the smallest variant of each family made tiny, and its heads narrow: python toy.py train ..."""

import sys
from dataclasses import replace
from functools import partial

from globalvit import atomic
from globalvit.models.variants import VARIANTS

TOYS = {
    "gcvit_xxtiny": replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16),
    "gpvit_l1": replace(VARIANTS["gpvit_l1"], width=24),
}


def narrow():
    """What makes heads narrow, as (module, name, value): a thousand regions through the published ones take seconds."""
    from globalvit.detectors import retinanet, roi, rpn
    from globalvit.necks.fpn import FPN
    from globalvit.tasks import detect, segment

    return [
        (detect, "FPN", partial(FPN, out_channels=16)),
        (segment, "SegFormerHead", partial(segment.SegFormerHead, width=32)),
        (roi, "FC_WIDTH", 16),
        *((module, "WIDTH", 16) for module in (rpn, roi, retinanet)),
    ]


def changes():
    """What is replaced where processes are compared, as (module, name, value)."""
    from globalvit.detectors import assign
    from globalvit.heads import dense
    from globalvit.train import plots

    return [
        # What is dropped and what is drawn depends on the process.
        (dense, "DROPOUT", 0.0),
        (assign, "_draw", lambda indices, most, _: indices[:most]),
        # Rendering takes longer than such a run trains.
        (plots, "_save", lambda _, path: atomic.write_text(path, "")),
    ]


if __name__ == "__main__":
    from globalvit.cli.main import main

    VARIANTS.update(TOYS)
    for module, name, value in [*narrow(), *changes()]:
        setattr(module, name, value)
    sys.exit(main())
