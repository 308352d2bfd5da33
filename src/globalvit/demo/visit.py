"""State of a browser tab: its model, image and prediction, and how they are shown."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from globalvit.data.classification.imagenet import readable
from globalvit.demo.images import bounded, enlarged, shorten
from globalvit.demo.looks import Wish
from globalvit.demo.shelf import Shelf
from globalvit.drawing.instances import draw_instances
from globalvit.drawing.overlay import overlay_labels
from globalvit.drawing.palette import default_palette
from globalvit.tasks.classify import Classifier
from globalvit.tasks.detect import SCORE_THRESHOLD, Detector
from globalvit.tasks.task import Task

TOP, MOST_LISTED = 5, 8
# Held-out digits with most of the classes; any shapes.
EXAMPLES = range(3, 11)
Shown = tuple[Image.Image, str, str]


@dataclass
class Visit:
    """State of a tab: model key, image (RGB) and its name, prediction, and requested map."""

    key: str | None = None
    image: Image.Image | None = None
    name: str = ""
    prediction: dict[str, Any] | None = None
    wish: Wish = field(default_factory=Wish)

    def choose(self, key: str | None) -> None:
        """Switch to another model and keep the image; classes change, and the model may see less of the image."""
        self.key, self.prediction = key, None
        self.wish = replace(self.wish, target=None, pixel=None)

    def show(self, image: Image.Image, name: str) -> None:
        """Switch to another image."""
        self.image, self.name, self.prediction = bounded(image), shorten(name), None
        self.wish = replace(self.wish, pixel=None)

    def ask(self, models: Shelf) -> Task:
        """Predict the image if there is one without a prediction; return the model."""
        task = models.open(self.key)
        if self.image is not None and self.prediction is None:
            is_ranked = isinstance(task, Classifier) and not task.spec.multi_label
            options: dict[str, Any] = {"top_k": TOP} if is_ranked else {}
            if isinstance(task, Detector):
                # The page filters by score with its slider.
                options = {"score_threshold": SCORE_THRESHOLD}
            self.prediction = task.predict(self.image, **options)[0]
        return task

    def point(self, x: float, y: float) -> None:
        """Mark a place, given as fractions of the image's width and height."""
        if self.image is not None:
            width, height = self.image.size
            column, row = min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1)
            self.wish = replace(self.wish, pixel=(column, row))

    def answer(self, task: Task, threshold: float = 0.5) -> Shown:
        """Return the image with the prediction drawn on it, its alt text, and the prediction as HTML.

        Names are escaped, since class names come from untrusted files.
        """
        assert self.image is not None
        assert self.prediction is not None
        if task.kind == "segment":
            return _areas(self.image, self.prediction)
        if task.kind == "detect":
            return _objects(self.image, self.prediction, task.class_names, threshold)
        names, scores = readable(self.prediction["names"]), self.prediction["scores"]
        if task.spec.multi_label:
            bars = _bars(
                "Labels and their scores", [(name, score, "") for name, score in zip(names, scores, strict=True)]
            )
            found = escape(", ".join(names) or "no label")
            return enlarged(self.image), f"Your image, {self.name}", f"<h2>{found}</h2>{bars}"
        listed = _bars("Most likely classes", [(name, score, "") for name, score in zip(names, scores, strict=True)])
        return enlarged(self.image), f"Your image, {self.name}", f"<h2>{escape(names[0])}</h2>{listed}"


def _areas(image: Image.Image, prediction: dict[str, Any]) -> Shown:
    names, areas, image = prediction["names"], prediction["areas"], enlarged(image)
    palette = default_palette(len(names))
    labels = Image.fromarray(prediction["mask"].numpy()).resize(image.size, Image.Resampling.NEAREST)
    shown = [(name, share, _color(palette[names.index(name)])) for name, share in areas.items()]
    text = f"The image colored by class: {', '.join(name for name, *_ in shown[:MOST_LISTED])}"
    return overlay_labels(image, np.asarray(labels), palette), text, _bars("Share of the image", shown)


def _objects(image: Image.Image, prediction: dict[str, Any], classes: tuple[str, ...], threshold: float) -> Shown:
    kept = (prediction["scores"] > threshold).nonzero()[:, 0]
    scores, labels = prediction["scores"][kept], prediction["labels"][kept]
    masks = prediction["masks"][kept] if "masks" in prediction else None
    drawn = draw_instances(image, prediction["boxes"][kept], labels, classes, scores=scores, masks=masks)
    found = [classes[int(label)] for label in labels]
    counts = ", ".join(f"{count} × {name}" for name, count in Counter(found).most_common()) or "nothing"
    palette = default_palette(len(classes) + 1)[1:]
    colors = [_color(palette[label]) for label in labels.tolist()]
    listed = _bars("Objects and their scores", zip(found, scores.tolist(), colors, strict=True))
    return (
        drawn,
        f"The image with the detected objects: {counts}",
        f'<p class="found">Found: {escape(counts)}</p>{listed}',
    )


def _bars(title: str, parts: Iterable[tuple[str, float, str]]) -> str:
    """Return an HTML list of names with fractions, as bars and in percent; colors match the image."""
    parts = list(parts)
    lines = (
        f'<li><span class="name">{f"""<i style="background:{color}"></i>""" if color else ""}{escape(name)}</span>'
        f'<meter value="{part:.4f}"></meter><span class="percent">{100 * part:.1f} %</span></li>'
        for name, part, color in parts[:MOST_LISTED]
    )
    rest = len(parts) - MOST_LISTED
    more = f"<p>and {rest} more</p>" if rest > 0 else ""
    return f'<ol class="bars" aria-label="{title}">{"".join(lines)}</ol>{more}'


def _color(rgb: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb.tolist())


@cache
def examples(data: str | None) -> list[tuple[Image.Image, str]]:
    """Return (image, name) of some held-out images, of digits or shapes."""
    from globalvit.data.built_in.digits import Digits
    from globalvit.data.built_in.shapes import DetectShapes

    if data == "digits":
        return [(Digits("val").read(index), Digits("val").name(index)) for index in EXAMPLES]
    return [(DetectShapes("val").read(index)[0], DetectShapes("val").name(index)) for index in EXAMPLES]
