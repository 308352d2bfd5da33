"""What a model says of a picture, as a piece of the page.

Every name that stands in a page is escaped: class names come from files that anybody may have written.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.draw_instances import draw_instances
from globalvit.data.imagenet import readable
from globalvit.data.overlay import overlay_labels
from globalvit.data.palette import default_palette
from globalvit.demo.pictures import data_url, enlarged
from globalvit.tasks.classify import Classifier
from globalvit.tasks.task import Task

TOP = 5
# Labels are drawn over pictures of at least so many pixels a side, so that their edges are sharp.
LEAST = 384
MOST_AREAS, MOST_OBJECTS = 8, 8


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model says of a picture.

    Attributes:
        kind: of the task.
        classes: names of all labels.
        picture: what the model was asked about, RGB.
        prediction: as the task's `predict` gives it.
    """

    kind: str
    classes: tuple[str, ...]
    picture: Image.Image
    prediction: dict[str, Any]

    @classmethod
    def of(cls, task: Task, picture: Image.Image) -> "Answer":
        """Ask a model, which is not held on to."""
        return cls(task.kind, task.class_names, picture, _predict(task, picture))

    def html(self, threshold: float = 0.5) -> str:
        """The answer as HTML; of a detector, objects with a score above `threshold`."""
        if self.kind == "segment":
            return _areas(self.picture, self.prediction)
        if self.kind == "detect":
            return _objects(self.classes, self.picture, self.prediction, threshold)
        return _classes(self.prediction)


def _predict(task: Task, picture: Image.Image) -> dict[str, Any]:
    if isinstance(task, Classifier):
        return task.predict(picture, top_k=TOP)[0]
    return task.predict(picture)[0]


def _classes(prediction: dict[str, Any]) -> str:
    names, scores = readable(prediction["names"]), prediction["scores"]
    lines = (_bar(name, score) for name, score in zip(names, scores, strict=True))
    return f'<h2>{escape(names[0])}</h2><ol class="bars" aria-label="The likeliest classes">{"".join(lines)}</ol>'


def _areas(picture: Image.Image, prediction: dict[str, Any]) -> str:
    names, areas = prediction["names"], prediction["areas"]
    palette = default_palette(len(names))
    picture = enlarged(picture, LEAST)
    labels = Image.fromarray(prediction["mask"].numpy()).resize(picture.size, Image.Resampling.NEAREST)
    drawn = overlay_labels(picture, np.asarray(labels), palette)
    shown = list(areas.items())[:MOST_AREAS]
    lines = (_bar(name, share, _colour(palette[names.index(name)])) for name, share in shown)
    text = f"The picture coloured by class: {_listed(name for name, _ in shown)}"
    return f'{image(drawn, text)}<ul class="bars" aria-label="Parts of the picture">{"".join(lines)}</ul>' + _rest(
        len(areas) - len(shown), "smaller areas"
    )


def _objects(classes: Sequence[str], picture: Image.Image, prediction: dict[str, Any], threshold: float) -> str:
    kept = (prediction["scores"] > threshold).nonzero()[:, 0]
    scores, labels = prediction["scores"][kept], prediction["labels"][kept]
    masks = prediction["masks"][kept] if "masks" in prediction else None
    drawn = draw_instances(picture, prediction["boxes"][kept], labels, classes, scores=scores, masks=masks)
    found = [classes[int(label)] for label in labels]
    counts = ", ".join(f"{count} × {name}" for name, count in Counter(found).most_common()) or "nothing"
    palette = default_palette(len(classes) + 1)[1:]
    shown = list(zip(found, scores.tolist(), labels.tolist(), strict=True))[:MOST_OBJECTS]
    lines = (_bar(name, score, _colour(palette[label])) for name, score, label in shown)
    return (
        f'{image(drawn, f"The picture with what was found: {counts}")}<p class="found">Found: {escape(counts)}</p>'
        f'<ul class="bars" aria-label="Objects and their scores">{"".join(lines)}</ul>'
    ) + _rest(len(found) - len(shown), "more")


def image(picture: Image.Image, text: str, classes: str = "") -> str:
    """A picture as HTML, with its alternative text."""
    return f'<img class="picture {classes}" src="{data_url(picture)}" alt="{escape(text)}">'


def _bar(name: str, part: float, colour: str = "") -> str:
    """A line with a bar as long as a part of 1."""
    swatch = f'<span class="swatch" style="background:{colour}"></span>' if colour else ""
    style = f"--part:{part:.4f}" + (f";--bar:{colour}" if colour else "")
    return (
        f'<li style="{style}"><span class="name">{swatch}{escape(name)}</span>'
        f'<span class="percent">{100 * part:.1f} %</span></li>'
    )


def _rest(number: int, what: str) -> str:
    return f'<p class="note">and {number} {what}</p>' if number > 0 else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _colour(rgb: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb.tolist())
