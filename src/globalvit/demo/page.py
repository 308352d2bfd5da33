"""Layout of the page and its event handlers.

Every failure becomes a notice on the page: a message with a remedy if the user can fix it, otherwise a pointer to the
terminal.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.themes import Base
from PIL.Image import Image

from globalvit.data.classification.imagenet import readable
from globalvit.demo import looks
from globalvit.demo.images import data_url, one_line, receive
from globalvit.demo.quick import LESSONS, Training
from globalvit.demo.shelf import Shelf, describe
from globalvit.demo.visit import Visit, examples
from globalvit.tasks.task import Task

logger = logging.getLogger(__name__)
HEADER = "# globalvit\nDrop an image to see what a vision transformer predicts, and where it looks."
FIXABLE = (ValueError, OSError, MemoryError)
# One model computes at a time, for all visitors.
COMPUTING: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
ASIDE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
LIKELIEST = -1
Updates = dict[Any, Any]
# Seconds between progress updates of a training; seconds between searches for abandoned uploads, and their age limit.
PAUSE, CLEANING = 0.5, (300, 300)
CSS = """
.bars { list-style: none; margin: 8px 0; padding: 0; display: grid; gap: 6px; }
.bars li { display: grid; grid-template-columns: 1fr 6em 4em; gap: 8px; align-items: center; }
.bars .name, h2 { overflow-wrap: anywhere; } .bars meter { width: 100%; } .bars .percent { text-align: right; }
.bars i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
progress { width: 100%; } #examples img { image-rendering: pixelated; }
"""
# A pasted image is handled like a dropped one.
PASTE = """() => document.addEventListener("paste", (event) => {
  const input = document.querySelector("#upload input[type=file]");
  if (!input || !event.clipboardData.files.length) return;
  input.files = event.clipboardData.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
})"""


def safely(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Turn a handler's errors into a notice on the page."""

    @wraps(handler)
    def guarded(page: "Page", *values: Any) -> Updates:
        try:
            return handler(page, *values)
        except FIXABLE as error:
            logger.warning("%s", one_line(error))
            text = one_line(error)
        except Exception:
            logger.exception("a handler of the page failed")
            text = "something went wrong; see the terminal for details"
        gr.Warning(escape(text), title="Sorry")
        return gr.skip()

    return guarded


class Page:
    """The page and its state: available models, the training in progress, the upload folder and size limit."""

    def __init__(self, models: Shelf, training: Training, uploads: Path, most_bytes: int) -> None:
        self.models, self.training, self.uploads, self.most_bytes = models, training, uploads, most_bytes
        with gr.Blocks(title="globalvit", analytics_enabled=False, delete_cache=CLEANING) as self.blocks:
            self.visit = gr.State(Visit(), time_to_live=3600)
            gr.Markdown(HEADER)
            self.model = gr.Dropdown([], label="Model", elem_id="model")
            self.about = gr.HTML(elem_id="about")
            with gr.Accordion("Train a small model here", open=not models.choices), gr.Row():
                self.lessons = {
                    name: gr.Button(f"{one.title} · {one.cost}", size="sm", elem_id=f"lesson-{name}")
                    for name, one in LESSONS.items()
                }
                self.stop = gr.Button("Stop training", size="sm", visible=False, elem_id="stop")
            self.progress = gr.HTML(elem_id="progress")
            with gr.Row():
                with gr.Column(min_width=300):
                    hint = "Choose, drop or paste an image"
                    self.upload = gr.File(label=hint, height=140, elem_id="upload")
                    still: dict[str, Any] = {"allow_preview": False, "show_label": False, "buttons": []}
                    self.examples = gr.Gallery(columns=4, elem_id="examples", **still)
                with gr.Column(min_width=300):
                    self.image = shown(visible=False, elem_id="image")
                    name = "Minimum score of an object"
                    self.threshold = slider(0.05, 0.95, 0.5, name, "threshold", step=0.05, visible=False)
                    self.answer = gr.HTML("Predictions appear here.", elem_id="answer")
            with gr.Row(visible=False) as self.looks:
                with gr.Column(min_width=300):
                    self.map = shown(elem_id="map")
                    self.note = gr.HTML(elem_id="note")
                with gr.Column(min_width=300):
                    gr.Markdown("## Where it looks")
                    self.kind = gr.Radio([], label="Map", elem_id="kind")
                    self.layer = gr.Dropdown([], label="Layer", elem_id="layer")
                    self.head = slider(0, 1, 0, "Head, 0 for the mean over heads", "head")
                    # Clicks also mark a place; these sliders are for the keyboard.
                    self.across = slider(0, 1, 0, "Marked place, pixels from the left", "left")
                    self.down = slider(0, 1, 0, "Marked place, pixels from the top", "top")
                    self.forget = gr.Button("Clear the marked place", size="sm", elem_id="forget")
                    self.target = gr.Dropdown([], label="Class", elem_id="target")
                    self.opacity = slider(0, 1, 0.6, "Overlay opacity", "opacity", step=0.05)
            self._wire()

    def _wire(self) -> None:
        wish = [self.kind, self.layer, self.head, self.target, self.opacity]
        seen = [self.looks, self.map, self.note, *wish[:-1], self.across, self.down, self.forget]
        said = [self.image, self.answer, self.threshold, *seen]
        asked = [self.visit, self.model, self.threshold]
        busy: dict[str, Any] = {"show_progress_on": [self.answer], **COMPUTING}
        quiet: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", **COMPUTING}
        learned = [self.progress, self.stop, self.model]
        self.blocks.load(self._choices, None, self.model, **ASIDE).then(self._follow, None, learned, **ASIDE)
        self.model.change(self._choose, asked, [self.examples, self.about, *said], **busy)
        # Uploads are deleted after they are read, so there is no file left to show.
        sent = self.upload.upload(self._upload, [*asked, self.upload], said, **busy)
        sent.then(lambda: None, None, self.upload, **ASIDE)
        self.examples.select(self._example, asked, said, **busy)
        self.threshold.input(self._redraw, [self.visit, self.threshold], [self.image, self.answer], **quiet)
        for part in wish:
            part.input(self._wish, [self.visit, *wish], seen, **quiet)
        for part in (self.across, self.down):
            part.input(self._point, [self.visit, self.across, self.down], seen, **quiet)
        self.map.select(self._click, self.visit, seen, **quiet)
        self.forget.click(self._forget, self.visit, seen, **quiet)
        for name, button in self.lessons.items():
            button.click(partial(self._follow, name), None, learned, **ASIDE)
        self.stop.click(self.training.stop, None, None, **ASIDE)

    @safely
    def _choose(self, visit: Visit, key: str | None, threshold: float) -> Updates:
        if key is None:
            return gr.skip()
        visit.choose(key)
        task = self.models.open(key)
        offered = [image for image, _ in examples(self.models.choices[key].data)]
        about = {self.about: escape(describe(task)), self.examples: gr.update(value=offered, selected_index=None)}
        return about | self._said(visit, key, threshold)

    @safely
    def _upload(self, visit: Visit, key: str | None, threshold: float, path: str) -> Updates:
        name = Path(path).name
        visit.show(receive(path, name, self.uploads, self.most_bytes), name)
        return self._said(visit, key, threshold)

    @safely
    def _example(self, visit: Visit, key: str | None, threshold: float, event: gr.SelectData) -> Updates:
        pairs = examples(self.models.choices[key].data if key in self.models.choices else None)
        visit.show(*pairs[event.index % len(pairs)])
        return self._said(visit, key, threshold)

    @safely
    def _redraw(self, visit: Visit, threshold: float) -> Updates:
        return gr.skip() if visit.image is None else self._answered(visit, visit.ask(self.models), threshold)

    @safely
    def _wish(self, visit: Visit, kind: str, layer: int, head: int, target: int, opacity: float) -> Updates:
        task = visit.ask(self.models)
        view = looks.settle(task, visit.wish)[1][layer]
        chosen = {"head": head - 1 if head else None, "target": None if target == LIKELIEST else target}
        visit.wish = replace(visit.wish, kind=kind, stage=view.stage, block=view.block, opacity=opacity, **chosen)
        return self._seen(visit, task)

    @safely
    def _click(self, visit: Visit, event: gr.SelectData) -> Updates:
        assert visit.image is not None
        width, height = looks.shown_size(visit.image)
        return self._placed(visit, (event.index[0] + 0.5) / width, (event.index[1] + 0.5) / height)

    @safely
    def _point(self, visit: Visit, across: float, down: float) -> Updates:
        width, height = visit.image.size if visit.image is not None else (1, 1)
        return self._placed(visit, (across + 0.5) / width, (down + 0.5) / height)

    def _placed(self, visit: Visit, x: float, y: float) -> Updates:
        former = visit.wish
        visit.point(x, y)
        try:
            return self._seen(visit, visit.ask(self.models))
        except ValueError:
            # The marked place was cropped away before the model saw the image.
            visit.wish = former
            raise

    @safely
    def _forget(self, visit: Visit) -> Updates:
        visit.wish = replace(visit.wish, pixel=None)
        return self._seen(visit, visit.ask(self.models))

    def _said(self, visit: Visit, key: str | None, threshold: float) -> Updates:
        """Return updates of everything that depends on the model and the image."""
        visit.key = key or visit.key
        if visit.image is None or visit.key is None:
            return {self.answer: "Choose a model or train one here, then drop an image or choose an example."}
        task = visit.ask(self.models)
        try:
            seen = self._seen(visit, task)
        except ValueError as error:
            # If there is no map to show, the reason is shown instead.
            seen = {self.looks: gr.update(visible=True), self.map: None, self.note: escape(one_line(error))}
        is_detector = task.kind == "detect"
        return {**self._answered(visit, task, threshold), self.threshold: gr.update(visible=is_detector), **seen}

    def _answered(self, visit: Visit, task: Task, threshold: float) -> Updates:
        drawn, text, answer = visit.answer(task, threshold)
        return {self.image: gr.update(value=drawn, alt_text=text, visible=True), self.answer: answer}

    def _seen(self, visit: Visit, task: Task) -> Updates:
        """Return updates of the map and of its controls."""
        assert visit.image is not None
        view, every = looks.settle(task, visit.wish)
        drawn, title, note = looks.look(task, visit.image, view, visit.wish)
        wish = visit.wish = replace(visit.wish, kind=view.kind, stage=view.stage, block=view.block)
        kinds = [(looks.KINDS[kind][0], kind) for kind in dict.fromkeys(one.kind for one in every)]
        layers = [(looks.layer(one), index) for index, one in enumerate(every) if one.kind == view.kind]
        names = [("the likeliest", LIKELIEST), *((name, i) for i, name in enumerate(readable(task.class_names)))]
        has_place, has_target = "pixel" in view.takes, "target" in view.takes
        head = 0 if wish.head is None else min(wish.head + 1, view.heads)
        target = LIKELIEST if wish.target is None else wish.target
        x, y = wish.pixel or (visit.image.width // 2, visit.image.height // 2)
        return {
            self.looks: gr.update(visible=True),
            self.map: gr.update(value=drawn, alt_text=f"{title}, over the image"),
            self.note: f"<p><b>{escape(title)}.</b> {escape(note)}</p>",
            self.kind: gr.update(choices=kinds, value=view.kind),
            self.layer: gr.update(choices=layers, value=every.index(view), visible=len(layers) > 1),
            self.head: gr.update(
                maximum=max(1, view.heads), value=head, visible="head" in view.takes and view.heads > 1
            ),
            self.across: gr.update(maximum=max(1, visit.image.width - 1), value=x, visible=has_place),
            self.down: gr.update(maximum=max(1, visit.image.height - 1), value=y, visible=has_place),
            self.forget: gr.update(visible=has_place and wish.pixel is not None),
            self.target: gr.update(choices=names, value=target, visible=has_target),
        }

    def _choices(self, chosen: str | None = None) -> Any:
        known = [(choice.title, key) for key, choice in self.models.choices.items()]
        return gr.update(choices=known, value=chosen or (known[0][1] if known else None))

    def _follow(self, lesson: str | None = None) -> Iterator[Updates]:
        """Start a lesson, if one is named, and yield updates of the running training until it ends."""
        try:
            if lesson is not None:
                self.training.begin(lesson)
        except FIXABLE as error:
            gr.Warning(escape(one_line(error)), title="Sorry")
        if not self.training.name:
            # Without any update, Gradio would clear all outputs of this handler, including the model choice.
            yield {self.progress: ""}
            return
        while (state := self.training.progress()).is_running:
            yield {self.progress: bar(state.part, state.text), self.stop: gr.update(visible=True)}
            time.sleep(PAUSE)
        updates: Updates = {self.progress: bar(state.part, state.text), self.stop: gr.update(visible=False)}
        if state.made is not None:
            self.models.choices[state.made.key] = state.made
            updates[self.model] = self._choices(state.made.key)
        yield updates


def shown(**options: Any) -> gr.Image:
    """Return an image component that embeds images in the page, so that no copy of an upload is written to disk."""
    made = gr.Image(interactive=False, buttons=[], show_label=False, height=320, **options)
    made.postprocess = lambda value: ImageData(path=None, url=data_url(value)) if isinstance(value, Image) else None
    return made


def slider(low: float, high: float, value: float, label: str, name: str, step: float = 1, **more: Any) -> gr.Slider:
    """Return a slider without a reset button."""
    return gr.Slider(low, high, value, step=step, label=label, elem_id=name, buttons=[], **more)


def theme() -> Base:
    """Return Gradio's theme with system fonts, so that none is downloaded."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return Base(primary_hue="teal", neutral_hue="slate", font=system, font_mono=["ui-monospace", "Menlo", "monospace"])


def bar(part: float, text: str) -> str:
    """Return a progress bar with its text."""
    return f'<p role="status">{escape(text)}</p><progress max="1" value="{part:.3f}" aria-label="Training"></progress>'
