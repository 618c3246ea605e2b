"""Configuration of Sphinx, which makes the pages of docs/ and of the API: `make docs`."""

import heteroring

project = "heteroring"
author = "The heteroring authors"
version = release = heteroring.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"heteroring {release}"
smartquotes = False  # options begin with two hyphens
default_role = "code"  # for single backquotes in docstrings
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
add_module_names = False

myst_heading_anchors = 3  # as GitHub has them
