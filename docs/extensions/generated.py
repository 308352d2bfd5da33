"""The directive `{generated} NAME`: a part of a page that is made from the package itself when the site is built.

`models`, `systems`, `weights` and `choices` are tables of the registry, `complexity` is counted on the
models, `recipes` are the shipped ones with their headers, `commands` every help page. Nothing of them is typed by
hand, so nothing of them can be out of date.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from globalvit.cli import complexity
from globalvit.cli.main import main
from globalvit.models.ablations import CHOICES
from globalvit.models.systems import SYSTEMS
from globalvit.models.variants import PUBLISHED, VARIANTS, ModelSpec
from globalvit.train.config import RECIPES, available_recipes, load_config
from globalvit.weights.catalog import RECORDS

NOTHING = "–"
# Parts of the list of recipes: the kinds of task, and those for a first try or one's own images.
SECTIONS = {
    "start": "Start here",
    "classify": "Classification",
    "segment": "Segmentation",
    "detect": "Detection",
    "ablate": "Ablations of GC ViT",
}
COMMAND_LIST = re.compile(r"^commands:\n(?P<entries>(?:  .*\n)+)", re.M)
COMMAND_ENTRY = re.compile(r"^  (?P<name>\w+) ", re.M)


class Generated(SphinxDirective):
    """Puts the Markdown of one of `PARTS` in its place."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes of the generated Markdown."""
        return self.parse_text_to_nodes(PARTS[self.arguments[0]](), allow_section_headings=True)


def models() -> str:
    """The classifiers: sizes counted here beside those printed, and published accuracy."""
    rows = []
    for name, figures in PUBLISHED.items():
        top5 = next((record.top5 for record in RECORDS if record.model == name and record.top5), None)
        rows.append(
            (
                f"`{name}`",
                str(VARIANTS[name].image_size),
                f"{figures.params / 1e6:.2f}",
                number(figures.published_params, "g"),
                f"{figures.gmacs:.2f}",
                number(figures.published_gflops, ".1f"),
                number(figures.top1, ".1f"),
                number(top5, ".1f"),
                figures.note,
            )
        )
    head = ("model", "pixels", "params M", "printed", "GMACs", "printed GFLOPs", "top-1 %", "top-5 %", "note")
    return table(head, rows)


def systems() -> str:
    """The published segmenters and detectors."""
    rows = [
        (
            f"`{name}`",
            f"{system.params / 1e6:.2f}",
            f"{system.published_params}",
            number(system.miou, ".1f"),
            by_schedule(system.ap_box),
            by_schedule(system.ap_mask),
        )
        for name, system in SYSTEMS.items()
    ]
    head = ("model", "params M", "printed", "mIoU, ADE20K", "box AP, COCO", "mask AP, COCO")
    return table(head, rows)


def weights() -> str:
    """The catalog of published weight files."""
    rows = [
        (
            f"`{record.model}`",
            f"`{record.weights}`",
            f"[{record.file_name}]({record.address})",
            record.license,
            number(record.top1, ".1f"),
            f"{record.preprocessing.image_size[0]}, {record.preprocessing.crop_mode} "
            f"{record.preprocessing.crop_ratio:g}, {record.preprocessing.interpolation}",
        )
        for record in RECORDS
    ]
    return table(("model", "name", "file", "license", "top-1 %", "evaluated at"), rows)


def sizes() -> str:
    """How the cost of a GC ViT and a GPViT grows with the image."""
    rows = [
        (
            f"`{row['model']}`",
            complexity.KINDS[row["attention"]],
            str(row["side"]),
            f"{row['macs'] / 1e9:.2f}",
            f"{row['attention_macs'] / 1e9:.2f}",
            f"{100 * row['padding_share']:.1f}",
            f"{row['activations'] / 1e6:.1f}",
            f"{row['memory'] / 2**20:.1f}",
        )
        for row in complexity.rows(("gcvit_tiny", "gpvit_l1"), (224, 384, 512, 1024))
    ]
    head = (
        "model",
        "attention",
        "pixels",
        "GMACs",
        "of attention",
        "on padding, %",
        "activations M",
        "largest layer MiB",
    )
    return table(head, rows)


def choices() -> str:
    """The designs that can stand in for the paper's."""
    rows = [(f"`{word}`", choice.part, choice.text) for word, choice in CHOICES.items()]
    return table(("word", "in place of the paper's", "is"), rows)


def recipes() -> str:
    """The shipped recipes by kind of task, each with what stands above its settings."""
    names: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for name in available_recipes():
        names[SECTIONS[section(name)]].append(name)
    return "\n\n".join(f"## {title}\n\n" + "\n".join(map(recipe, chosen)) for title, chosen in names.items())


def section(name: str) -> str:
    """A key of `SECTIONS`: what a recipe is for."""
    if name.startswith(("finetune", "scratch", "digits", "shapes")):
        return "start"
    config = load_config(name)
    return "ablate" if config.ablation else ModelSpec(model=config.model).kind


def recipe(name: str) -> str:
    """A recipe's name and header, its command as code."""
    header = re.match(r"(?:#.*\n)+", (RECIPES / f"{name}.yaml").read_text())
    assert header, f"recipe {name} has no header"
    # A line that begins with no `Word:` goes on with the one before.
    lines = re.sub(r"\n(?!\w+: )", " ", re.sub("^# ?", "", header[0], flags=re.M).strip()).splitlines()
    return "\n".join([f"### {name}", "", lines[0], "", *map(_point, lines[1:]), ""])


def _point(line: str) -> str:
    word, _, text = line.partition(": ")
    command, _, remark = text.strip().partition("  ")
    return f"- {word}: " + (f"`{command}` {remark.strip()}" if word == "Command" else text.strip())


def commands() -> str:
    """Every help page, in the order in which they list each other."""
    return "\n".join(f"## {' '.join(['globalvit', *words])}\n\n```text\n{page}```\n" for words, page in help_pages([]))


def help_pages(words: Sequence[str]) -> Iterable[tuple[Sequence[str], str]]:
    """(words, page) of a command and of all commands it lists."""
    page = help_page(words)
    yield words, page
    listed = COMMAND_LIST.search(page)
    for name in COMMAND_ENTRY.findall(listed["entries"]) if listed else ():
        yield from help_pages([*words, name])


def help_page(words: Sequence[str]) -> str:
    """What `globalvit WORDS --help` prints on a terminal of 100 columns."""
    out = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(out):
            status = main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {} if columns is None else {"COLUMNS": columns}
    assert status == 0, f"globalvit {' '.join(words)} --help ended with {status}"
    return out.getvalue()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def number(value: float | None, form: str) -> str:
    """A figure as it is printed, or a dash where there is none."""
    return NOTHING if value is None else f"{value:{form}}"


def by_schedule(scores: Sequence[tuple[str, float]]) -> str:
    """Scores of schedules in one cell."""
    return ", ".join(f"{score:.1f} ({schedule})" for schedule, score in scores) or NOTHING


PARTS: dict[str, Callable[[], str]] = {
    "models": models,
    "systems": systems,
    "weights": weights,
    "complexity": sizes,
    "choices": choices,
    "recipes": recipes,
    "commands": commands,
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directive known to Sphinx."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
