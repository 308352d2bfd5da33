"""Where a model looks: which choices a person has, and the map of a choice as a piece of the page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from math import gcd

from PIL import Image

from globalvit.data.common.transforms import FitTransform
from globalvit.demo.answers import img
from globalvit.demo.images import enlarged
from globalvit.explain import Explanation, View, explain, overlay, views
from globalvit.explain.explanation import LEAST_SAID
from globalvit.tasks.task import Task

TITLES = {
    "grad_cam": "Grad-CAM",
    "global": "Global attention",
    "local": "Local attention",
    "groups": "Group tokens",
    "propagation": "Group propagation",
    "rollout": "Rollout",
}
MEANINGS = {
    "grad_cam": "What in the image speaks for the class.",
    "global": "What the queries made from the whole image attend to, window by window.",
    "local": "What the marked place attends to within its window.",
    "groups": "Which places a group token gathers from.",
    "propagation": "What reaches the marked place by way of the group tokens.",
    "rollout": "Attention of all blocks multiplied together.",
}
# Cells a side of the map that is shown first.
LEAST_CELLS = 4
# Less of the attention on padding is not worth a word.
# Maps are drawn over images of at least so many pixels a side.
LEAST = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a person wants to see.

    Attributes:
        kind: of the map; None is the model's first.
        stage: None or one that is not there: the last one, or the nearest.
        block: the same.
        head: None is the mean over all.
        pixel: (x, y) in the image, the place that is asked about; None leaves it to the
            kind: the center, or the mean of all.
        target: the class that Grad-CAM speaks of; None is the likeliest.
        opacity: of the map over the image, 0 … 1.
    """

    kind: str | None = None
    stage: int | None = None
    block: int | None = None
    head: int | None = None
    pixel: tuple[int, int] | None = None
    target: int | None = None
    opacity: float = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Controls:
    """A wish that can be met, and what else could be chosen.

    Attributes:
        wish: with kind, stage and block settled.
        kinds: (title, kind) of every map that the model has.
        stages: to choose from; none where the model has no stages.
        blocks: of the stage that have maps of the kind; none where the map belongs to no block.
        heads: their number, 0 where there is no choice.
        takes: the choices that mean something: `head`, `pixel`, `target`, ….
    """

    wish: Wish
    kinds: list[tuple[str, str]]
    stages: list[int]
    blocks: list[int]
    heads: int
    takes: tuple[str, ...]


def settle(task: Task, wish: Wish) -> Controls:
    """The nearest to a wish that a model has."""
    if wish.stage is None:
        wish = replace(wish, stage=_telling_stage(task))
    return settle_among(views(task), wish)


def _telling_stage(task: Task) -> int:
    """The last stage whose map has some cells to tell apart; in the last one of a small input there is one cell."""
    transform = task.preprocessing
    sides = (transform.short_side,) if isinstance(transform, FitTransform) else transform.image_size
    short = min(side for side in sides if side is not None) if any(sides) else 0
    telling = [stage for stage, stride in enumerate(task.backbone.strides) if short >= LEAST_CELLS * stride]
    return telling[-1] if telling else 0


def settle_among(every: Sequence[View], wish: Wish) -> Controls:
    """The nearest to a wish among views, of which there is at least one."""
    found = dict.fromkeys(view.kind for view in every)
    kinds = [kind for kind in TITLES if kind in found]
    kind = wish.kind if wish.kind in kinds else kinds[0]
    of_kind = [view for view in every if view.kind == kind]
    stages = sorted({view.stage for view in of_kind if view.stage is not None})
    stage = _nearest(stages, wish.stage)
    of_stage = [view for view in of_kind if view.stage == stage]
    blocks = sorted({view.block for view in of_stage if view.block is not None})
    block = _nearest(blocks, wish.block)
    view = next(view for view in of_stage if view.block == block)
    head = None if wish.head is None or not view.heads else min(wish.head, view.heads - 1)
    return Controls(
        wish=replace(wish, kind=kind, stage=stage, block=block, head=head),
        kinds=[(TITLES[kind], kind) for kind in kinds],
        stages=stages,
        blocks=blocks,
        heads=view.heads,
        takes=view.takes,
    )


def look(task: Task, image: Image.Image, controls: Controls) -> Explanation:
    """The map of a wish that was settled.

    Raises:
        ValueError: the marked place was cropped away before the model saw the image.
    """
    wish = controls.wish
    assert wish.kind is not None
    chosen = {"head": wish.head, "pixel": wish.pixel, "target": wish.target}
    taken = {name: value for name, value in chosen.items() if name in controls.takes}
    return explain(task, image, wish.kind, stage=wish.stage, block=wish.block, **taken)


def html(image: Image.Image, explanation: Explanation, controls: Controls) -> str:
    """A map over its image with the marked place, and a line that says what it shows."""
    drawn = overlay(enlarged(image, LEAST), explanation, opacity=controls.wish.opacity)
    shown = img(drawn, f"{explanation.title}, over the image")
    has_place = "pixel" in controls.takes
    place = _placed(shown, image, explanation) if has_place else f'<div class="place">{shown}</div>'
    title = explanation.title[:1].upper() + explanation.title[1:]
    notes = [MEANINGS[explanation.kind]]
    if explanation.padding_share >= LEAST_SAID:
        notes.append(f"{100 * explanation.padding_share:.1f} % of the attention falls on padding.")
    if has_place:
        notes.append("Click the image to ask about a place.")
    return f'{place}<p class="note"><b>{escape(title)}.</b> {escape(" ".join(notes))}</p>'


def step_of(numbers: Sequence[int]) -> int:
    """The step of a slider that meets every one of the numbers."""
    return gcd(*(number - numbers[0] for number in numbers[1:])) or 1


def _placed(shown: str, image: Image.Image, explanation: Explanation) -> str:
    """A drawn map on which a click marks a place, and an arrow key moves it."""
    x, y = explanation.pixel or (image.width // 2, image.height // 2)
    label = "No place is marked" if explanation.pixel is None else f"Marked: {x} from the left, {y} from the top"
    parts = f'data-x="{(x + 0.5) / image.width:.4f}" data-y="{(y + 0.5) / image.height:.4f}"'
    label = f"{label}. Arrow keys move the marked place."
    return f'<div class="place is-placed" {parts} tabindex="0" role="group" aria-label="{label}">{shown}</div>'


def _nearest(numbers: Sequence[int], wanted: int | None) -> int | None:
    if not numbers:
        return None
    return numbers[-1] if wanted is None else min(numbers, key=lambda number: abs(number - wanted))
