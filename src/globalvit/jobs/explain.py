"""Explanations of what a model looks at in images, as overlays, contact sheets and arrays."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.jobs.images import Reader, Source, Writer
from globalvit.jobs.opening import ModelOptions, about, explained_memory, open_model, place, too_many

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.explain import Explanation, View
    from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
LOOK, WHERE, FILES = "what to look at; counted from 0", "where to look from, in pixels of the original image", "files"
Kind = Literal["local", "global", "groups", "propagation", "rollout", "grad_cam", "all"]
# Objects of a lower score are not drawn.
SHOWN_FROM = 0.5
# Kinds shown on the sheet without --kind, and how many of the last views of each.
SHEET = {"grad_cam": 2, "global": 2, "groups": 2}


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """Options of `globalvit explain`."""

    images: tuple[str, ...] = field(metadata={"help": "images, folders, patterns or http(s) URLs", "metavar": "IMAGES"})
    kind: Kind | None = field(
        default=None,
        metadata=about(
            LOOK, "all shows every kind that the model has (default: Grad-CAM, and global attention or group tokens)"
        ),
    )
    stage: int | None = field(default=None, metadata=about(LOOK, "stage of GC ViT (default: all)"))
    block: int | None = field(
        default=None,
        metadata=about(LOOK, "block of the stage, or of GPViT (default: the last; all with --stage or GPViT)"),
    )
    head: int | None = field(default=None, metadata=about(LOOK, "attention head (default: the mean over heads)"))
    group: int | None = field(default=None, metadata=about(LOOK, "group token of GPViT (default: the pixel's)"))
    target: str | None = field(
        default=None, metadata=about(LOOK, "class name or index, for grad_cam (default: the predicted class)")
    )
    pixel: tuple[int, int] | None = field(
        default=None, metadata=about(WHERE, "x,y of the pixel whose attention is shown (default: the center)")
    )
    region: tuple[int, int, int, int] | None = field(
        default=None, metadata=about(WHERE, "left,top,right,bottom of a region, instead of a pixel")
    )
    output: Path | None = field(
        default=Path("explained"), metadata=about(FILES, "folder for overlays and contact sheets")
    )
    npz: bool = field(default=False, metadata=about(FILES, "also write the maps as arrays, one .npz file per image"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None:
            raise ValueError("--batch-size has no effect on explain, which processes one image at a time; leave it out")
        if self.npz and self.output is None:
            raise ValueError("--npz requires --output DIR, the folder for the arrays")


@dataclass(frozen=True, eq=False)
class Explained:
    """Explanations of one image.

    Attributes:
        image: its path or URL.
        explanations: maps of where the model looked; see `globalvit.explain.Explanation`.
        sheet: the image and an overlay of each explanation, with captions.
    """

    image: str
    explanations: "tuple[Explanation, ...]"
    sheet: "Image.Image"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return one row per explanation: kind, stage, block, head, title, share on padding, class."""
        keys = ("kind", "stage", "block", "head", "title", "padding_share", "name")
        return [{key: getattr(one, key) for key in keys} for one in self.explanations]

    def plot(self) -> "Image.Image":
        """Return the sheet, which notebooks show and `save` writes."""
        return self.sheet


class Explainer:
    """A model that is ready to be explained, and the requested views.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the model does not have the requested view, or a setting is invalid.
    """

    def __init__(self, options: ExplainOptions) -> None:
        # Imported after the options are read, which keeps --help fast.
        from globalvit.train.inputs import set_up

        self.task = open_model(options)
        settings = replace(options.settings(), model=self.task.spec.model)
        set_up(self.task, settings)
        self.options, self.looks = options, _looks(self.task, options)
        self.autocast = place(self.task, settings)
        self.writer = None if options.output is None else Writer(options.output)
        self.refused: list[str] = []

    def explain(self, images: Iterable[Source], reader: Reader) -> Iterator[Explained]:
        """Explain one image after another and write the files; failures go to `reader`.

        Views that cannot be shown for an image are skipped, and the reasons are logged at the end.

        Raises:
            ValueError: no image could be explained; the text is the first reason.
        """
        count = 0
        for source, image in reader.read(images, lambda image: image, self.task.preprocessing.channels):
            try:
                with self.autocast(), explained_memory(too_many(1)):
                    explained = self._explained(source, image)
            except (OSError, ValueError, MemoryError) as error:
                reader.fail(source.name, error)
                continue
            if explained is not None:
                count += 1
                yield explained
        if self.refused and not count:
            raise ValueError(self.refused[0])
        for reason in dict.fromkeys(self.refused):
            logger.warning("left out: %s", reason)

    def _explained(self, source: Source, image: "Image.Image") -> Explained | None:
        from globalvit.explain import contact_sheet

        found = _explain(self.task, source, image, self.looks, self.refused)
        if not found:
            return None
        title, beside = _answer(self.task, image)
        sheet = contact_sheet(image, found, title=title, beside=beside)
        if self.writer is not None:
            _write(source, image, found, sheet, self.writer, has_arrays=self.options.npz)
        return Explained(source.name, tuple(found), sheet)


def _looks(task: "Task", options: ExplainOptions) -> "list[tuple[View, dict[str, Any]]]":
    """Return the views to show for every image, each with the arguments of `explain` other than stage and block.

    Raises:
        ValueError: the model does not have the requested view, or an option has no effect on any of them.
    """
    from globalvit.explain import find_class

    given: dict[str, Any] = {name: getattr(options, name) for name in ("head", "group", "pixel", "region")}
    given["target"] = None if options.target is None else find_class(task, options.target)
    given = {name: value for name, value in given.items() if value is not None}
    chosen = _views(task, options)
    for name in given:
        if not any(name in view.takes for view in chosen):
            kinds = dict.fromkeys(view.kind for view in chosen)
            raise ValueError(f"--{name} has no effect on {', '.join(kinds)} of {task.spec.model}; leave it out")
    if options.kind not in (None, "all"):
        return [(view, given) for view in chosen]
    return [(view, _taken(view, given)) for view in chosen]


def _taken(view: "View", given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that apply to a view when several kinds are shown; a group does not depend on a pixel."""
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
    # Raises an error with the available views if there is no match.
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
    """Return the last view of each stage, or every view of a model without stages."""
    last = {(view.stage, view.block if view.stage is None else None): view for view in matching}
    return list(last.values())


def _refused(task: "Task", options: ExplainOptions) -> "list[View]":
    where = " ".join(
        f"--{name} {value}" for name in ("stage", "block", "head") if (value := getattr(options, name)) is not None
    )
    raise ValueError(f"{task.spec.model} has nothing to show at {where}; add --kind to see what it has")


def _explain(
    task: "Task",
    source: Source,
    image: "Image.Image",
    looks: "Sequence[tuple[View, dict[str, Any]]]",
    refused: list[str],
) -> "list[Explanation]":
    """Return the explanations of one image; reasons why one is missing, such as no object, go to `refused`."""
    from globalvit.explain import explain

    found = []
    for view, asked in looks:
        try:
            found.append(explain(task, image, view.kind, stage=view.stage, block=view.block, **asked))
        except ValueError as error:
            refused.append(f"{source.name}: {error}")
    return found


def _write(
    source: Source,
    image: "Image.Image",
    found: "Sequence[Explanation]",
    sheet: "Image.Image",
    writer: Writer,
    *,
    has_arrays: bool,
) -> None:
    """Write one image's sheet, overlays and arrays."""
    from globalvit.explain import overlay
    from globalvit.jobs.drawing import fit

    writer.write(source, sheet, "-sheet")
    fitted = fit(image)
    for one in found:
        writer.write(source, overlay(fitted, one), f"-{_slug(one)}")
    if has_arrays:
        _write_arrays(writer.place(source, ".npz"), found)


def _answer(task: "Task", image: "Image.Image") -> "tuple[str, list[tuple[Image.Image, str]]]":
    """Return the model's prediction: a caption, and drawings of it on the source image."""
    from globalvit.data.classification.imagenet import readable

    (answer,) = task.predict([image])
    if task.kind == "classify":
        pairs = zip(readable(answer["names"]), answer["scores"], strict=True)
        labels = [f"{name} {100 * score:.0f} %" for name, score in pairs]
        return ", ".join(labels if task.spec.multi_label else labels[:1]) or "no label", []
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
    """Return a name for files: `global-stage-3-block-1-head-4`."""
    parts = [(name, getattr(one, name)) for name in ("stage", "block", "head", "group")]
    return "-".join([one.kind, *(f"{name}-{value}" for name, value in parts if value is not None)])


def _write_arrays(path: Path, found: "Sequence[Explanation]") -> None:
    """Return the token grids by name, the share that fell on padding, and the image area that the model saw."""
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
