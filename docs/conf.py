"""Sphinx: ``make docs`` writes the site to ``build/docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from anynest import __version__

project = "anynest"
author = "The anynest authors"
copyright = "The anynest authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_help",
    "foreign_urls",
    "mathml",
    "outside_links",
    "public_names",
]
exclude_patterns = ["_ext"]
nitpick_ignore_regex = [("py:.*", "torch.*|numpy.*|collections.*")]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # reports included below a heading of their own

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in one list
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
public_package = "anynest"

html_theme = "furo"
html_title = f"anynest {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
