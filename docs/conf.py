"""Sphinx's configuration: `make docs` builds the site into docs/_build."""

from __future__ import annotations

import sys
from pathlib import Path

import mtlkernels

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import docstrings  # noqa: E402
import method_pages  # noqa: E402

project = "mtlkernels"
author = "the mtlkernels authors"
copyright = "2026, the mtlkernels authors"
release = mtlkernels.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # docstrings put names between single backquotes
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    "Returns"
]  # as text: the default takes what is before a colon for a type
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mtlkernels).*")]  # torch's names have no inventory here
html_theme = "furo"
html_title = "mtlkernels"
html_static_path = ["_static"]
html_css_files = ["site.css"]

method_pages.write(HERE / "methods", HERE / "methods.md")


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", docstrings.prepare, priority=100)  # before napoleon
