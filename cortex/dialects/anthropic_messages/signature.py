"""
The signature of a thinking block.

Clients keep it as it is and send it back with the block.  Where the text of the block is withheld
from them (``display: omitted``) the signature carries it, so that the next turn still has it.
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
