"""Answers as completions: a stream of chunks, or one body."""

from __future__ import annotations

from typing import Any

import attrs

from cortex.chat.events import (
    ChatEvent,
    Failed,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    Usage,
    total_usage,
)
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import error_object, stream_error, usage_object
from cortex.dialects.openai_chunks import Chunks
from cortex.dialects.openai_completions.logprobs import Columns
from cortex.dialects.openai_completions.request import Wanted
from cortex.wire import encode

KIND = "text_completion"


def echoed(request: ChatRequest, choice: int, started: Started) -> str:
    """Return what a choice begins with: its prompt, if that was asked for."""
    wanted: Wanted = request.private
    if not wanted.echo:
        return ""
    prompt = request.prompts[choice // request.n]
    return prompt if isinstance(prompt, str) else started.prompt_text or ""


class StreamEncoder:
    """Server-sent events: text, a finish reason, the usage if asked for, ``[DONE]``."""

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._request = request
        self._chunks = Chunks(request, created, f"cmpl-{request.id}", KIND)
        self._texts = [start + b'"text":' for start in self._chunks.starts]
        self._goes_on = b',"logprobs":null,"finish_reason":null}]' + self._chunks.tail
        wanted: Wanted = request.private
        self._columns = [Columns(wanted.logprobs or 0) for _ in self._texts]

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        if type(event) is TextDelta and not event.logprobs:  # nearly all there are
            return self._text(choice, event.text)
        return self._seldom(event, choice)

    def _seldom(self, event: ChatEvent, choice: int) -> bytes:
        match event:
            case TextDelta(text, tokens):
                columns = encode(self._columns[choice].render(tokens))
                rest = b',"logprobs":%b,"finish_reason":null}]' % columns
                return self._texts[choice] + encode(text) + rest + self._chunks.tail
            case ThinkingDelta(text):
                return self._text(choice, text)
            case Started():
                self._chunks.live.add(choice)
                prompt = echoed(self._request, choice, event)
                return self._text(choice, prompt) if prompt else b""
            case Finished():
                return self._finish(choice, event)
            case Failed(error):
                return stream_error(error)
        return b""

    def keep_alive(self) -> bytes:
        live = self._chunks.live
        return self._text(min(live), "") if live else b": keep-alive\n\n"

    def _text(self, choice: int, text: str) -> bytes:
        return self._texts[choice] + encode(text) + self._goes_on

    def _finish(self, choice: int, event: Finished) -> bytes:
        rest = b'"","logprobs":null,' + encode(ending(event))[1:] + b"]"
        last = self._texts[choice] + rest + self._chunks.tail
        return last + self._chunks.end(choice, event.usage)


@attrs.define
class Answer:
    """One choice of a body, as far as it has come."""

    text: list[str] = attrs.field(factory=list)
    tokens: list[TokenLogprob] = attrs.field(factory=list)
    finished: Finished | None = None

    @property
    def likelihood(self) -> float:
        """How likely its tokens were, on average; an answer of none comes last."""
        total = sum(token.logprob for token in self.tokens)
        return total / len(self.tokens) if self.tokens else float("-inf")


class BodyEncoder:
    """One JSON object at the end; of more answers than were asked for the likeliest."""

    content_type = "application/json"

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._request = request
        self._created = created
        self._answers = [Answer() for _ in request.choices()]
        self._usages: dict[int, Usage] = {}

    def feed(self, event: ChatEvent, choice: int = 0) -> bytes:
        answer = self._answers[choice]
        match event:
            case Started():
                answer.text.append(echoed(self._request, choice, event))
            case TextDelta(text, tokens):
                answer.text.append(text)
                answer.tokens += tokens
            case ThinkingDelta(text):
                answer.text.append(text)
            case Finished():
                answer.finished = event
                self._usages[choice] = event.usage
                if len(self._usages) == len(self._answers):
                    return self._body()
            case Failed(error):
                return encode({"error": error_object(error)})
        return b""

    def keep_alive(self) -> bytes:
        return b""

    def _body(self) -> bytes:
        return encode(
            {
                "id": f"cmpl-{self._request.id}",
                "object": KIND,
                "created": self._created,
                "model": self._request.model,
                "choices": [self._choice(n, answer) for n, answer in enumerate(self._best())],
                "usage": usage_object(total_usage(self._usages, self._request.n)),
            }
        )

    def _best(self) -> list[Answer]:
        """Return the answers to show, prompt after prompt."""
        made, wanted = self._request.n, self._request.private.n
        if made == wanted:
            return self._answers
        best: list[Answer] = []
        for start in range(0, len(self._answers), made):
            each = self._answers[start : start + made]
            best += sorted(each, key=lambda answer: -answer.likelihood)[:wanted]
        return best

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        assert answer.finished is not None  # noqa: S101 - the body is complete
        limit = self._request.private.logprobs
        return {
            "text": "".join(answer.text),
            "index": index,
            "logprobs": None if limit is None else Columns(limit).render(answer.tokens),
            **ending(answer.finished),
        }


def ending(event: Finished) -> dict[str, Any]:
    """Render why an answer ended."""
    matched = {} if event.stop_string is None else {"stop_reason": event.stop_string}
    return {"finish_reason": event.reason, **matched}
