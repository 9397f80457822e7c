"""One reliable LLM endpoint out of a handful of GPU boxes."""

from __future__ import annotations

import pluggy

__version__ = "0.1.0"

hookspec = pluggy.HookspecMarker("cortex")
hookimpl = pluggy.HookimplMarker("cortex")

__all__ = ["__version__", "hookimpl"]
