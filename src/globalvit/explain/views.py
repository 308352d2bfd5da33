"""What can be looked at in a model, and finding one of it by stage, block and head."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from globalvit.closest import suggest
from globalvit.models.gcvit import Block, GCViT, Stage
from globalvit.models.gcvit_ablated import ShiftedWindowAttention
from globalvit.models.gpvit import GPViT, GroupBlock
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
class View:
    """One thing to look at. Stages, blocks and heads count from 0, as in the names of parameters.

    Attributes:
        kind: `local` (windows of GC ViT, stripes of GPViT), `global`, `groups`, `propagation`, `rollout`, `grad_cam`.
        stage: of GC ViT; None in GPViT, which has none.
        block: of the stage, in GPViT of the network; None where all of them or the stage's output is meant.
        heads: how many there are to choose from, 0 where there is no choice.
        takes: the choices of `explain` that mean something here: `head`, `pixel`, `region`, `group`, `target`.
    """

    kind: str
    stage: int | None = None
    block: int | None = None
    heads: int = 0
    takes: tuple[str, ...] = ()


def views(model: Task) -> list[View]:
    """Everything `explain` can show of a model, kind by kind, from the first block to the last."""
    backbone = model.backbone
    if isinstance(backbone, GCViT):
        found = _of_gcvit(backbone)
    else:
        assert isinstance(backbone, GPViT)
        found = _of_gpvit(backbone)
    # Where Grad-CAM's score is one of many in an image, a place says which.
    placed = () if model.kind == "classify" else ("pixel", "region")
    every = [
        View(kind=kind, stage=stage, block=block, heads=heads, takes=CHOICES[kind] + placed * (kind == "grad_cam"))
        for kind, stage, block, heads in found
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


def _of_gcvit(backbone: GCViT) -> Iterator[tuple[str, int | None, int | None, int]]:
    for number, stage in enumerate(cast("list[Stage]", backbone.stages)):
        attentions = [one.attention for one in cast("Iterable[Block]", stage.blocks)]
        for block, attention in enumerate(attentions):
            # Shifted windows, of the ablations, do not tile the grid and have no maps.
            if not isinstance(attention, ShiftedWindowAttention):
                yield ("global" if attention.is_global else "local"), number, block, backbone.config.num_heads[number]
        if not any(isinstance(attention, ShiftedWindowAttention) for attention in attentions):
            yield "rollout", number, None, 0
        yield "grad_cam", number, None, 0


def _of_gpvit(backbone: GPViT) -> Iterator[tuple[str, int | None, int | None, int]]:
    yield "rollout", None, None, 0
    for block, one in enumerate(backbone.blocks):
        yield "grad_cam", None, block, 0
        if isinstance(one, GroupBlock):
            yield "groups", None, block, backbone.config.num_group_heads
            yield "propagation", None, block, backbone.config.num_group_heads
        else:
            yield "local", None, block, backbone.config.num_heads
