"""What one browser tab is about: its model, its image, and what is shown of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image

from globalvit.demo import looks, shelf
from globalvit.demo.answers import Answer, img
from globalvit.demo.images import (
    RefusedUpload,
    bounded,
    data_url,
    example_images,
    one_line,
    receive,
    shorten,
    too_large,
)
from globalvit.demo.looks import Controls, Wish
from globalvit.demo.shelf import Shelf
from globalvit.tasks.task import Task

EXAMPLES = 8
# Of the held-out digits, one of most kinds; of the shapes any.
INDICES = range(3, 3 + EXAMPLES)

# Where an image will be: hills under a sun.
EMPTY = (
    '<svg class="empty" viewBox="0 0 48 36" aria-hidden="true"><rect x="1" y="1" width="46" height="34" rx="4"/>'
    '<circle cx="14" cy="12" r="4"/><path d="M1 30 17 19l9 7 8-8 13 11"/></svg>'
)


@dataclass
class Visit:
    """The state of a tab.

    Attributes:
        key: of the model.
        image: RGB; None until one is chosen.
        name: what the image is called.
        answer: what the model says of it.
        wish: which map is to be seen.
    """

    key: str | None = None
    image: Image.Image | None = None
    name: str = ""
    answer: Answer | None = None
    wish: Wish = field(default_factory=Wish)

    def choose(self, models: Shelf, key: str | None) -> Task:
        """Take another model; the image stays, and is asked about again."""
        self.key, self.answer = key, None
        # The former model's classes are others, and this one may see less of the image.
        self.wish = replace(self.wish, target=None, pixel=None)
        return self.ask(models)

    def show(self, image: Image.Image, name: str) -> None:
        """Take another image."""
        self.image, self.name, self.answer = bounded(image), shorten(name), None
        self.wish = replace(self.wish, pixel=None)

    def ask(self, models: Shelf) -> Task:
        """Have the model answer for the image, if both are there; returns the model."""
        task = models.open(self.key)
        if self.image is not None and self.answer is None:
            self.answer = Answer.of(task, self.image)
        return task

    def look(self, task: Task) -> tuple[Controls, str]:
        """What can be chosen to see, and the map that was chosen as HTML."""
        controls = looks.settle(task, self.wish)
        self.wish = controls.wish
        if self.image is None:
            return controls, ""
        return controls, looks.html(self.image, looks.look(task, self.image, controls), controls)

    def look_if_any(self, task: Task) -> tuple[Controls, str]:
        """As `look`; where there is nothing to show, the reason stands in the map's place."""
        try:
            return self.look(task)
        except ValueError as error:
            return looks.settle(task, self.wish), f'<p class="waiting">{escape(one_line(error))}</p>'

    def point(self, x: float, y: float) -> None:
        """Ask about a place, given as parts of the image's width and height."""
        if self.image is None:
            return
        width, height = self.image.size
        column, row = min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1)
        self.wish = replace(self.wish, pixel=(column, row))

    def image_html(self) -> str:
        """The image, or where it will be."""
        if self.image is None:
            return EMPTY
        width, height = self.image.size
        small = " is-small" if max(width, height) < looks.LEAST else ""
        return img(self.image, f"Your image, {self.name}", small) + (
            f'<p class="note">{escape(self.name)}, {width} × {height}</p>'
        )


def uploaded(path: str | None, name: str, size: int, folder: Path, most_bytes: int) -> Image.Image:
    """The image that a browser says it has sent.

    Args:
        path: where the server put it; None where it was not sent, or refused.
        name: what the file is called.
        size: in bytes, as the browser has it.
        folder: where uploads lie.
        most_bytes: that are taken.

    Raises:
        RefusedUpload: it is not there, too large, or no readable image.
    """
    if path is None and size > most_bytes:
        raise RefusedUpload(too_large(name, size, most_bytes))
    return receive(path or "", name, folder, most_bytes)


@cache
def examples(data: str) -> list[tuple[str, Image.Image]]:
    """(name, image) of some held-out images of a built-in set."""
    from globalvit.data.built_in.digits import Digits
    from globalvit.data.built_in.shapes import DetectShapes

    source = Digits("val") if data == "digits" else DetectShapes("val")
    return example_images(source, INDICES)


def examples_html(pairs: Sequence[tuple[str, Image.Image]]) -> str:
    """Buttons with small images."""
    buttons = (
        f'<button type="button" data-index="{index}"><img src="{data_url(image, 128)}" alt="Example {name}"></button>'
        for index, (name, image) in enumerate(pairs)
    )
    return f'<div class="examples" role="group" aria-label="Example images">{"".join(buttons)}</div>'


def described(models: Shelf, key: str | None, task: Task) -> str:
    """A line about the chosen model."""
    title = models.choices[key].title if key in models.choices else ""
    return f'<p class="note" title="{escape(title)}">{escape(shelf.describe(task))}</p>'
