"""
Errors as Anthropic's API says them.

Reference: https://platform.claude.com/docs/en/api/errors.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from cortex.errors import ContextLengthExceeded, CortexError
from cortex.wire import encode

OVERLOADED = 529
TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


def status_of(error: CortexError) -> int:
    """Return the HTTP status; what another try may find well again is an overload."""
    if error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INSUFFICIENT_STORAGE):
        return OVERLOADED
    return min(error.status, HTTPStatus.INTERNAL_SERVER_ERROR)


def envelope(error: CortexError, request_id: str = "") -> dict[str, Any]:
    """Return an error's body."""
    status = status_of(error)
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = TYPES.get(status, "api_error" if is_ours else "invalid_request_error")
    said = {"type": "error", "error": {"type": kind, "message": message(error)}}
    return {**said, "request_id": request_id} if request_id else said


def message(error: CortexError) -> str:
    """Return an error's words; clients read the figures out of one of them."""
    if isinstance(error, ContextLengthExceeded):
        prompt, context = map(error.details.get, ("prompt_tokens", "context_tokens"))
        if prompt is not None and context is not None:
            return f"prompt is too long: {prompt} tokens > {context} maximum"
    return str(error)


def event(error: CortexError) -> bytes:
    """Return the event that ends a broken stream; nothing follows it."""
    return b"event: error\ndata: " + encode(envelope(error)) + b"\n\n"
