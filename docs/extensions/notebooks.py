"""Notebooks as pages: their text and code are shown as they are stored, nothing is run."""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx

SUFFIX = ".ipynb"


class NotebookParser(MystParser):
    """Reads a notebook as the Markdown page that `as_markdown` makes of it."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill `document` with the notebook's cells and a link to the notebook itself."""
        itself = f"\n\nThis page is a notebook: {{download}}`{Path(document['source']).name}`.\n"
        super().parse(as_markdown(inputstring) + itself, document)


def as_markdown(notebook: str) -> str:
    """The text cells of a notebook, and its code cells as blocks of Python."""
    return "\n\n".join(_cell(cell) for cell in json.loads(notebook)["cells"]) + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"]).strip()
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source


def setup(app: Sphinx) -> dict[str, Any]:
    """Make notebooks known to Sphinx."""
    app.add_source_suffix(SUFFIX, "notebook")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
