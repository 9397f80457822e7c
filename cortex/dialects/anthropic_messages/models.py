"""
The list of models, page by page.

Reference: https://platform.claude.com/docs/en/api/models-list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cortex.errors import InvalidRequest
from cortex.fleet.model import ModelCard
from cortex.wire import encode

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000


def row(card: ModelCard, created: int) -> dict[str, Any]:
    """Render a model."""
    return {
        "type": "model",
        "id": card.id,
        "display_name": card.id,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context,
        "max_tokens": card.output or card.context,
    }


def page(cards: Sequence[ModelCard], created: int, query: Mapping[str, str]) -> bytes:
    """
    Render a page: the first, or what comes right after one model or right before another.

    Raises:
        InvalidRequest: A bound is no number in its range, or no model.
    """
    limit, ids = read_limit(query), [card.id for card in cards]
    if "before_id" in query:
        if "after_id" in query:
            raise InvalidRequest("before_id: after_id is there already", param="before_id")
        end = index_of(ids, query, "before_id")
        start = max(end - limit, 0)
        has_more = start > 0
    else:
        start = index_of(ids, query, "after_id") + 1 if "after_id" in query else 0
        end = start + limit
        has_more = end < len(cards)
    data = [row(card, created) for card in cards[start:end]]
    return encode(
        {
            "data": data,
            "has_more": has_more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
    )


def read_limit(query: Mapping[str, str]) -> int:
    """Return how many models a page has at most."""
    asked = query.get("limit", str(DEFAULT_LIMIT))
    if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:9]) <= MAX_LIMIT):
        raise InvalidRequest(f"limit: expected 1 to {MAX_LIMIT}, got {asked!r}", param="limit")
    return int(asked)


def index_of(ids: Sequence[str], query: Mapping[str, str], name: str) -> int:
    """Return where the model is that a bound names."""
    if query[name] not in ids:
        raise InvalidRequest(f"{name}: no model is called {query[name]!r}", param=name)
    return ids.index(query[name])
