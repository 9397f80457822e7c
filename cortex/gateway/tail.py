"""
Token counts off the end of an answer, of a server that does not tell them as ours do.

A stream has them only if its client asked for them.
"""

from __future__ import annotations

import json

import msgspec

from cortex.chat.events import Usage

TAIL_BYTES = 4096
_read = json.JSONDecoder().raw_decode


class Details(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class Said(msgspec.Struct):
    """``usage`` as OpenAI's dialects write it, and Anthropic's, who counts what is cached apart."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class Tail:
    """The end of an answer, as far as it has come."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-TAIL_BYTES:]

    def usage(self) -> Usage | None:
        """Return what the last ``usage`` says, if it is whole."""
        _, found, rest = self._kept.rpartition(b'"usage"')  # in a text its quotes are escaped
        if not found:
            return None
        try:
            value, _ = _read(rest.decode("utf-8", "replace").lstrip(" :\r\n"))
            said = msgspec.convert(value, Said)
        except (ValueError, RecursionError, msgspec.ValidationError):
            return None
        details = said.prompt_tokens_details or said.input_tokens_details or Details()
        apart = (said.cache_read_input_tokens or 0) + (said.cache_creation_input_tokens or 0)
        return Usage(
            prompt_tokens=(said.prompt_tokens or said.input_tokens or 0) + apart,
            completion_tokens=said.completion_tokens or said.output_tokens or 0,
            cached_tokens=details.cached_tokens or said.cache_read_input_tokens or 0,
        )
