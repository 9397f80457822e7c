"""What streams of chunks have in common, whatever a chunk holds: frame, signs of life, end."""

from __future__ import annotations

from cortex.chat.events import Usage, total_usage
from cortex.chat.request import ChatRequest
from cortex.dialects.openai import usage_object
from cortex.wire import encode


class Chunks:
    """
    The frame of a stream.

    Attributes:
        starts: Of each choice, how a chunk begins, up to what is said of the choice.
        tail: How a chunk ends, behind its choices.
        live: Choices that have begun and go on.
    """

    def __init__(self, request: ChatRequest, created: int, reply_id: str, kind: str) -> None:
        head = {"id": reply_id, "object": kind, "created": created, "model": request.model}
        self._head = b"data: " + encode(head)[:-1]
        self._n = request.n
        self._asks_usage = request.include_usage
        self._usages: dict[int, Usage] = {}
        numbers = range(len(request.choices()))
        self.starts = [self._head + b',"choices":[{"index":%d,' % number for number in numbers]
        self.tail = b',"usage":null}\n\n' if self._asks_usage else b"}\n\n"
        self.live: set[int] = set()

    def counted(self, prompt_tokens: int) -> bytes:
        """Return the tail of a chunk that says how many tokens the prompt has."""
        return b',"usage":' + encode(usage_object(Usage(prompt_tokens=prompt_tokens))) + b"}\n\n"

    def end(self, choice: int, usage: Usage) -> bytes:
        """Return what follows the last chunk of a choice: after the last of them all, the end."""
        self.live.discard(choice)
        self._usages[choice] = usage
        if len(self._usages) < len(self.starts):
            return b""
        end = b"data: [DONE]\n\n"
        if self._asks_usage:
            total = usage_object(total_usage(self._usages, self._n))
            end = self._head + b',"choices":[],"usage":' + encode(total) + b"}\n\n" + end
        return end
