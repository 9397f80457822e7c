"""
What is kept of an answer, and how a request goes on from it.

A record has the whole conversation up to the answer, so that none depends on another.  An item's
id says which answer it belongs to: ``msg_REQUEST_0`` to ``resp_REQUEST``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from cortex.chat.request import Ties
from cortex.dialects.openai_responses.response import item_id, reply_id
from cortex.errors import InvalidRequest, PreviousReplyNotFound, UnsupportedParameter
from cortex.wire import decode, encode, whole

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
LIMITS = range(1, 101)
LAST = re.compile(rb"(?:.*\n)?data: ?(\{[^\r\n]*)", re.DOTALL)  # not ``[DONE]``
NO_ITEM = msgspec.Raw(b"")


class Head(msgspec.Struct):
    """What tells an item that stands for another from all others."""

    type: str | None = None
    id: str | None = None
    role: str | None = None

    @property
    def refers_to(self) -> str | None:
        """The id of the item it stands for."""
        is_reference = self.type == "item_reference" or (self.type is None and self.role is None)
        return self.id if is_reference else None


class Peek(msgspec.Struct):
    """What of a request has to do with kept answers."""

    previous_response_id: str | None = None
    store: bool | None = None
    input: str | list[Head] = ""


class Whole(msgspec.Struct):
    """A request's input, each item as it came."""

    input: str | list[msgspec.Raw] = []


class Record(msgspec.Struct):
    """See the module; *input* has no reference in it, and each item an id."""

    input: list[msgspec.Raw]
    response: msgspec.Raw


class Reply(msgspec.Struct):
    """What is read of an answer."""

    id: str
    status: str
    output: list[msgspec.Raw]


class Ended(msgspec.Struct):
    """The last event of a stream; one that broke off ends without a response."""

    response: msgspec.Raw = msgspec.Raw(b"")


_peek = msgspec.json.Decoder(Peek).decode
_whole = msgspec.json.Decoder(Whole).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_head = msgspec.json.Decoder(Head).decode
_record = msgspec.json.Decoder(Record).decode
_reply = msgspec.json.Decoder(Reply).decode
_ended = msgspec.json.Decoder(Ended).decode


def ties(body: bytes) -> Ties:
    """See `cortex.api.ReplyDialect`."""
    peek = decode(_peek, body)
    found = [peek.previous_response_id] if peek.previous_response_id is not None else []
    if isinstance(peek.input, list):
        found += [owner(item.refers_to) for item in peek.input if item.refers_to is not None]
    return Ties(replies=tuple(dict.fromkeys(found)), keep=peek.store is not False)


def owner(item: str) -> str:
    """Return the id of the answer an item belongs to, by the item's id."""
    return reply_id(item.partition("_")[2].rpartition("_")[0])


def join(body: bytes, records: Mapping[str, bytes]) -> bytes:
    """See `cortex.api.ReplyDialect`."""
    previous = decode(_peek, body).previous_response_id
    if previous is not None and previous not in records:
        raise PreviousReplyNotFound(
            f"previous_response_id: no answer is kept under {previous!r}",
            param="previous_response_id",
        )
    items = {name: tuple(items_of(record)) for name, record in records.items()}
    before = items[previous] if previous is not None else ()
    joined, there = [item for _, item in before], {known for known, _ in before}
    for number, item in enumerate(own_items(body)):
        wanted = decode(_head, bytes(item)).refers_to
        if wanted is None:
            joined.append(item)
        elif wanted not in there:
            found = dict(items.get(owner(wanted), ())).get(wanted)
            if found is None:
                at = f"input[{number}].id"
                raise InvalidRequest(f"{at}: no item is kept under {wanted!r}", param=at)
            joined.append(found)
    return encode({**decode(_fields, body), "input": joined})


def own_items(body: bytes) -> Sequence[msgspec.Raw]:
    """Return the items of a request; text is a message."""
    given = decode(_whole, body).input
    if isinstance(given, str):
        return [msgspec.Raw(encode({"role": "user", "content": given}))]
    return given


def items_of(record: bytes) -> Iterator[tuple[str, msgspec.Raw]]:
    """Yield what was said up to an answer's end, by id."""
    kept = _record(record)
    for item in (*kept.input, *_reply(kept.response).output):
        yield _head(item).id or "", item


def record(body: bytes, reply: bytes) -> tuple[str, bytes] | None:
    """See `cortex.api.ReplyDialect`; an answer that failed is not kept."""
    response = reply
    if not reply.startswith(b"{"):
        last = LAST.match(reply)
        response = bytes(_ended(last[1]).response) if last is not None else b""
    if not response:
        return None
    said = _reply(response)
    if said.status not in ("completed", "incomplete"):
        return None
    request_id = said.id.partition("_")[2]
    items = [spelled_out(item, request_id, n) for n, item in enumerate(own_items(body))]
    return said.id, encode(Record(input=items, response=msgspec.Raw(response)))


def spelled_out(item: msgspec.Raw, request_id: str, number: int) -> msgspec.Raw:
    """Return an item of a request with its type, an id, and its content as an array."""
    fields: dict[str, Any] = msgspec.json.decode(item)
    kind = fields.get("type") or "message"
    if isinstance(text := fields.get("content"), str):
        part = "output_text" if fields.get("role") == "assistant" else "input_text"
        fields["content"] = [{"type": part, "text": text}]
    known = fields.get("id") or item_id(PREFIXES.get(kind, "item"), request_id, f"in{number}")
    return msgspec.Raw(encode({**fields, "id": known, "type": kind}))


def render_reply(record: bytes, query: Mapping[str, str]) -> bytes:
    """See `cortex.api.ReplyDialect`."""
    if query.get("stream") in ("true", "1"):
        raise UnsupportedParameter("a kept answer is not streamed again", param="stream")
    return bytes(_record(record).response)


def render_inputs(record: bytes, query: Mapping[str, str]) -> bytes:
    """See `cortex.api.ReplyDialect`: a page of the input, newest first unless told otherwise."""
    items = [(_head(item).id, item) for item in _record(record).input]
    if query.get("order", "desc") not in ("asc", "desc"):
        raise InvalidRequest("order: expected asc or desc", param="order")
    if query.get("order", "desc") == "desc":
        items.reverse()
    limit = whole(query.get("limit", "20"))
    if limit not in LIMITS:
        raise InvalidRequest("limit: expected 1 to 100", param="limit")
    if (after := query.get("after")) is not None:
        ids = [known for known, _ in items]
        if after not in ids:
            raise InvalidRequest(f"after: no item has the id {after!r}", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return encode(
        {
            "object": "list",
            "data": [item for _, item in page],
            "first_id": page[0][0] if page else None,
            "last_id": page[-1][0] if page else None,
            "has_more": len(items) > len(page),
        }
    )
