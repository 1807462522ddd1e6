"""The documentation site; `make docs` builds it in build/docs.

The source folder is the whole repository, so the site mirrors it: a relative link between two
Markdown files leads to the same place here and in a repository browser. docs/_ext adds what plain
files cannot have: pages from docstrings and parsers, tables from records, trees of prompts.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.chdir(HERE.parent)  # pages name folders of records from here

from dynasurge import __version__  # noqa: E402

project = "Dynasurge"
author = "The Dynasurge maintainers"
version = release = __version__
root_doc = "docs/index"
include_patterns = [
    *("docs/**", "notebooks/*.ipynb", "*.md", "benchmarks/README.md"),
    *("growmaps/README.md", "figures/**/README.md", "dynasurge/assets/demo-draft/README.md"),
]
exclude_patterns = [".venv", "build", "runs", "docs/_*", "**/.*"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
extensions += ["docstrings", "gallery", "pages", "sources"]  # of docs/_ext
nb_execution_mode = "off"  # notebooks keep their outputs; `make notebooks` runs them
myst_heading_anchors = 4
myst_links_external_new_tab = True
viewcode_follow_imported_members = False  # a source leads back to its own module's page
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
smartquotes = False  # flags begin with two hyphens
python_maximum_signature_line_length = 90
suppress_warnings = ["ref.python"]  # public names are documented where they are defined, too

html_theme = "pydata_sphinx_theme"
html_title = "Dynasurge"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../build/extra"]  # the gallery's pages
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": False,
    "footer_start": [],
    "footer_end": [],
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": {"**": ["page-toc"], "docs/gallery": [], "docs/index": []},
}
html_sidebars: dict[str, list[str]] = {"docs/index": [], "docs/gallery": []}
