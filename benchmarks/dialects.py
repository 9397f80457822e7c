"""
What a chunk of an answer costs in each dialect, and between two of them.

One core, one thread, no sockets: an encoder is fed events, a client half is fed the bytes of each,
and a translation is both.  A figure is the best of many short rounds, in microseconds a chunk.

    python benchmarks/dialects.py [--json] [--rounds N] [--chunks N]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(path) for path in ROOT.glob("plugins/*/src"))]

from cortex.api import ChatDialect  # noqa: E402 - they are found by what stands above
from cortex.chat.events import (  # noqa: E402
    ChatEvent,
    Finished,
    Started,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from cortex.chat.request import ChatRequest  # noqa: E402
from cortex.config.schema import PluginSettings  # noqa: E402
from cortex.plugins import Plugins  # noqa: E402

PLUGINS = ("cortex_dialect_ollama",)
TARGET_US = 35.0
HI = [{"role": "user", "content": "hi"}]
ASK = {"model": "org/model", "max_tokens": 9, "stream": True}
BODIES: dict[str, dict[str, Any]] = {  # a streaming request of each dialect
    "openai-chat": {"messages": HI, "stream_options": {"include_usage": True}},
    "openai-completions": {"prompt": "hi"},
    "openai-responses": {"input": "hi", "store": False},
    "anthropic-messages": {"messages": HI},
    "ollama-chat": {"messages": HI},
    "ollama-generate": {"prompt": "hi"},
}
WORDS = (" the", " grün", "e", ' "Theorie"', "\n\n", " is", " grey", ".")
KINDS: dict[str, tuple[Sequence[ChatEvent], Callable[[str], ChatEvent]]] = {  # before, a chunk
    "text": ((), TextDelta),
    "thinking": ((), ThinkingDelta),
    "arguments": (
        (ToolCallStarted(index=0, id="call_1", name="write"),),
        lambda text: ToolCallDelta(index=0, arguments=text),
    ),
}
LAST = Finished(reason="stop", usage=Usage(prompt_tokens=9, completion_tokens=9))


@attrs.frozen
class Row:
    """What a chunk of *kind* costs, read in one dialect (or not) and written in another."""

    kind: str
    read: str | None
    written: str | None
    us: float


@attrs.frozen
class Speaker:
    """A dialect, and a request in it."""

    name: str
    dialect: ChatDialect
    request: ChatRequest

    def encoder(self) -> Callable[[ChatEvent], bytes]:
        return self.dialect.encoder(self.request, 1).feed

    def decoder(self) -> Callable[[bytes], Sequence[tuple[int, ChatEvent]]] | None:
        client = self.dialect.client
        return None if client is None else client.decoder(self.request).feed


def speakers() -> list[Speaker]:
    """Return the dialects there are that answer chats."""
    plugins = Plugins(PluginSettings(only=frozenset()))
    for module in PLUGINS:
        plugins.manager.register(import_module(module), module)
    found = []
    for offer in plugins.offers("dialect"):
        dialect = offer.build()
        if any(endpoint.operation == "chat" for endpoint in dialect.endpoints):
            body = json.dumps({**ASK, **BODIES[offer.name]}).encode()
            found.append(Speaker(offer.name, dialect, dialect.parse_request(body, "request-1")))
    return found


def events(kind: str, chunks: int) -> tuple[list[ChatEvent], list[ChatEvent]]:
    """Return what comes before the chunks, and the chunks."""
    before, make = KINDS[kind]
    words = [WORDS[number % len(WORDS)] for number in range(chunks)]
    if kind == "arguments":  # together a JSON object
        words = ['{"text": "', *(json.dumps(word)[1:-1] for word in words[2:]), '"}']
    return [Started(prompt_tokens=9), *before], [make(word) for word in words]


def best_us(rounds: int, chunks: int, prepare: Callable[[], Callable[[], None]]) -> float:
    """Return the least time a chunk took; *prepare* returns a round's work, ready to run."""
    least = min(timed(prepare()) for _ in range(rounds))
    return least / chunks / 1000


def timed(work: Callable[[], None]) -> int:
    """Return how long *work* took, in nanoseconds."""
    began = perf_counter_ns()
    work()
    return perf_counter_ns() - began


def written(speaker: Speaker, kind: str, chunks: int) -> tuple[list[bytes], list[bytes]]:
    """Return the bytes of what comes before the chunks, and of each chunk."""
    before, said = events(kind, chunks)
    feed = speaker.encoder()
    head = [feed(event) for event in before]
    return head, [feed(event) for event in said]


def encoding(speaker: Speaker, kind: str, chunks: int) -> Callable[[], None]:
    """Return a round of events to bytes."""
    before, said = events(kind, chunks)
    feed = speaker.encoder()
    for event in before:
        feed(event)

    def work() -> None:
        for event in said:
            feed(event)

    return work


def decoding(speaker: Speaker, data: tuple[list[bytes], list[bytes]]) -> Callable[[], None]:
    """Return a round of bytes to events."""
    head, chunks = data
    feed = speaker.decoder()
    assert feed is not None  # noqa: S101 - only clients are asked
    for chunk in head:
        feed(chunk)

    def work() -> None:
        for chunk in chunks:
            feed(chunk)

    return work


def translating(
    source: Speaker, target: Speaker, data: tuple[list[bytes], list[bytes]]
) -> Callable[[], None]:
    """Return a round of one dialect's bytes to another's."""
    head, chunks = data
    read, write = source.decoder(), target.encoder()
    assert read is not None  # noqa: S101 - only clients are asked
    for chunk in head:
        for _, event in read(chunk):
            write(event)

    def work() -> None:
        for chunk in chunks:
            for _, event in read(chunk):
                write(event)

    return work


def measured(rounds: int, chunks: int) -> Iterator[Row]:
    """Yield every figure; a dialect that does not send a kind chunk by chunk has none of it."""
    everyone = speakers()
    for kind in KINDS:
        sent = {speaker.name: written(speaker, kind, chunks) for speaker in everyone}
        live = [speaker for speaker in everyone if all(sent[speaker.name][1])]
        for one in everyone:
            us = best_us(rounds, chunks, partial(encoding, one, kind, chunks))
            yield Row(kind, None, one.name, us)
        for one in live:
            if one.dialect.client is None:
                continue
            data = sent[one.name]
            us = best_us(rounds, chunks, partial(decoding, one, data))
            yield Row(kind, one.name, None, us)
            for other in everyone:
                if other is not one:
                    us = best_us(rounds, chunks, partial(translating, one, other, data))
                    yield Row(kind, one.name, other.name, us)


def host() -> str:
    """Return what the figures were measured on."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.machine()}"


def table(rows: Sequence[Row]) -> str:
    """Return the figures, those over the target marked."""
    lines = [f"us a chunk, target under {TARGET_US:g}; {host()}"]
    for kind in KINDS:
        lines += ["", kind]
        for row in rows:
            if row.kind == kind:
                what = f"{row.read or 'events'} -> {row.written or 'events'}"
                lines.append(f"  {what:<44}{row.us:7.2f}{' !' if row.us > TARGET_US else ''}")
    worst = max(rows, key=lambda row: row.us)
    return "\n".join([*lines, "", f"most: {worst.us:.2f}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of each figure")
    parser.add_argument("--chunks", type=int, default=200, help="chunks of a round")
    arguments = parser.parse_args()
    gc.disable()
    rows = list(measured(arguments.rounds, arguments.chunks))
    if arguments.json:
        print(json.dumps({"host": host(), "rows": [attrs.asdict(row) for row in rows]}))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
