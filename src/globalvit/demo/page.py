"""The page itself: what stands where, and what happens when it is touched. The only file that knows Gradio's parts.

Whatever fails is a line on the page: text that a person can act on for what they can mend, and a pointer to the
terminal for anything else.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Base

from globalvit.data.classification.imagenet import readable
from globalvit.demo import looks
from globalvit.demo.images import one_line
from globalvit.demo.looks import Wish
from globalvit.demo.quick import LESSONS, Training
from globalvit.demo.shelf import Shelf
from globalvit.demo.visit import Visit, described, examples, examples_html, uploaded
from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
TITLE = "globalvit"
HEADER = "<h1>globalvit</h1><p>Drop an image and see what a vision transformer makes of it, and where it looks.</p>"
MENDABLE = (ValueError, OSError, MemoryError)
# One model computes at a time, whoever asks.
COMPUTING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
LIKELIEST = -1
Updates = dict[Any, Any]
# Seconds between two looks at a training.
PAUSE = 0.5
# Seconds after which Gradio looks for forgotten uploads, and their age then.
CLEANING = (300, 300)


def read(name: str) -> str:
    """A text file that lies beside this one."""
    return (files("globalvit.demo") / name).read_text(encoding="utf-8")


def safely(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """A handler whose errors become a line on the page."""

    @wraps(handler)
    def guarded(page: "Page", *values: Any) -> Updates:
        try:
            return {page.notice: "", **handler(page, *values)}
        except MENDABLE as error:
            logger.warning("%s", one_line(error))
            return {page.notice: alert(one_line(error))}
        except Exception:
            logger.exception("a handler of the page failed")
            return {page.notice: alert("this went wrong; the terminal says where")}

    return guarded


class Page:
    """The page and everything behind it.

    Args:
        models: on offer.
        training: what trains on the spot.
        uploads: folder that the server puts uploads into.
        most_bytes: of an upload.
    """

    def __init__(self, models: Shelf, training: Training, uploads: Path, most_bytes: int) -> None:
        self.models, self.training, self.uploads, self.most_bytes = models, training, uploads, most_bytes
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as self.blocks:
            self.visit = gr.State(Visit(), time_to_live=3600)
            gr.HTML(HEADER, elem_id="header")
            self._place_choice()
            with gr.Row(elem_id="main"):
                self._place_image()
                self._place_answer()
            self._place_looks()
            self._wire()

    def _place_choice(self) -> None:
        with gr.Column(elem_id="choice", elem_classes="card"):
            self.model = gr.Dropdown([], label="Model", elem_id="model", filterable=True)
            self.about = gr.HTML(elem_id="about")
            with gr.Accordion("Train a small model here", open=not self.models.choices, elem_id="lessons"):
                with gr.Row():
                    self.lessons = {
                        name: gr.Button(f"{one.title} · {one.cost}", size="sm", elem_id=f"lesson-{name}")
                        for name, one in LESSONS.items()
                    }
                self.progress = gr.HTML(elem_id="progress")
                self.stop = gr.Button("Stop the training", size="sm", visible=False, elem_id="stop")

    def _place_image(self) -> None:
        with gr.Column(elem_classes="card", min_width=300):
            self.image = gr.HTML(
                Visit().image_html(),
                html_template=read("image.html"),
                js_on_load=read("image.js"),
                elem_id="image",
                limit=self.most_bytes,
            )
            self.notice = gr.HTML(elem_id="notice")
            self.examples = gr.HTML(js_on_load=read("examples.js"), elem_id="examples")

    def _place_answer(self) -> None:
        with gr.Column(elem_classes="card", min_width=300):
            self.threshold = gr.Slider(
                0.05,
                0.95,
                0.5,
                step=0.05,
                label="Least score of an object",
                visible=False,
                elem_id="threshold",
                buttons=[],
            )
            self.answer = gr.HTML(waiting("What the model says stands here."), elem_id="answer")

    def _place_looks(self) -> None:
        with gr.Row(elem_id="looks", elem_classes="card", visible=False) as self.looks:
            with gr.Column(min_width=300):
                self.map = gr.HTML(js_on_load=read("place.js"), elem_id="map")
            with gr.Column(min_width=300):
                gr.HTML("<h2>Where it looks</h2>")
                self.kind = gr.Radio([], label="Map", elem_id="kind")
                self.stage = gr.Slider(0, 1, 0, step=1, label="Stage", elem_id="stage", buttons=[])
                self.block = gr.Slider(0, 1, 0, step=1, label="Block", elem_id="block", buttons=[])
                self.all_heads = gr.Checkbox(True, label="Mean of all heads", elem_id="all-heads")
                self.head = gr.Slider(0, 1, 0, step=1, label="Head", elem_id="head", buttons=[])
                self.forget = gr.Button("Forget the marked place", size="sm", visible=False, elem_id="forget")
                self.target = gr.Dropdown([], label="Class", elem_id="target")
                self.opacity = gr.Slider(
                    0, 1, 0.6, step=0.05, label="Strength of the colors", elem_id="opacity", buttons=[]
                )

    def _wire(self) -> None:
        controls = [self.looks, self.kind, self.stage, self.block, self.all_heads, self.head, self.forget, self.target]
        controls.append(self.map)
        said = [self.notice, self.answer, self.threshold, *controls]
        asked = [self.visit, self.model, self.threshold]
        wish = [self.kind, self.stage, self.block, self.all_heads, self.head, self.target, self.opacity]
        told = [self.progress, self.stop, self.model]
        aside: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        busy: dict[str, Any] = {"show_progress_on": [self.answer], **COMPUTING}
        quiet: dict[str, Any] = {"show_progress": "hidden", **COMPUTING}
        arrived = self.blocks.load(self._arrive, None, [self.notice, self.model], **aside)
        arrived.then(self._follow, None, told, concurrency_limit=None, **aside)
        self.model.change(self._choose, asked, [self.examples, self.about, *said], **busy)
        self.image.upload(self._upload, asked, [self.image, *said], **busy)
        self.examples.select(self._example, asked, [self.image, *said], **busy)
        self.threshold.input(self._redraw, asked, [self.notice, self.answer], trigger_mode="always_last", **quiet)
        for part in wish:
            part.input(self._wish, [*asked, *wish], [self.notice, *controls], trigger_mode="always_last", **quiet)
        self.map.select(self._point, asked, [self.notice, *controls], **quiet)
        self.forget.click(self._forget, asked, [self.notice, *controls], **quiet)
        for name, button in self.lessons.items():
            button.click(self._lesson(name), None, [self.notice, *told], concurrency_limit=None, **aside)
        self.stop.click(self.training.stop, None, None, **aside)

    @safely
    def _arrive(self) -> Updates:
        return {self.model: self._choices()}

    @safely
    def _choose(self, visit: Visit, key: str | None, threshold: float) -> Updates:
        if key is None:
            return {}
        task = visit.choose(self.models, key)
        pairs = examples(self.models.choices[key].data or "shapes")
        about = {self.about: described(self.models, key, task), self.examples: examples_html(pairs)}
        return {**about, **self._said(visit, task, threshold)}

    @safely
    def _upload(self, visit: Visit, key: str | None, threshold: float, event: gr.EventData) -> Updates:
        sent = event._data
        name, size = str(sent.get("name")), int(sent.get("size", 0))
        image = uploaded(sent.get("path"), name, size, self.uploads, self.most_bytes)
        return self._shown(visit, key, threshold, image, name)

    @safely
    def _example(self, visit: Visit, key: str | None, threshold: float, event: gr.EventData) -> Updates:
        choice = self.models.choices.get(key or "")
        pairs = examples((choice and choice.data) or "shapes")
        name, image = pairs[int(event._data["index"]) % len(pairs)]
        return self._shown(visit, key, threshold, image, name)

    @safely
    def _redraw(self, visit: Visit, key: str | None, threshold: float) -> Updates:  # noqa: ARG002 - one signature
        return {self.answer: visit.answer.html(threshold)} if visit.answer else {}

    @safely
    def _wish(
        self, visit: Visit, key: str | None, threshold: float,  # noqa: ARG002
        kind: str | None, stage: float, block: float, all_heads: bool, head: float, target: int | None, opacity: float,
    ) -> Updates:  # fmt: skip
        visit.wish = Wish(
            kind=kind,
            stage=int(stage),
            block=int(block),
            head=None if all_heads else int(head),
            pixel=visit.wish.pixel,
            target=None if target in (None, LIKELIEST) else target,
            opacity=opacity,
        )
        return self._seen(visit, visit.ask(self.models))

    @safely
    def _point(self, visit: Visit, key: str | None, threshold: float, event: gr.EventData) -> Updates:  # noqa: ARG002
        former = visit.wish
        visit.point(float(event._data["x"]), float(event._data["y"]))
        try:
            return self._seen(visit, visit.ask(self.models))
        except ValueError:
            # A place that the model did not see.
            visit.wish = former
            raise

    @safely
    def _forget(self, visit: Visit, key: str | None, threshold: float) -> Updates:  # noqa: ARG002
        visit.wish = replace(visit.wish, pixel=None)
        return self._seen(visit, visit.ask(self.models))

    def _shown(self, visit: Visit, key: str | None, threshold: float, image: Any, name: str) -> Updates:
        """Updates after another image came."""
        visit.show(image, name)
        updates = {self.image: visit.image_html()}
        visit.key = key or visit.key
        if visit.key is None:
            return {**updates, self.answer: waiting("Choose a model, or train one here.")}
        return {**updates, **self._said(visit, visit.ask(self.models), threshold)}

    def _said(self, visit: Visit, task: Task, threshold: float) -> Updates:
        """Updates of everything that depends on model and image."""
        answer = visit.answer.html(threshold) if visit.answer else waiting("Drop an image, or take an example.")
        is_detector = task.kind == "detect" and visit.answer is not None
        seen = self._looked(visit, task, *visit.look_if_any(task))
        return {self.answer: answer, self.threshold: gr.update(visible=is_detector), **seen}

    def _seen(self, visit: Visit, task: Task) -> Updates:
        """Updates of the map and of what can be chosen to see."""
        return self._looked(visit, task, *visit.look(task))

    def _looked(self, visit: Visit, task: Task, controls: looks.Controls, drawn: str) -> Updates:
        wish, takes = controls.wish, controls.takes
        names = [(name, index) for index, name in enumerate(readable(task.class_names))]
        return {
            self.looks: gr.update(visible=visit.image is not None),
            self.map: drawn,
            self.kind: gr.update(choices=controls.kinds, value=wish.kind),
            self.stage: slider("Stage", controls.stages, wish.stage),
            self.block: slider("Block", controls.blocks, wish.block),
            self.all_heads: gr.update(visible="head" in takes and controls.heads > 1),
            self.head: slider("Head", range(controls.heads if wish.head is not None else 0), wish.head),
            self.forget: gr.update(visible="pixel" in takes and wish.pixel is not None),
            self.target: gr.update(
                choices=[("the likeliest", LIKELIEST), *names],
                value=LIKELIEST if wish.target is None else wish.target,
                visible="target" in takes,
            ),
        }

    def _choices(self, chosen: str | None = None) -> Any:
        known = [(choice.title, key) for key, choice in self.models.choices.items()]
        return gr.update(choices=known, value=chosen or (known[0][1] if known else None))

    def _lesson(self, name: str) -> Callable[[], Iterator[Updates]]:
        def learn() -> Iterator[Updates]:
            try:
                self.training.begin(name)
            except MENDABLE as error:
                yield {self.notice: alert(one_line(error))}
                return
            yield {self.notice: ""}
            yield from self._follow()

        return learn

    def _follow(self) -> Iterator[Updates]:
        """Updates about the training that goes on, until it ends."""
        if not self.training.name:
            # Without any update Gradio would empty all that this could have changed, the choice of the model too.
            yield {self.progress: ""}
            return
        while (state := self.training.progress()).is_running:
            yield {self.progress: bar(state.part, state.text), self.stop: gr.update(visible=True)}
            time.sleep(PAUSE)
        updates: Updates = {self.progress: bar(state.part, state.text), self.stop: gr.update(visible=False)}
        if state.made is not None:
            self.models.add(state.made)
            updates[self.model] = self._choices(state.made.key)
        yield updates


def theme() -> Base:
    """Calm colors and the reader's own fonts, so that none is fetched."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return Base(
        primary_hue="teal", neutral_hue="slate", font=system, font_mono=["ui-monospace", "Menlo", "monospace"]
    ).set(
        body_background_fill="#f5f6f7",
        body_background_fill_dark="#12161b",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_padding="0",
        block_shadow="none",
    )


def slider(label: str, numbers: Sequence[int], value: int | None) -> Any:
    """An update of a slider to the numbers that can be chosen; it is hidden where there is no choice."""
    if len(numbers) < 2:
        return gr.update(visible=False)
    low, high = numbers[0], numbers[-1]
    return gr.update(
        minimum=low, maximum=high, step=looks.step_of(numbers), value=value, visible=True,
        label=f"{label} ({low} to {high})",
    )  # fmt: skip


def alert(text: str) -> str:
    """A line about what went wrong, which screen readers say at once."""
    return f'<p class="alert" role="alert">{escape(text)}</p>'


def waiting(text: str) -> str:
    """A line that stands where an answer will be."""
    return f'<p class="waiting">{escape(text)}</p>'


def bar(part: float, text: str) -> str:
    """A progress bar with its line."""
    return f'<p role="status">{escape(text)}</p><progress max="1" value="{part:.3f}" aria-label="Training"></progress>'
