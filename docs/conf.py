"""How Sphinx builds the site: `sphinx-build -W --keep-going docs site`. Building and reading it fetch nothing."""

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "extensions"), str(DOCS.parent / "src")]
# globalvit.keras, whose reference is part of the site, needs a backend; PyTorch is there anyway.
os.environ.setdefault("KERAS_BACKEND", "torch")

project = "globalvit"
author = "The globalvit authors"
copyright = "2026, The globalvit authors"  # noqa: A001 - Sphinx reads this name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated", "notebooks"]
exclude_patterns = ["extensions", "_build"]
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The docstrings' single backticks are code.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "globalvit"
html_show_sphinx = False
html_copy_source = False
# Furo's fonts are the reader's own; its search runs in the page.
html_theme_options = {"navigation_with_keys": True}
