"""`globalvit explain`: show what a model looks at in images, as overlays, contact sheets and arrays."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.console import Progress
from globalvit.jobs.explain import Explainer, ExplainOptions
from globalvit.jobs.images import Reader, find_images

if TYPE_CHECKING:
    from globalvit.explain import Explanation

logger = logging.getLogger(__name__)
SUMMARY = "Show what a model looks at in images: attention, group tokens, Grad-CAM, as overlays and arrays"


def run(argv: Sequence[str], prog: str) -> int:
    """Explain the model's predictions for the images; return the exit status, 1 if any image failed."""
    options = parse(ExplainOptions, argv, prog, SUMMARY, positional=("images",))
    images, failures = find_images(options.images)
    explainer = Explainer(options)
    rows: list[dict[str, str]] = []
    with Progress(len(images), "explaining") as progress:
        reader = Reader(failures, progress)
        for explained in explainer.explain(images, reader):
            rows.extend(_row(explained.image, one) for one in explained.explanations)
    total = len(images) + len(failures)
    if not rows:
        raise ValueError(f"none of the {total} images could be explained; first error: {reader.failures[0].reason}")
    tables.show(rows)
    if options.output is not None:
        logger.info("wrote contact sheets and overlays to %s", options.output)
    return reader.finish(total)


def _row(image: str, one: "Explanation") -> dict[str, str]:
    return {
        "image": image,
        "kind": one.kind,
        "shows": one.title if one.head is None else f"{one.title}, head {one.head}",
        "on padding, %": tables.number(100 * one.padding_share, 1),
        "class": one.name or "–",
    }
