"""
One streamed answer, as times and counts.

The text itself is dropped: of an event only what tells a piece from the rest is looked at.  Events
that arrive together have the same time.
"""

from __future__ import annotations

from array import array
from typing import Any

import attrs
import msgspec

DATA = b"data:"
DONE = b"[DONE]"
OK = 200


class Delta(msgspec.Struct):
    """``choices[].delta``: the parts of it that are tokens a model wrote."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    """``choices[]`` of a chat, or of a legacy completion."""

    delta: Delta | None = None
    text: Any = None

    @property
    def says(self) -> bool:
        """Whether it carries a piece of the answer; one that only names the role does not."""
        d = self.delta
        if d is None:
            return bool(self.text)
        return bool(d.content or d.reasoning_content or d.reasoning or d.tool_calls)


class Details(msgspec.Struct):
    """``usage.prompt_tokens_details``."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """``usage``."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: Details | None = None


class Chunk(msgspec.Struct):
    """One event of the stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


CHUNKS = msgspec.json.Decoder(Chunk)


@attrs.define(kw_only=True)
class Answer:
    """
    What came of one request; seconds are of one clock.

    Attributes:
        began_s: When it was sent; with a rate, when it was due.
        asked_tokens: How long the answer should be.
        first_s: When its first piece came.
        last_s: When its last piece came.
        end_s: When the stream was whole.
        gaps_s: Between a piece and the one before it.
        usage: As the endpoint counted.
        error: A code, if it failed, and `message` says why.
    """

    began_s: float
    asked_tokens: int
    first_s: float | None = None
    last_s: float = 0.0
    end_s: float | None = None
    gaps_s: array[float] = attrs.field(factory=lambda: array("d"))
    usage: Usage | None = None
    error: str | None = None
    message: str = ""
    _rest: bytes = b""

    def feed(self, data: bytes, now: float) -> None:
        """Take in what came at *now*."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(DATA):
                self._take(line[len(DATA) :], now)

    def finish(self, now: float) -> None:
        """Take in that no more comes."""
        if self.error is None and self.end_s is None:
            self.fail("cut_off", "the stream ended before data: [DONE]", now)

    def fail(self, code: str, message: str, now: float) -> None:
        self.error, self.message, self.end_s = code, message, now

    @property
    def pieces(self) -> int:
        return 0 if self.first_s is None else 1 + len(self.gaps_s)

    @property
    def output_tokens(self) -> int:
        """Tokens the endpoint counted, else pieces that came."""
        return self.usage.completion_tokens if self.usage else self.pieces

    @property
    def is_early(self) -> bool:
        """Whether it is shorter than it was asked to be."""
        return self.output_tokens < self.asked_tokens

    def _take(self, data: bytes, now: float) -> None:
        if self.error is not None:
            return
        try:
            chunk = CHUNKS.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if data.strip() == DONE:
                self.end_s = now
            else:
                self.fail("bad_event", f"an event is no chunk: {error}", now)
            return
        if chunk.error:
            self.fail(*told(chunk.error, OK), now)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.choices and chunk.choices[0].says:
            if self.first_s is None:
                self.first_s = now
            else:
                self.gaps_s.append(now - self.last_s)
            self.last_s = now


def told(error: Any, status: int) -> tuple[str, str]:
    """Return the code and the message of an ``error`` object, whoever wrote it."""
    if not isinstance(error, dict):
        return f"http_{status}", str(error)
    names = (error.get("code"), error.get("type"))
    code = next((name for name in names if isinstance(name, str) and name), f"http_{status}")
    return code, str(error.get("message") or error)
