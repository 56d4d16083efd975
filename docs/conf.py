"""The site: ``make docs`` builds it from the pages of this repository and from its docstrings.

Sphinx reads the whole repository, so that a link on a page leads to the same file here and on a
code host.
"""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, os.fspath(ROOT))  # docs.site, and notebooks without the installed library

from docs.site import words  # noqa: E402, found by the line above

project = "lrdyn"
author = "The lrdyn contributors"
project_copyright = author
version = release = version_of("lrdyn")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "docs.site.reference",
    "docs.site.words",
]

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/records/*.md",
    "docs/theorems/*.md",
    "docs/api/*.rst",
    "notebooks/[a-z]*.py",
]
exclude_patterns = [
    *("**/.*", "**/__pycache__", "build", "containers", "dist", "lrdyn", "paper_figs", "results"),
    "tests",
]

# Pages ------------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "html_image"]
myst_heading_anchors = 4
myst_dmath_double_inline = True
nb_execution_mode = "off"  # make notebooks runs them
nb_custom_formats = {".py": ["docs.site.executed.read", {}]}
nb_merge_streams = True
nb_render_image_options = {"alt": "what the cell above draws"}

# Reference --------------------------------------------------------------------------------------

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = False
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
viewcode_follow_imported_members = True

# Formulas ---------------------------------------------------------------------------------------

mathjax_path = f"mathjax/{words.MATHJAX}"
mathjax3_config = {
    # The menu offers what would be fetched from elsewhere.
    "options": {"enableMenu": False},
    "tex": {"inlineMath": [["\\(", "\\)"]], "displayMath": [["\\[", "\\]"]]},
    "svg": {"fontCache": "global"},
}

# Looks ------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_static_path = ["site/static"]
html_extra_path = ["site/root"]  # index.html, which leads to the page of that name in docs/
html_title = f"lrdyn {release}"
html_css_files = ["site.css"]
html_js_files = ["search.js"]
html_search_scorer = os.fspath(ROOT / "docs" / "site" / "scorer.js")
html_show_sourcelink = False
html_copy_source = False
html_last_updated_fmt = None
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
}
