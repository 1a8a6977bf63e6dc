"""The site of these docs and of the API reference: `tox -e docs` builds it, without a network."""

from __future__ import annotations

import re
from typing import Any, Final

import bbcache

REPOSITORY: Final = "https://github.com/bbcache/bbcache/blob/main"

project: Final = "bbcache"
author: Final = "The bbcache authors"
project_copyright: Final = author
version: Final = bbcache.__version__
release: Final = version

extensions: Final = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: Final = ["_build"]
default_role: Final = "code"  # `name` in a docstring is code, as in Markdown

myst_heading_anchors: Final = 3  # links to headings, as on GitHub
myst_enable_extensions: Final = ["colon_fence"]

autodoc_default_options: Final = {"members": True, "show-inheritance": True}
autodoc_member_order: Final = "bysource"
autodoc_typehints: Final = "description"
autodoc_typehints_description_target: Final = "documented"
autodoc_type_aliases: Final = {"Buffer": "Buffer"}
napoleon_use_ivar: Final = True  # attributes of a class are listed in its docstring

html_theme: Final = "furo"
html_title: Final = f"bbcache {version}"
html_copy_source: Final = False
html_show_sphinx: Final = False


def _link_to_repository(_app: Any, _name: str, source: list[str]) -> None:
    """Link to the repository for files outside of docs/, which the site does not have."""
    source[0] = re.sub(r"\]\(\.\./", f"]({REPOSITORY}/", source[0])


def setup(app: Any) -> None:
    """Set the site up; Sphinx calls this."""
    app.connect("source-read", _link_to_repository)
