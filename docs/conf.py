"""Sphinx: ``python -m sphinx -n -W -b html docs docs/_build/html``."""

from __future__ import annotations

import re
from pathlib import Path

source = Path(__file__).parents[1] / "cortex" / "__init__.py"
release = version = re.findall(r'__version__ = "(.+)"', source.read_text("utf-8"))[0]

project = "cortex"
author = "the cortex authors"
project_copyright = "the cortex authors, GPL-3.0-or-later"
extensions = ["myst_parser"]
exclude_patterns = ["_build", "changelog"]  # fragments wait there for the next release
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"cortex {release}"
