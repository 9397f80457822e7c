"""One reliable LLM endpoint out of a handful of GPU boxes."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    import pluggy

    hookspec = pluggy.HookspecMarker("cortex")
    hookimpl = pluggy.HookimplMarker("cortex")
else:

    def __getattr__(name: str) -> object:
        """
        Make the hook markers when one is first asked for.

        pluggy is most of what `cortex --help` would import, and a Python too old for it is to read
        `cortex.__main__.wrong_python` instead of a traceback.
        """
        if name not in {"hookimpl", "hookspec"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import pluggy

        made = {
            "hookspec": pluggy.HookspecMarker("cortex"),
            "hookimpl": pluggy.HookimplMarker("cortex"),
        }
        globals().update(made)
        return made[name]
