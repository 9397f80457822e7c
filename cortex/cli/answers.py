"""One streamed answer of ``/v1/chat/completions``: ask, show it as it comes, keep the figures."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Mapping
from contextlib import closing
from typing import Protocol

import attrs
import msgspec

from cortex.cli.client import Gateway, remote_error
from cortex.errors import CortexError

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
OK = 200


class Delta(msgspec.Struct):
    """``choices[].delta``."""

    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct):
    """``choices[]``."""

    delta: Delta = msgspec.field(default_factory=Delta)
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """One event of the stream."""

    choices: list[Choice] = []
    usage: dict[str, object] | None = None
    error: object = None


class Timings(msgspec.Struct):
    """``usage.cortex``: what the neuron measured."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Usage(msgspec.Struct):
    """``usage``, as far as we show it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cortex: Timings = msgspec.field(default_factory=Timings)


class Show(Protocol):
    """Where an answer goes while it comes."""

    def text(self, piece: str) -> None: ...
    def reasoning(self, piece: str) -> None: ...
    def end(self) -> None:
        """Leave the cursor on a fresh line."""
        ...


@attrs.define(kw_only=True)
class Answer:
    """
    An answer, complete once `finish_reason` is set.

    Attributes:
        first_s: From the request to the first piece of text or reasoning.
        total_s: From the request to the end of the stream.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, object] | None = None
    first_s: float | None = None
    total_s: float = 0.0

    def report(self, model: str) -> dict[str, object]:
        """Return what ``--json`` prints."""
        first_ms = None if self.first_s is None else round(self.first_s * 1000, 1)
        timings = {"first_token_ms": first_ms, "total_ms": round(self.total_s * 1000, 1)}
        served = self._served()
        return {
            "model": model,
            "text": self.text,
            **({"reasoning": self.reasoning} if self.reasoning else {}),
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "timings": timings | (msgspec.structs.asdict(served.cortex) if served else {}),
        }

    def stats(self) -> str:
        """Return what ``--stats`` prints."""
        served = self._served()
        first = "" if self.first_s is None else f", first after {self.first_s:.2f} s"
        if served is None:
            return f"the gateway did not count tokens{first}, {self.total_s:.2f} s in all"
        tokens = served.completion_tokens
        decode_s = served.cortex.decode_ms / 1000 or self.total_s - (self.first_s or 0)
        # The first token comes out of the prefill.
        rate = f", {(tokens - 1) / decode_s:.1f} tok/s" if tokens > 1 and decode_s > 0 else ""
        return (
            f"{served.prompt_tokens} tokens in, {tokens} out{rate}{first}, {self.total_s:.2f} s"
            " in all"
        )

    def _served(self) -> Usage | None:
        try:
            return msgspec.convert(self.usage, Usage, strict=False) if self.usage else None
        except msgspec.ValidationError:
            return None


def ask(gateway: Gateway, body: Mapping[str, object], show: Show, answer: Answer) -> None:
    """
    Stream one answer into *show* and *answer*, which keeps what came if this raises.

    Raises:
        CortexError: The gateway refused, the stream carried an error, or it just ended.
    """
    start = time.monotonic()
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        with closing(gateway.stream("/v1/chat/completions", body)) as events:
            for data in events:
                if data == "[DONE]":
                    break
                _take(_chunk(data), answer, show, start)
    finally:
        answer.total_s = time.monotonic() - start
        show.end()
    if answer.finish_reason is None:
        raise CortexError(
            "the answer ended in the middle: the stream closed without a finish reason"
        )


def _chunk(data: str) -> Chunk:
    try:
        return msgspec.json.decode(data, type=Chunk)
    except msgspec.MsgspecError as error:
        raise CortexError(f"the gateway sent an event that is no chat chunk: {error}") from None


def _take(chunk: Chunk, answer: Answer, show: Show, start: float) -> None:
    if chunk.error:
        raise remote_error(chunk.error, OK)
    answer.usage = chunk.usage or answer.usage
    for choice in chunk.choices[:1]:
        delta = choice.delta
        if answer.first_s is None and (delta.content or delta.reasoning_content):
            answer.first_s = time.monotonic() - start
        if delta.reasoning_content:
            answer.reasoning += delta.reasoning_content
            show.reasoning(delta.reasoning_content)
        if delta.content:
            answer.text += delta.content
            show.text(delta.content)
        answer.finish_reason = choice.finish_reason or answer.finish_reason


class Silent:
    """Shows nothing."""

    def text(self, piece: str) -> None: ...
    def reasoning(self, piece: str) -> None: ...
    def end(self) -> None: ...


class Printer:
    """
    Prints to stdout as it comes.

    On a terminal, reasoning is shown dim, and control characters are dropped: a model must not
    move the cursor or rename the window.  Elsewhere only the text goes out, as it is.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._last = "\n"

    def text(self, piece: str) -> None:
        if self._terminal:
            piece = printable(piece)
        self._write(piece, piece)

    def reasoning(self, piece: str) -> None:
        if self._terminal:
            piece = printable(piece)
            self._write(f"{DIM}{piece}{PLAIN}", piece)

    def end(self) -> None:
        if self._last != "\n":
            self._write("\n", "\n")

    def _write(self, raw: str, seen: str) -> None:
        if seen:
            sys.stdout.write(raw)
            sys.stdout.flush()
            self._last = seen[-1]


def printable(text: str) -> str:
    """Drop the control characters of *text*, but for line feeds and tabs."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
