"""The pages of README, CONTRIBUTING, benchmarks and docs as the tests read them: code blocks, commands, links.

A comment on the line above a block says what is special about it: `<!-- setup:... -->` marks the commands that .ci/run
runs, `<!-- needs network -->` and `<!-- needs files -->` a block that is only compiled or parsed here.
"""

import json
import re
import shlex
from typing import NamedTuple

BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>[^>]*?) *-->\s*\n)?^```(?P<language>[\w{}-]*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(?P<title>.+)$", re.M)
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "RELEASING.md", "SECURITY.md", "benchmarks/README.md")


class Block(NamedTuple):
    """A fenced block: where it stands, its mark and its code."""

    place: str
    mark: str
    code: str


def pages(root):
    """Every page, notebooks among them."""
    written = sorted(path for kind in ("md", "ipynb") for path in (root / "docs").rglob(f"*.{kind}"))
    return [*(root / name for name in OUTSIDE), *written]


def text_of(page):
    """A page's Markdown; of a notebook the text cells."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def blocks_of(page, language):
    """The fenced blocks of a language in a page, in order."""
    text = text_of(page)
    for found in BLOCK.finditer(text):
        if found["language"] == language:
            place = f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}"
            yield Block(place, found["mark"] or "", found["code"])


def blocks(root, language):
    """The fenced blocks of a language in all pages."""
    for page in pages(root):
        yield from blocks_of(page, language)


def commands_of(text):
    """The words after `globalvit` of every such command in a shell script."""
    for line in re.split(r"\n|&&|;", text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        starts = [i for i, word in enumerate(words) if word.split("/")[-1] == "globalvit"]
        # `image: registry/globalvit` and the like are not commands: a command follows.
        if starts and starts[0] + 1 < len(words):
            yield words[starts[0] + 1 :]


def spans(page):
    """(place, text) of every piece of code within a line, outside of blocks."""
    for number, line in enumerate(BLOCK.sub(_blank, text_of(page)).splitlines(), 1):
        yield from ((f"{page.name}:{number}", text) for text in SPAN.findall(line))


def block_commands(root):
    """(place, words) of every `globalvit` command in shell blocks."""
    for place, _, code in blocks(root, "bash"):
        yield from ((place, words) for words in commands_of(code))


def span_commands(root):
    """(place, words) of every `globalvit` command within a line, which may be cut short."""
    for page in pages(root):
        for place, text in spans(page):
            if re.match(r"(torchrun .*-m )?globalvit \w", text) and not text.endswith("…"):
                yield from ((place, words) for words in commands_of(text))


def links(page):
    """(place, target) of every link of a page."""
    text = SPAN.sub("`code`", BLOCK.sub(_blank, text_of(page)))
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((f"{page.name}:{number}", found["target"]) for found in LINK.finditer(line))


def anchors(page):
    """The anchors of a page's headings."""
    return {slug(found["title"]) for found in HEADING.finditer(BLOCK.sub(_blank, text_of(page)))}


def slug(title):
    """A heading's anchor, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def _blank(found):
    return "\n" * found[0].count("\n")
