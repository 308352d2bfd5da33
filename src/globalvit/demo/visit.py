"""What one browser tab is about: its model, its picture, and what is shown of both."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image

from globalvit.demo import looks, shelf
from globalvit.demo.answers import Answer, image
from globalvit.demo.looks import Controls, Wish
from globalvit.demo.pictures import (
    RefusedUpload,
    bounded,
    data_url,
    example_pictures,
    one_line,
    receive,
    shorten,
    too_large,
)
from globalvit.demo.shelf import Shelf
from globalvit.tasks.task import Task

EXAMPLES = 8
# Of the held-out digits, one of most kinds; of the shapes any.
INDICES = range(3, 3 + EXAMPLES)

# Where a picture will be: hills under a sun.
EMPTY = (
    '<svg class="empty" viewBox="0 0 48 36" aria-hidden="true"><rect x="1" y="1" width="46" height="34" rx="4"/>'
    '<circle cx="14" cy="12" r="4"/><path d="M1 30 17 19l9 7 8-8 13 11"/></svg>'
)


@dataclass
class Visit:
    """The state of a tab.

    Attributes:
        key: of the model.
        picture: RGB; None until one is chosen.
        name: what the picture is called.
        answer: what the model says of it.
        wish: which map is to be seen.
    """

    key: str | None = None
    picture: Image.Image | None = None
    name: str = ""
    answer: Answer | None = None
    wish: Wish = field(default_factory=Wish)

    def choose(self, models: Shelf, key: str | None) -> Task:
        """Take another model; the picture stays, and is asked about again."""
        self.key, self.answer = key, None
        # The former model's classes are others, and this one may see less of the picture.
        self.wish = replace(self.wish, target=None, pixel=None)
        return self.ask(models)

    def show(self, picture: Image.Image, name: str) -> None:
        """Take another picture."""
        self.picture, self.name, self.answer = bounded(picture), shorten(name), None
        self.wish = replace(self.wish, pixel=None)

    def ask(self, models: Shelf) -> Task:
        """Have the model answer for the picture, if both are there; returns the model."""
        task = models.open(self.key)
        if self.picture is not None and self.answer is None:
            self.answer = Answer.of(task, self.picture)
        return task

    def look(self, task: Task) -> tuple[Controls, str]:
        """What can be chosen to see, and the map that was chosen as HTML."""
        controls = looks.settle(task, self.wish)
        self.wish = controls.wish
        if self.picture is None:
            return controls, ""
        return controls, looks.html(self.picture, looks.look(task, self.picture, controls), controls)

    def look_if_any(self, task: Task) -> tuple[Controls, str]:
        """As `look`; where there is nothing to show, the reason stands in the map's place."""
        try:
            return self.look(task)
        except ValueError as error:
            return looks.settle(task, self.wish), f'<p class="waiting">{escape(one_line(error))}</p>'

    def point(self, x: float, y: float) -> None:
        """Ask about a place, given as parts of the picture's width and height."""
        if self.picture is None:
            return
        width, height = self.picture.size
        column, row = min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1)
        self.wish = replace(self.wish, pixel=(column, row))

    def picture_html(self) -> str:
        """The picture, or where it will be."""
        if self.picture is None:
            return EMPTY
        width, height = self.picture.size
        small = " is-small" if max(width, height) < looks.LEAST else ""
        return image(self.picture, f"Your picture, {self.name}", small) + (
            f'<p class="note">{escape(self.name)}, {width} × {height}</p>'
        )


def uploaded(path: str | None, name: str, size: int, folder: Path, most_bytes: int) -> Image.Image:
    """The picture that a browser says it has sent.

    Args:
        path: where the server put it; None where it was not sent, or refused.
        name: what the file is called.
        size: in bytes, as the browser has it.
        folder: where uploads lie.
        most_bytes: that are taken.

    Raises:
        RefusedUpload: it is not there, too large, or no readable picture.
    """
    if path is None and size > most_bytes:
        raise RefusedUpload(too_large(name, size, most_bytes))
    return receive(path or "", name, folder, most_bytes)


@cache
def examples(data: str) -> list[tuple[str, Image.Image]]:
    """(name, picture) of some held-out pictures of a built-in set."""
    from globalvit.data.digits import Digits
    from globalvit.data.shapes import DetectShapes

    source = Digits("val") if data == "digits" else DetectShapes("val")
    return example_pictures(source, INDICES)


def examples_html(pairs: Sequence[tuple[str, Image.Image]]) -> str:
    """Buttons with small pictures."""
    buttons = (
        f'<button type="button" data-index="{index}"><img src="{data_url(picture, 128)}" alt="Example {name}"></button>'
        for index, (name, picture) in enumerate(pairs)
    )
    return f'<div class="examples" role="group" aria-label="Example pictures">{"".join(buttons)}</div>'


def described(models: Shelf, key: str | None, task: Task) -> str:
    """A line about the chosen model."""
    title = models.choices[key].title if key in models.choices else ""
    return f'<p class="note" title="{escape(title)}">{escape(shelf.describe(task))}</p>'
