"""Maps of where a model looks: the available choices, and the map of a choice."""

from dataclasses import dataclass

from PIL import Image

from globalvit.data.common.transforms import FitTransform
from globalvit.demo.images import LONGEST_SHOWN, bounded, enlarged
from globalvit.explain import View, explain, overlay, views
from globalvit.explain.explanation import LEAST_SAID
from globalvit.tasks.task import Task

# Kind of map → its title, and what it shows; in the order of the page.
KINDS = {
    "grad_cam": ("Grad-CAM", "Regions of the image that support the class."),
    "global": ("Global attention", "What the global queries, computed from the whole image, attend to in each window."),
    "local": ("Local attention", "What the marked place attends to within its window."),
    "groups": ("Group tokens", "Regions that a group token gathers information from."),
    "propagation": ("Group propagation", "What reaches the marked place through the group tokens."),
    "rollout": ("Rollout", "Attention of all blocks multiplied together."),
}
# Cells a side of the map that is shown first; a block after all others.
LEAST_CELLS, LAST = 4, 10**6


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """The requested map; None chooses the model's first kind, the last stage with enough cells, and the last block.

    A head of None is the mean over heads, a target of None the most likely class; `pixel` (x, y) is the marked place.
    """

    kind: str | None = None
    stage: int | None = None
    block: int | None = None
    head: int | None = None
    pixel: tuple[int, int] | None = None
    target: int | None = None
    opacity: float = 0.6


def settle(task: Task, wish: Wish) -> tuple[View, list[View]]:
    """Return the view of a model that is closest to a request, and all its views in the order of `KINDS`."""
    every = sorted(views(task), key=lambda view: list(KINDS).index(view.kind))
    of_kind = [view for view in every if view.kind == wish.kind] or [one for one in every if one.kind == every[0].kind]
    stage, block = wish.stage, LAST if wish.block is None else wish.block
    if stage is None:
        # The last stage with enough cells to distinguish; the last stage of a small input has a single cell.
        transform = task.preprocessing
        sides = (transform.short_side,) if isinstance(transform, FitTransform) else transform.image_size
        short = min((side for side in sides if side is not None), default=0)
        stage = max((i for i, stride in enumerate(task.backbone.strides) if short >= LEAST_CELLS * stride), default=0)
    return min(of_kind, key=lambda view: (abs((view.stage or 0) - stage), abs((view.block or 0) - block))), every


def layer(view: View) -> str:
    """Return a description of a view."""
    parts = [f"{name} {at}" for name, at in (("stage", view.stage), ("block", view.block)) if at is not None]
    return ", ".join(parts) or "the whole network"


def look(task: Task, image: Image.Image, view: View, wish: Wish) -> tuple[Image.Image, str, str]:
    """Return the map of a view over its image, its title, and a line about what it shows.

    Raises:
        ValueError: the marked place was cropped away before the model saw the image.
    """
    head = None if wish.head is None or not view.heads else min(wish.head, view.heads - 1)
    chosen = {"head": head, "pixel": wish.pixel, "target": wish.target}
    taken = {name: value for name, value in chosen.items() if name in view.takes}
    found = explain(task, image, view.kind, stage=view.stage, block=view.block, **taken)
    notes = [KINDS[view.kind][1]]
    if found.padding_share >= LEAST_SAID:
        notes.append(f"{100 * found.padding_share:.1f} % of the attention is on padding.")
    if "pixel" in view.takes:
        place = "No place is marked" if wish.pixel is None else f"Marked: {wish.pixel[0]}, {wish.pixel[1]}"
        notes.append(f"{place}; click the image or move the sliders to mark a place.")
    title = found.title[:1].upper() + found.title[1:]
    return overlay(enlarged(image), found, opacity=wish.opacity), title, " ".join(notes)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an image's map as a browser gets it."""
    return bounded(enlarged(image), LONGEST_SHOWN).size
