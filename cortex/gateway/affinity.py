"""
What ties a request to those before it, so that its node may have computed its beginning already.

A client that names its session says so in a header or in the body; of any other, what its
conversations begin with tells them apart.  Nothing of it is kept: only a hash goes further.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

import msgspec

HEADERS = (
    *("x-claude-code-session-id", "session-id", "session_id", "thread-id"),
    *("x-session-affinity", "x-session-id"),
)
MAX_HEAD_BYTES = 4096
MAX_TURNS_BYTES = 65_536
MAX_TURNS = 8  # the first of a user is among them


class Hints(msgspec.Struct):
    """The members of a body that tell a session; what else they hold is left alone."""

    metadata: msgspec.Raw = msgspec.Raw()
    prompt_cache_key: msgspec.Raw = msgspec.Raw()
    safety_identifier: msgspec.Raw = msgspec.Raw()
    user: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


class Metadata(msgspec.Struct):
    """Anthropic's ``metadata``."""

    user_id: str | None = None


class Session(msgspec.Struct):
    """What Claude Code writes into ``metadata.user_id``, as JSON."""

    session_id: str


_hints = msgspec.json.Decoder(Hints).decode
_metadata = msgspec.json.Decoder(Metadata).decode
_session = msgspec.json.Decoder(Session).decode
_scan = json.JSONDecoder().raw_decode


def affinity_of(headers: Mapping[str, str], body: bytes) -> str:
    """Return what requests of one conversation have in common, or nothing."""
    for name in HEADERS:
        if value := headers.get(name):
            return digest([value.encode("utf-8", "replace")])
    try:
        hints = _hints(body)
    except msgspec.DecodeError:
        return ""  # whoever parses it says what is wrong
    said = (
        hints.prompt_cache_key,
        session_in(hints.metadata),
        hints.safety_identifier,
        hints.user,
    )
    named = next((value for value in map(bytes, said) if value not in (b"", b"null", b'""')), None)
    return digest([named] if named else beginning(hints))


def session_in(metadata: msgspec.Raw) -> bytes:
    """Return the session that ``metadata.user_id`` names, or all of it."""
    try:
        user_id = _metadata(metadata).user_id or ""
    except msgspec.DecodeError:
        return b""
    try:
        return _session(user_id).session_id.encode()
    except msgspec.DecodeError:
        return user_id.encode()


def beginning(hints: Hints) -> Iterator[bytes]:
    """Yield what stays the same while a conversation grows: all up to the first word of a user."""
    yield bytes(hints.system)
    yield bytes(hints.instructions)
    for member in (hints.messages, hints.input, hints.prompt):
        head = memoryview(member)[:MAX_TURNS_BYTES].tobytes()
        if head.startswith(b"["):
            yield from first_turns(head.decode("utf-8", "replace"))
        else:
            yield head  # a text, or nothing


def first_turns(head: str) -> Iterator[bytes]:
    """Yield the turns at the head of an array up to the first of a user, without reading on."""
    at = 1
    for _ in range(MAX_TURNS):
        at += len(head[at : at + 64]) - len(head[at : at + 64].lstrip(" ,\r\n\t"))
        try:
            turn, end = _scan(head, at)
        except (
            ValueError,
            RecursionError,
        ):  # it is larger than what we look at, or the last was the last
            yield head[at : at + MAX_HEAD_BYTES].encode()
            return
        yield head[at:end].encode()
        if isinstance(turn, dict) and turn.get("role") == "user":
            return
        at = end


def digest(parts: Iterable[bytes]) -> str:
    """Return a short name for *parts*; of nothing it is nothing."""
    found = blake2b(digest_size=12)
    is_empty = True
    for part in parts:
        is_empty = is_empty and not part
        found.update(part[:MAX_HEAD_BYTES])
        found.update(b"\0")
    return "" if is_empty else found.hexdigest()
