"""Asks a server to continue a bare prompt: OpenAI's legacy Completions, as servers speak it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from cortex.api import ReplyDecoder
from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai_chat.chunk import WireLogprob, WireUsage, read_logprob, read_usage
from cortex.dialects.openai_chat.client import OpenAIChatClient, render_format, render_sampling
from cortex.dialects.sse import SseReader
from cortex.errors import CortexError, UpstreamDied, UpstreamFailed
from cortex.wire import encode

Choice = tuple[int, ChatEvent]
DONE = b"[DONE]"


class WireColumns(msgspec.Struct):
    """``logprobs``: a column for each thing to know of a token, or, of llama.cpp, as in a chat."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[WireLogprob] | None = None

    def read(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens."""
        if self.content is not None:
            return tuple(map(read_logprob, self.content))
        tokens = self.tokens or []
        tops = self.top_logprobs or [None] * len(tokens)
        rows = zip(tokens, self.token_logprobs or [], tops, strict=False)
        return tuple(column(token, logprob or 0.0, top) for token, logprob, top in rows)


class WireText(msgspec.Struct):
    """An element of ``choices``."""

    text: str = ""
    logprobs: WireColumns | None = None
    finish_reason: str | None = None
    stop_reason: Any = None


class WirePiece(msgspec.Struct):
    """The data of an event."""

    choices: list[WireText] = []
    usage: WireUsage | None = None
    error: Any = None


decode_piece = msgspec.json.Decoder(WirePiece).decode


def column(token: str, logprob: float, top: Mapping[str, float] | None) -> TokenLogprob:
    """Return a token of a row of columns; those that are likely come in no order."""
    found = sorted((top or {}).items(), key=lambda pair: -pair[1])
    return TokenLogprob(
        token=token,
        logprob=logprob,
        data=token.encode(),
        top=tuple(TokenLogprob(token=t, logprob=p, data=t.encode()) for t, p in found),
    )


class CompletionsClient:
    """The client half, of requests with one prompt."""

    path = "/v1/completions"

    def render_request(self, request: ChatRequest) -> bytes:
        sampling = render_sampling(request)
        del sampling["top_logprobs"]
        fields = {
            **sampling,
            "model": request.model,
            "prompt": request.prompts[0],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "logprobs": request.sampling.logprobs,
            "response_format": request.format and render_format(request.format),
        }
        return encode({name: value for name, value in fields.items() if value is not None})

    def decoder(self, request: ChatRequest) -> ReplyDecoder:
        return PieceDecoder(request)

    def read_error(self, status: int, body: bytes) -> CortexError:
        return OpenAIChatClient().read_error(status, body)


class PieceDecoder:
    """Reads one streamed completion."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._sse = SseReader()
        self._usage = Usage()
        self._is_started = self._is_over = False
        self._last: WireText | None = None

    def feed(self, data: bytes) -> Sequence[Choice]:
        found = (event for _, said in self._sse.feed(data) for event in self._event(said))
        return [(0, event) for event in found]

    def end(self) -> Sequence[Choice]:
        return [(0, event) for event in self._finish()]

    def _event(self, said: bytes) -> Iterator[ChatEvent]:
        if self._is_over:
            return
        if said.strip() == DONE:
            yield from self._finish()
            return
        try:
            piece = decode_piece(said)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield self._fail(UpstreamFailed(f"the server sent an event that is none: {error}"))
            return
        if piece.error is not None:
            yield self._fail(OpenAIChatClient().read_error(200, encode({"error": piece.error})))
            return
        if piece.usage is not None:
            self._usage = read_usage(piece.usage)
        for text in piece.choices:
            yield from self._text(text)

    def _text(self, piece: WireText) -> Iterator[ChatEvent]:
        if not self._is_started:
            self._is_started = True
            yield Started(prompt_tokens=self._usage.prompt_tokens)
        asked = self._request.sampling.logprobs is not None and piece.logprobs is not None
        tokens = piece.logprobs.read() if asked and piece.logprobs is not None else ()
        if piece.text or tokens:
            yield TextDelta(piece.text, tokens)
        if piece.finish_reason:
            self._last = piece

    def _finish(self) -> Iterator[ChatEvent]:
        if self._is_over:
            return
        if self._last is None or self._last.finish_reason not in ("stop", "length"):
            reason = self._last.finish_reason if self._last else "it broke off"
            yield self._fail(UpstreamDied(f"the server gave up: {reason}"))
            return
        self._is_over = True
        matched = self._last.stop_reason
        stops = self._request.sampling.stop
        yield Finished(
            reason="length" if self._last.finish_reason == "length" else "stop",
            usage=self._usage,
            stop_string=matched if matched in stops else None,
        )

    def _fail(self, error: CortexError) -> Failed:
        self._is_over = True
        return Failed(error)
