"""`globalvit explain`: what a model looks at in images, as overlays, contact sheets and arrays."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.cli import tables
from globalvit.cli.images import Reader, Source, Writer, find_images
from globalvit.cli.opening import ModelOptions, about, explained_memory, open_model, place, too_many
from globalvit.cli.options import parse
from globalvit.cli.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.explain import Explanation, View
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
SUMMARY = "Show what a model looks at in images: attention, group tokens, Grad-CAM, as overlays and arrays"
LOOK, WHERE, FILES = "what to look at; counted from 0", "where to look from, in the images' own pixels", "files"
Kind = Literal["local", "global", "groups", "propagation", "rollout", "grad_cam", "all"]
# Objects of a lower score are not drawn.
SHOWN_FROM = 0.5
# Kinds of the sheet that is made unless a kind is asked for, and how many views of each, the last ones.
SHEET = {"grad_cam": 2, "global": 2, "groups": 2}


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """What `globalvit explain` is asked for."""

    images: tuple[str, ...] = field(metadata={"help": "images, folders or http(s) addresses", "metavar": "IMAGES"})
    kind: Kind | None = field(
        default=None, metadata=about(LOOK, "all: each one the model has; else Grad-CAM, global attention or groups")
    )
    stage: int | None = field(default=None, metadata=about(LOOK, "stage of GC ViT (default: every one)"))
    block: int | None = field(
        default=None,
        metadata=about(
            LOOK, "block of the stage or of GPViT's network (default: the last; every one with --stage or GPViT)"
        ),
    )
    head: int | None = field(default=None, metadata=about(LOOK, "attention head (default: the mean of all)"))
    group: int | None = field(default=None, metadata=about(LOOK, "group token of GPViT (default: the pixel's)"))
    target: str | None = field(
        default=None, metadata=about(LOOK, "class by name or number, for grad_cam (default: the model's answer)")
    )
    pixel: tuple[int, int] | None = field(
        default=None, metadata=about(WHERE, "x,y: where attention starts from (default: the center)")
    )
    region: tuple[int, int, int, int] | None = field(
        default=None, metadata=about(WHERE, "left,top,right,bottom, in place of a pixel")
    )
    output: Path = field(default=Path("explained"), metadata=about(FILES, "folder for overlays and contact sheets"))
    npz: bool = field(default=False, metadata=about(FILES, "also write the numbers: one .npz file per image"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            raise ValueError("--batch-size has no effect on explain, which takes one image at a time; leave it out")


def run(argv: Sequence[str], prog: str) -> int:
    """Explain what the model sees in the images; return the exit status, 1 if any image failed."""
    options = parse(ExplainOptions, argv, prog, SUMMARY, positional=("images",))
    # Not before the options are read: --help stays quick.
    from globalvit.train.inputs import set_up

    images, failures = find_images(options.images)
    task = open_model(options)
    settings = replace(options.settings(), model=task.spec.model)
    set_up(task, settings)
    looks, autocast, writer = _looks(task, options), place(task, settings), Writer(options.output)
    rows: list[dict[str, str]] = []
    refused: list[str] = []
    with Progress(len(images), "explaining") as progress:
        reader = Reader(failures, progress)
        for source, image in reader.read(images, lambda image: image):
            try:
                with autocast(), explained_memory(too_many(1)):
                    if found := _explain(task, source, image, looks, refused):
                        rows.extend(_write(task, source, image, found, writer, has_arrays=options.npz))
            except (OSError, ValueError, MemoryError) as error:
                reader.fail(source.name, error)
    if refused and not rows:
        raise ValueError(refused[0])
    for reason in dict.fromkeys(refused):
        logger.warning("left out: %s", reason)
    total = len(images) + len(failures)
    if not rows:
        raise ValueError(f"none of the {total} images could be explained; the first: {reader.failures[0].reason}")
    tables.show(rows)
    logger.info("contact sheets and overlays are in %s", options.output)
    return reader.finish(total)


def _looks(task: "Task", options: ExplainOptions) -> "list[tuple[View, dict[str, Any]]]":
    """Return the views to show of every source, each with the arguments of `explain` other than stage and block.

    Raises:
        ValueError: the model has no such view, or something was given that none of them takes.
    """
    from globalvit.explain import find_class

    given: dict[str, Any] = {name: getattr(options, name) for name in ("head", "group", "pixel", "region")}
    given["target"] = None if options.target is None else find_class(task, options.target)
    given = {name: value for name, value in given.items() if value is not None}
    chosen = _views(task, options)
    for name in given:
        if not any(name in view.takes for view in chosen):
            kinds = dict.fromkeys(view.kind for view in chosen)
            raise ValueError(f"--{name} means nothing for {', '.join(kinds)} of {task.spec.model}; leave it out")
    if options.kind not in (None, "all"):
        return [(view, given) for view in chosen]
    return [(view, _taken(view, given)) for view in chosen]


def _taken(view: "View", given: dict[str, Any]) -> dict[str, Any]:
    """What means something for a view, where several kinds are shown: a group is looked at from everywhere."""
    taken = {name: value for name, value in given.items() if name in view.takes}
    if "group" in taken:
        taken = {name: value for name, value in taken.items() if name not in ("pixel", "region")}
    return taken


def _views(task: "Task", options: ExplainOptions) -> "list[View]":
    from globalvit.explain import find_view, views

    every = views(task)
    if options.kind is None:
        found = [view for kind, last in SHEET.items() for view in _last_blocks(_matching(every, kind, options))[-last:]]
        return found or _refused(task, options)
    if options.kind == "all":
        kinds = dict.fromkeys(view.kind for view in every)
        found = [_matching(every, kind, options)[-1:] for kind in kinds]
        return [view for views_of_kind in found for view in views_of_kind] or _refused(task, options)
    # Refuses what is not there in words.
    find_view(task, options.kind, options.stage, options.block, options.head)
    matching = _matching(every, options.kind, options)
    return matching if options.stage is not None else _last_blocks(matching)


def _matching(every: "Sequence[View]", kind: str, options: ExplainOptions) -> "list[View]":
    return [
        view
        for view in every
        if view.kind == kind
        and options.stage in (None, view.stage)
        and (options.block is None or view.block in (None, options.block))
        and (options.head is None or "head" not in view.takes or options.head < view.heads)
    ]


def _last_blocks(matching: "Sequence[View]") -> "list[View]":
    """The last view of each stage; where there are no stages, every one."""
    last = {(view.stage, view.block if view.stage is None else None): view for view in matching}
    return list(last.values())


def _refused(task: "Task", options: ExplainOptions) -> "list[View]":
    where = " ".join(
        f"--{name} {value}" for name in ("stage", "block", "head") if (value := getattr(options, name)) is not None
    )
    raise ValueError(f"{task.spec.model} has nothing to show at {where}; name a --kind to hear what it has")


def _explain(
    task: "Task",
    source: Source,
    image: "Image.Image",
    looks: "Sequence[tuple[View, dict[str, Any]]]",
    refused: list[str],
) -> "list[Explanation]":
    """What there is to show of one image; why there is no more, such as no object to explain, goes to `refused`."""
    from globalvit.explain import explain

    found = []
    for view, asked in looks:
        try:
            found.append(explain(task, image, view.kind, stage=view.stage, block=view.block, **asked))
        except ValueError as error:
            refused.append(f"{source.name}: {error}")
    return found


def _write(
    task: "Task",
    source: Source,
    image: "Image.Image",
    found: "Sequence[Explanation]",
    writer: Writer,
    *,
    has_arrays: bool,
) -> Iterator[dict[str, str]]:
    """Write one image's overlays, sheet and arrays; yield a row of the table for each overlay."""
    from globalvit.cli.drawing import fit
    from globalvit.explain import contact_sheet, overlay

    title, beside = _answer(task, image)
    writer.write(source, contact_sheet(image, found, title=title, beside=beside), "-sheet")
    fitted = fit(image)
    for one in found:
        writer.write(source, overlay(fitted, one), f"-{_slug(one)}")
        yield _row(source, one)
    if has_arrays:
        _write_arrays(writer.place(source, ".npz"), found)


def _answer(task: "Task", image: "Image.Image") -> "tuple[str, list[tuple[Image.Image, str]]]":
    """What the model says of the source: a caption, and drawn where its answer lies in the source."""
    from globalvit.data.classification.imagenet import readable

    (answer,) = task.predict([image])
    if task.kind == "classify":
        (name,), score = readable(answer["names"][:1]), answer["scores"][0]
        return f"{name} {100 * score:.0f} %", []
    if task.kind == "segment":
        from globalvit.drawing.overlay import overlay_labels
        from globalvit.drawing.palette import default_palette

        drawn = overlay_labels(image, answer["mask"].numpy(), default_palette(len(answer["names"])))
        return "image", [(drawn, ", ".join(answer["areas"]))]
    from globalvit.drawing.instances import draw_instances

    kept = (answer["scores"] > SHOWN_FROM).nonzero()[:, 0]
    drawn = draw_instances(image, answer["boxes"][kept], answer["labels"][kept], task.class_names)
    return "image", [(drawn, f"{len(kept)} objects above {SHOWN_FROM:g}")]


def _slug(one: "Explanation") -> str:
    """A name for files: `global-stage-3-block-1-head-4`."""
    parts = [(name, getattr(one, name)) for name in ("stage", "block", "head", "group")]
    return "-".join([one.kind, *(f"{name}-{value}" for name, value in parts if value is not None)])


def _row(source: Source, one: "Explanation") -> dict[str, str]:
    return {
        "image": source.name,
        "kind": one.kind,
        "shows": one.title if one.head is None else f"{one.title}, head {one.head}",
        "on padding, %": tables.number(100 * one.padding_share, 1),
        "class": one.name or "–",
    }


def _write_arrays(path: Path, found: "Sequence[Explanation]") -> None:
    """The token grids by name, the part that fell on padding, and where in the image the model looked."""
    import numpy as np

    from globalvit.atomic import replace_with

    arrays: dict[str, Any] = {
        "crop": np.array(found[0].crop),
        "input_size": np.array(found[0].input_size),
        "original_size": np.array(found[0].original_size),
    }
    for one in found:
        arrays[_slug(one)] = one.values
        arrays[f"{_slug(one)}-padding_share"] = np.array(one.padding_share)
    with replace_with(path) as temporary:
        np.savez_compressed(temporary, **arrays)
