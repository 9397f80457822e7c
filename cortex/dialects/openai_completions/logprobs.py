"""Log probabilities in the legacy form: columns, one entry a token."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from cortex.chat.events import TokenLogprob

LEAST = -9999.0  # what is said of the impossible


class Columns:
    """Renders the tokens of one answer as they come; it counts the characters before each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def render(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """
        Return the ``logprobs`` of some tokens.

        The likeliest of a place are with the one that was taken, so they may be one more.
        """
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.data or token.token.encode()))
        return {
            "tokens": [name(token) for token in tokens],
            "token_logprobs": [max(token.logprob, LEAST) for token in tokens],
            "top_logprobs": [
                {name(one): max(one.logprob, LEAST) for one in (*token.top[: self._limit], token)}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def name(token: TokenLogprob) -> str:
    """Return a token's text, or its bytes where it is part of a character."""
    try:
        return token.data.decode() or token.token
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
