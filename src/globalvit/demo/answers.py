"""What a model says of an image, as a piece of the page.

Every name that stands in a page is escaped: class names come from files that anybody may have written.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.classification.imagenet import readable
from globalvit.demo.images import data_url, enlarged
from globalvit.drawing.instances import draw_instances
from globalvit.drawing.overlay import overlay_labels
from globalvit.drawing.palette import default_palette
from globalvit.tasks.classify import Classifier
from globalvit.tasks.task import Task

TOP = 5
# Labels are drawn over images of at least so many pixels a side, so that their edges are sharp.
LEAST = 384
MOST_AREAS, MOST_OBJECTS = 8, 8


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model says of an image.

    Attributes:
        kind: of the task.
        classes: names of all labels.
        image: what the model was asked about, RGB.
        prediction: as the task's `predict` gives it.
    """

    kind: str
    classes: tuple[str, ...]
    image: Image.Image
    prediction: dict[str, Any]

    @classmethod
    def of(cls, task: Task, image: Image.Image) -> "Answer":
        """Ask a model, which is not held on to."""
        return cls(task.kind, task.class_names, image, _predict(task, image))

    def html(self, threshold: float = 0.5) -> str:
        """The answer as HTML; of a detector, objects with a score above `threshold`."""
        if self.kind == "segment":
            return _areas(self.image, self.prediction)
        if self.kind == "detect":
            return _objects(self.classes, self.image, self.prediction, threshold)
        return _classes(self.prediction)


def _predict(task: Task, image: Image.Image) -> dict[str, Any]:
    if isinstance(task, Classifier):
        return task.predict(image, top_k=TOP)[0]
    return task.predict(image)[0]


def _classes(prediction: dict[str, Any]) -> str:
    names, scores = readable(prediction["names"]), prediction["scores"]
    lines = (_bar(name, score) for name, score in zip(names, scores, strict=True))
    return f'<h2>{escape(names[0])}</h2><ol class="bars" aria-label="The likeliest classes">{"".join(lines)}</ol>'


def _areas(image: Image.Image, prediction: dict[str, Any]) -> str:
    names, areas = prediction["names"], prediction["areas"]
    palette = default_palette(len(names))
    image = enlarged(image, LEAST)
    labels = Image.fromarray(prediction["mask"].numpy()).resize(image.size, Image.Resampling.NEAREST)
    drawn = overlay_labels(image, np.asarray(labels), palette)
    shown = list(areas.items())[:MOST_AREAS]
    lines = (_bar(name, share, _color(palette[names.index(name)])) for name, share in shown)
    text = f"The image colored by class: {_listed(name for name, _ in shown)}"
    return f'{img(drawn, text)}<ul class="bars" aria-label="Parts of the image">{"".join(lines)}</ul>' + _rest(
        len(areas) - len(shown), "smaller areas"
    )


def _objects(classes: Sequence[str], image: Image.Image, prediction: dict[str, Any], threshold: float) -> str:
    kept = (prediction["scores"] > threshold).nonzero()[:, 0]
    scores, labels = prediction["scores"][kept], prediction["labels"][kept]
    masks = prediction["masks"][kept] if "masks" in prediction else None
    drawn = draw_instances(image, prediction["boxes"][kept], labels, classes, scores=scores, masks=masks)
    found = [classes[int(label)] for label in labels]
    counts = ", ".join(f"{count} × {name}" for name, count in Counter(found).most_common()) or "nothing"
    palette = default_palette(len(classes) + 1)[1:]
    shown = list(zip(found, scores.tolist(), labels.tolist(), strict=True))[:MOST_OBJECTS]
    lines = (_bar(name, score, _color(palette[label])) for name, score, label in shown)
    return (
        f'{img(drawn, f"The image with what was found: {counts}")}<p class="found">Found: {escape(counts)}</p>'
        f'<ul class="bars" aria-label="Objects and their scores">{"".join(lines)}</ul>'
    ) + _rest(len(found) - len(shown), "more")


def img(image: Image.Image, text: str, classes: str = "") -> str:
    """An image as HTML, with its alternative text."""
    return f'<img class="image {classes}" src="{data_url(image)}" alt="{escape(text)}">'


def _bar(name: str, part: float, color: str = "") -> str:
    """A line with a bar as long as a part of 1."""
    swatch = f'<span class="swatch" style="background:{color}"></span>' if color else ""
    style = f"--part:{part:.4f}" + (f";--bar:{color}" if color else "")
    return (
        f'<li style="{style}"><span class="name">{swatch}{escape(name)}</span>'
        f'<span class="percent">{100 * part:.1f} %</span></li>'
    )


def _rest(number: int, what: str) -> str:
    return f'<p class="note">and {number} {what}</p>' if number > 0 else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _color(rgb: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb.tolist())
