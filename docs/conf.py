"""Settings of the documentation's pages: `make docs` makes them in docs/_build/html."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

from portconv import __version__  # noqa: E402

project = "portconv"
author = "The portconv authors"
copyright = author  # noqa: A001  Sphinx's name
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    # in extensions/
    "charts",
    "pages",
    "public_names",
]
exclude_patterns = ["_build"]

# A link within these pages that leads nowhere is an error. No other page is fetched.
nitpicky = True
nitpick_ignore_regex = [("py:exc", r"\w+")]  # Python's own

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = False  # extensions/public_names.py writes the pages
autodoc_typehints = "none"  # docstrings say what is taken, in words
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
# Layers of these libraries are described without them, so that the pages are made in a small environment.
autodoc_mock_imports = [name for name in ("mlx", "onnx", "torch") if importlib.util.find_spec(name) is None]
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "public"  # extensions/public_names.py: a link where there is one, and code elsewhere

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "portconv"
html_baseurl = "https://portconv.github.io/portconv"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_sidebars = {"index": [], "install": [], "benchmarks": [], "matrix": []}
html_theme_options = {
    "logo": {"text": "portconv"},
    "github_url": "https://github.com/portconv/portconv",
    "navigation_with_keys": False,
    "show_prev_next": True,
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navbar_end": ["theme-switcher", "navbar-icon-links"],
    "navbar_persistent": ["search-button"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
