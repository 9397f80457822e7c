"""
What stands for a thought where its text does not: a signature, or its encrypted content.

Opaque to clients, which send it back as it is.  It may carry the text, so that the next turn still
has it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode

_MARK = b"cortex"


def sign(carried: str = "") -> str:
    """Return a signature, never empty, that carries a text."""
    return b64encode(_MARK + carried.encode()).decode()


def carried_by(signature: str) -> str:
    """Return what a signature carries; nothing if it is not one of ours."""
    try:
        said = b64decode(signature, validate=True)
        return said.removeprefix(_MARK).decode() if said.startswith(_MARK) else ""
    except ValueError:
        return ""
