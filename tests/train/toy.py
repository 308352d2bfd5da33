"""`globalvit` with the smallest variant of each family made tiny: python toy.py train ..."""

import sys
from dataclasses import replace

from globalvit.models.variants import VARIANTS

TOY = replace(VARIANTS["gcvit_xxtiny"], depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), width=16)


if __name__ == "__main__":
    from globalvit.cli.main import main
    from globalvit.detectors import assign
    from globalvit.heads import dense

    VARIANTS["gcvit_xxtiny"] = TOY
    VARIANTS["gpvit_l1"] = replace(VARIANTS["gpvit_l1"], width=24)
    # What is dropped and what is drawn depends on the process.
    dense.DROPOUT = 0.0
    assign._draw = lambda indices, most, _: indices[:most]
    sys.exit(main())
