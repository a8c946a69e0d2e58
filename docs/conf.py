"""Sphinx builds the guides (Markdown, by way of MyST) and the reference (the docstrings): ``make docs``."""

import re

project = "nni-fairdarts"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
myst_heading_anchors = 4
highlight_language = "none"  # of blocks without a language
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # NNI's and Lightning's are theirs
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 110
toc_object_entries_show_parents = "hide"
html_theme = "alabaster"  # Sphinx's own; its pages take nothing from the network
html_theme_options = {
    "page_width": "1140px",
    "body_max_width": "none",
    "sidebar_width": "220px",
    "code_font_size": "0.78em",
}
html_show_copyright = False


def plain(app, what, name, obj, options, lines):
    """A bar in a docstring is a bar: |g - 1/2| is no substitution of reStructuredText's."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        lines[number] = "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def setup(app):
    app.connect("autodoc-process-docstring", plain)
    return {"parallel_read_safe": True}
