"""`globalvit validate`: evaluate a model on labeled images, in one process or under torchrun."""

import logging
import os
from collections.abc import Sequence

from globalvit.cli import tables
from globalvit.cli.options import UsageError, parse
from globalvit.cli.scores import LAYOUTS
from globalvit.jobs.validate import NEEDS_DATA, Result, ValidateOptions, validate

logger = logging.getLogger(__name__)
SUMMARY = "Measure accuracy, mIoU or AP on labeled images, class by class"
# Maximum rows on the screen; files contain all of them.
MOST_ROWS = 40


def run(argv: Sequence[str], prog: str) -> int:
    """Evaluate a model; return the exit status."""
    options = parse(ValidateOptions, argv, prog, SUMMARY)
    if options.settings().data_dir is None:
        raise UsageError(f"{prog} {NEEDS_DATA}")
    result = validate(options)
    if os.environ.get("RANK", "0") == "0":
        show(result)
    return 0


def show(result: Result) -> None:
    """Print one row per class, worst first if there are many, then the scores."""
    layout, scores = LAYOUTS["multi_label" if "map" in result.scores else result.kind], result.scores
    rows = result.rows
    if len(rows) > MOST_ROWS:
        rows = sorted(rows, key=lambda row: 101 if row[layout.judged] is None else row[layout.judged])[:MOST_ROWS]
        logger.info("showing the %d worst of %d classes; use --output to write all", MOST_ROWS, len(result.rows))
    tables.show([layout.cells(row) for row in rows])
    left_out = f", {len(result.skipped)} skipped" if result.skipped else ""
    tables.write_line(f"{layout.summary(scores)}  on {scores['count']:.0f} images{left_out}")
