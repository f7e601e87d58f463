"""The site: `make docs` builds it, warnings are errors, and no page needs the network."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
# the tutorial's commands run in the environment that builds the site
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

project = "Twinlens"
author = "Twinlens contributors"
copyright = author
release = version = version_of("twinlens")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_nb",
    "sphinx_design",
    "mathml",
    "docstrings",
    "vocabulary",
    "commands",
    "report_pages",
    "offline",
    "links",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
numpydoc_show_class_members = False
# a reference may stand for the whole docstring
suppress_warnings = ["ref.footnote", "ref.citation"]

smartquotes = False

html_theme = "pydata_sphinx_theme"
html_title = "Twinlens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
_NO_SIDEBAR = ("index", "changelog", "benchmarks", "contributing", "reports", "tutorial/*")
html_sidebars: dict[str, list[str]] = {page: [] for page in _NO_SIDEBAR}
