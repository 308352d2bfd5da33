"""`globalvit` with the smallest variant of each family made tiny: python toy.py train ..."""

import sys
from dataclasses import replace

from globalvit import atomic
from globalvit.models.variants import VARIANTS

TOYS = {
    "gcvit_xxtiny": replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16),
    "gpvit_l1": replace(VARIANTS["gpvit_l1"], width=24),
}


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
    for module, name, value in changes():
        setattr(module, name, value)
    sys.exit(main())
