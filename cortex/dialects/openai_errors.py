"""
Errors of servers that speak OpenAI's dialects, read as ours.

Each server has a wording of its own, and not all follow OpenAI's envelope; what is known here was
seen of vLLM, SGLang, llama.cpp, Ollama, FastAPI and OpenAI itself.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec

from cortex import errors
from cortex.errors import ContextLengthExceeded, CortexError, ModelLoading

OURS: dict[object, type[CortexError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, CortexError)
    and kind.status != CortexError.status
}
BY_STATUS: dict[int, type[CortexError]] = {
    401: errors.NotAuthenticated,
    403: errors.PermissionDenied,
    413: errors.RequestTooLarge,
    429: errors.RateLimited,
    503: errors.NoNodeAvailable,
    529: errors.NoNodeAvailable,
}
OVERFLOW = re.compile(
    r"(?:max\w*|exceed\w*|longer|greater|larger|beyond|reduce)\b.*\bcontext (?:length|size|window)"
    r"|context (?:length|size|window)\b.*\b(?:exceed\w*|overflow\w*|too small)"
    r"|prompt is too long|input length exceeds|`inputs` tokens",
    re.IGNORECASE | re.DOTALL,
)
CONTEXT = (
    re.compile(r"context (?:length|size|window)\D{0,20}?(\d+)", re.IGNORECASE),
    re.compile(r"(?:must be <=|tokens >) (\d+)"),
)
PROMPT = (
    re.compile(r"(\d+) (?:in the (?:messages|prompt)|input tokens|`inputs` tokens)"),
    re.compile(r"(\d+) (?:tokens from the input|tokens > \d+ maximum)"),
    re.compile(r"prompt has (\d+)|(?:input|request) \((\d+) tokens\)", re.IGNORECASE),
    re.compile(r"requested (?:a total of )?(\d+) tokens"),
)
STANDARD = {"message", "type", "code", "param", "object"}
SHOWN_CHARS = 300
ERROR_STATUSES = range(400, 600)


def read_error(status: int, body: bytes) -> CortexError:
    """
    Return what an answer with an error status says.

    Args:
        status: The HTTP status; 200 for an error within a stream.
        body: JSON with or without OpenAI's envelope, or anything else.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = body[:SHOWN_CHARS].decode("utf-8", "replace").strip()
    return read_error_object(status, value)


def read_error_object(status: int, value: object) -> CortexError:
    """Return what *value*, a decoded body, says; see `read_error`."""
    said = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(said, dict):
        said = {"message": said} if isinstance(said, str) and said else {}
    message = said.get("message") or said.get("detail") or said.get("msg")
    if not isinstance(message, str):
        message = str(message)[:SHOWN_CHARS] if message else f"the server answered {status}"
    param = said.get("param") if isinstance(said.get("param"), str) else None
    if status not in ERROR_STATUSES:
        code = said.get("code")
        status = (
            code if isinstance(code, int) and code in ERROR_STATUSES else HTTPStatus.BAD_GATEWAY
        )
    kind = _kind(status, said, message)
    details = {key: inner for key, inner in said.items() if key not in STANDARD}
    if kind is ContextLengthExceeded:
        details = _figures(said, message)
    return kind(message, param=param, details=details)


def _kind(status: int, said: dict[str, Any], message: str) -> type[CortexError]:
    names = (said.get("code"), said.get("type"))
    is_client = status < HTTPStatus.INTERNAL_SERVER_ERROR
    is_overflow = "context_length_exceeded" in names or "exceed_context_size_error" in names
    if is_overflow or (is_client and OVERFLOW.search(message)):
        return ContextLengthExceeded
    if isinstance(names[0], str) and names[0] in OURS:
        return OURS[names[0]]
    if status == HTTPStatus.SERVICE_UNAVAILABLE and "loading" in message.lower():
        return ModelLoading
    if status == HTTPStatus.NOT_FOUND:
        is_model = "model" in f"{said.get('param')} {message}".lower()
        return errors.ModelNotFound if is_model else errors.RouteNotFound
    return BY_STATUS.get(status, errors.InvalidRequest if is_client else errors.UpstreamFailed)


def _figures(said: dict[str, Any], message: str) -> dict[str, object]:
    """Return the tokens an overflow is about, as far as the server says them."""
    found: dict[str, object] = {}
    for name, theirs, words in (
        ("prompt_tokens", "n_prompt_tokens", PROMPT),
        ("context_tokens", "n_ctx", CONTEXT),
    ):
        figure = said.get(name, said.get(theirs))
        if not isinstance(figure, int):
            matches = filter(None, (pattern.search(message) for pattern in words))
            figure = next((int(match[match.lastindex or 0]) for match in matches), None)
        if figure is not None:
            found[name] = figure
    return found
