"""The worst images of a validation, drawn with what the model answered and what the data says."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

    from globalvit.jobs.validate import Result
    from globalvit.tasks.task import Task

# Images of each kind, and the longest side of one that is drawn.
MOST, SIDE = 12, 480
FALSE, MISSED, HIT = (220, 40, 40), (255, 190, 0), (40, 170, 80)


class Shown(NamedTuple):
    """An image of the gallery.

    Attributes:
        kind: heading under which it stands.
        image: what is drawn.
        text: file name and what is wrong.
    """

    kind: str
    image: "Image.Image"
    text: str


def worst(
    result: "Result",
    task: "Task",
    source: Any,
    noted: Mapping[int, Any],
    computing: Callable[[], AbstractContextManager[Any]],
) -> list[Shown]:
    """Draw the worst images.

    Args:
        result: of the validation.
        task: the model, on its device.
        source: the images that were scored.
        noted: position in `source` → what the evaluation noted of the image.
        computing: context of a forward pass.
    """
    if result.kind == "classify":
        return list(_classified(result, source, noted))
    if result.kind == "segment":
        with computing():
            return list(_segmented(task, source, noted))
    return list(_detected(result, source, noted))


def _classified(result: "Result", source: Any, noted: Mapping[int, Any]) -> Iterator[Shown]:
    names = [row["name"] for row in result.rows]
    wrong = sorted((at for at, one in noted.items() if one["guess"] != one["label"]), key=_by(noted, "confidence"))
    unsure = sorted(noted, key=_by(noted, "entropy"))
    for kind, chosen in (("Most confident mistakes", wrong), ("Most uncertain", unsure)):
        for at in chosen[:MOST]:
            one = noted[at]
            text = f"{names[one['label']]}, predicted as {names[one['guess']]} ({100 * one['confidence']:.0f} %)"
            yield Shown(kind, _small(source.read(at)), f"{_name(source, at)}: {text}")


def _segmented(task: "Task", source: Any, noted: Mapping[int, float]) -> Iterator[Shown]:
    import numpy as np
    from PIL import Image

    from globalvit.drawing.overlay import overlay_labels
    from globalvit.drawing.palette import default_palette

    palette = default_palette(task.spec.num_classes)
    for at in sorted(noted, key=lambda at: (noted[at], at))[:MOST]:
        image, labels = source.read(at)
        labels = np.asarray(labels)
        mask = task.predict([image])[0]["mask"].numpy()
        is_wrong = (mask != labels) & (labels != 255)
        pixels = np.asarray(image.convert("L").convert("RGB")) // 2 + 100
        pixels[is_wrong] = FALSE
        views = [
            _small(one, SIDE // 2)
            for one in (
                image,
                overlay_labels(image, labels, palette),
                overlay_labels(image, mask, palette),
                Image.fromarray(pixels),
            )
        ]
        text = f"{_name(source, at)}: mIoU {noted[at]:.1f} %; {100 * is_wrong.mean():.1f} % of the pixels are wrong"
        yield Shown("Lowest mIoU: image, ground truth, prediction, difference (red)", _grid(views), text)


def _detected(result: "Result", source: Any, noted: Mapping[int, int]) -> Iterator[Shown]:
    import numpy as np

    from globalvit.detectors.limits import LEAST_SCORE
    from globalvit.metrics.curves import Outcome

    names = [row["name"] for row in result.rows]
    thresholds = np.array([LEAST_SCORE if (t := row["score_threshold"]) is None else t for row in result.rows])
    scored: Any = result.metric
    images = scored.images
    outcomes = {at: Outcome.of(images[key], thresholds) for at, key in noted.items()}
    errors = {
        at: int(one.false().sum() + one.missed(images[noted[at]].target.crowd).sum()) for at, one in outcomes.items()
    }
    for at in sorted(noted, key=lambda at: (-errors[at], at))[:MOST]:
        if not errors[at]:
            break
        scene, one = images[noted[at]], outcomes[at]
        false, missed = one.false(), one.missed(scene.target.crowd)
        text = f"{_name(source, at)}: {missed.sum()} missed, {false.sum()} false, {len(one.pairs)} found"
        drawn = _boxes(source.read(at)[0], scene, one, names)
        yield Shown("Most missed (yellow) and false (red) boxes; green ones are found", drawn, text)


def _boxes(image: "Image.Image", scene: Any, outcome: Any, names: list[str]) -> "Image.Image":
    from PIL import ImageDraw

    from globalvit.drawing.fonts import font

    scale = SIDE / max(image.size)
    page = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen, found, target = ImageDraw.Draw(page), scene.found, scene.target
    for row, _ in outcome.pairs:
        pen.rectangle(_corners(found.boxes[row], scale), outline=HIT, width=1)
    missed = target.boxes[outcome.missed(target.crowd)], target.labels[outcome.missed(target.crowd)], None
    false = found.boxes[outcome.false()], found.labels[outcome.false()], found.scores[outcome.false()]
    for (boxes, labels, scores), color in ((missed, MISSED), (false, FALSE)):
        for place, box in enumerate(boxes):
            corners = _corners(box, scale)
            pen.rectangle(corners, outline=color, width=2)
            words = [] if len(names) == 1 else [names[labels[place]]]
            words += [] if scores is None or len(boxes) > MOST else [f"{100 * scores[place]:.0f}"]
            if words:
                pen.text((corners[0] + 2, corners[1] + 1), " ".join(words), color, font(12), stroke_width=0)
    return page


def _corners(box: Any, scale: float) -> list[float]:
    """Return xyxy of a box on the drawing; Pillow refuses boxes whose sides are negative."""
    left, top, right, bottom = (float(side) * scale for side in box)
    return [left, top, max(left, right), max(top, bottom)]


def _name(source: Any, at: int) -> str:
    """Return the file name of an image with its folder."""
    return "/".join(source.name(at).replace("\\", "/").split("/")[-2:])


def _small(image: "Image.Image", side: int = SIDE) -> "Image.Image":
    from PIL import Image

    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.BICUBIC)


def _grid(views: "list[Image.Image]") -> "Image.Image":
    """Put four images of one size into two rows."""
    from PIL import Image

    width, height = views[0].size
    page = Image.new("RGB", (2 * width + 4, 2 * height + 4), "white")
    for number, one in enumerate(views):
        page.paste(one, (number % 2 * (width + 4), number // 2 * (height + 4)))
    return page


def _by(noted: Mapping[int, Any], key: str) -> Callable[[int], tuple[float, int]]:
    return lambda at: (-noted[at][key], at)
