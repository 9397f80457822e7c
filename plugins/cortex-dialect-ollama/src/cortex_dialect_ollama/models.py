"""
How Ollama describes a model.

Its clients want members cortex knows nothing of: they are there, and empty.  What takes the place
of a digest is made of the name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cortex.fleet.model import ModelCard

NEVER = "2300-01-01T00:00:00Z"  # no client's request makes a model go
ARCHITECTURE = "cortex"
CAPABILITIES = {"text": "completion", "reasoning": "thinking"}  # the others are called the same
DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}


def timestamp(created: int) -> str:
    """Return Unix seconds as Ollama writes them."""
    return datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")


def tag(card: ModelCard, created: int) -> dict[str, Any]:
    """Return a row of ``/api/tags``."""
    return {
        "name": card.id,
        "model": card.id,
        "modified_at": timestamp(created),
        "size": card.used_bytes,
        "digest": sha256(card.id.encode()).hexdigest(),
        "details": DETAILS,
    }


def process(card: ModelCard, created: int) -> dict[str, Any]:
    """Return a row of ``/api/ps``."""
    row = tag(card, created)
    del row["modified_at"]
    return row | {
        "expires_at": NEVER,
        "size_vram": card.used_bytes,
        "context_length": card.context or 0,
    }


def shown(card: ModelCard, created: int) -> dict[str, Any]:
    """Return what ``/api/show`` says; what a model can do is known once it is loaded."""
    info: dict[str, Any] = {"general.architecture": ARCHITECTURE, "general.name": card.id}
    if card.context:
        info[f"{ARCHITECTURE}.context_length"] = card.context
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "license": "",
        "details": DETAILS,
        "model_info": info,
        "capabilities": [CAPABILITIES.get(c, c) for c in card.capabilities or ("text",)],
        "modified_at": timestamp(created),
    }
