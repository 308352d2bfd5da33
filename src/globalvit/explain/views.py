"""What can be looked at in a model, and finding one of it by stage, block and head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from globalvit.closest import suggest
from globalvit.models.backbone import AttentionView
from globalvit.tasks.task import Task

KINDS = ("local", "global", "groups", "propagation", "rollout", "grad_cam")
PLACES = {"pixel": "x, y", "region": "left, top, right, bottom"}
# Choices, in addition to stage and block, that each kind knows; `place` kinds ask for a pixel or a region.
CHOICES: dict[str, tuple[str, ...]] = {
    "local": ("head", "pixel", "region"),
    "global": ("head", "pixel"),
    "groups": ("head", "group", "pixel"),
    "propagation": ("head", "group", "pixel", "region"),
    "rollout": ("pixel", "region"),
    "grad_cam": ("target",),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class View(AttentionView):
    """One thing to look at: what the backbone offers, with what the task adds.

    Attributes:
        takes: the choices of `explain` that apply here: `head`, `pixel`, `region`, `group`, `target`.
    """

    takes: tuple[str, ...] = ()


def views(model: Task) -> list[View]:
    """Everything `explain` can show of a model, kind by kind, from the first block to the last.

    Raises:
        ValueError: the backbone, of an extension, has nothing to show.
    """
    found = model.backbone.attention_views()
    if not found:
        raise ValueError(f"{model.spec.model} has no blocks that can be shown; its backbone has no attention_views()")
    # Where Grad-CAM's score is one of many in an image, a place says which.
    placed = () if model.kind == "classify" else ("pixel", "region")
    every = [
        View(
            kind=one.kind,
            stage=one.stage,
            block=one.block,
            heads=one.heads,
            stride=one.stride,
            takes=CHOICES[one.kind] + placed * (one.kind == "grad_cam"),
        )
        for one in found
    ]
    return sorted(every, key=lambda view: KINDS.index(view.kind))


def find_view(model: Task, kind: str, stage: int | None, block: int | None, head: int | None) -> View:
    """The view of a kind; the last stage, and the last block of that kind in it, where none is given.

    Raises:
        ValueError: the model has none such; the text says what it has.
    """
    name, every = model.spec.model, views(model)
    of_kind = [view for view in every if view.kind == kind]
    if not of_kind:
        kinds = dict.fromkeys(view.kind for view in every)
        raise ValueError(f"{name} has no kind={kind!r}; it has {', '.join(kinds)}.{suggest(kind, kinds)}")
    where = f"kind={kind!r} of {name}"
    stage = _choose("stage", stage, [view.stage for view in of_kind], where)
    of_stage = [view for view in of_kind if view.stage == stage]
    where += "" if stage is None else f" in stage {stage}"
    block = _choose("block", block, [view.block for view in of_stage], where)
    view = next(view for view in of_stage if view.block == block)
    if head is not None:
        _choose(
            "head", head, list(range(view.heads)) or [None], f"{where}{'' if block is None else f', block {block}'}"
        )
    return view


def check_choices(view: View, given: dict[str, Any]) -> None:
    """Refuse a choice that does not apply to a view.

    Raises:
        ValueError: one is given; the text says which ones the kind knows.
    """
    for name, value in given.items():
        if value is not None and name not in view.takes:
            raise ValueError(f"{name} does not apply to kind={view.kind!r} here; use {', '.join(view.takes)}")
    for name, count in (("pixel", 2), ("region", 4)):
        value = given.get(name)
        if value is not None and (not isinstance(value, Sequence) or len(value) != count):
            raise ValueError(f"{name}={value!r} must be {count} whole numbers: {PLACES[name]}")
    if given.get("pixel") is not None and given.get("region") is not None:
        raise ValueError("pixel and region were both given; leave one out")
    if given.get("group") is not None and (given.get("pixel") or given.get("region")) is not None:
        raise ValueError("group and pixel or region were given; a group is looked at from everywhere, leave one out")


def _choose(name: str, wanted: int | None, there: Iterable[int | None], where: str) -> int | None:
    """One of the numbers `there`, the last unless another is wanted."""
    numbers = list(dict.fromkeys(there))
    if wanted is None:
        return numbers[-1]
    if numbers == [None]:
        raise ValueError(f"{name}={wanted} was given, and {where} has no {name}s to choose from; leave it out")
    if wanted not in numbers:
        raise ValueError(f"{name}={wanted} is not there; {where} has {name} {_listed(cast('list[int]', numbers))}")
    return wanted


def _listed(numbers: list[int]) -> str:
    """`0 to 3` where they follow one another, else every one."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
