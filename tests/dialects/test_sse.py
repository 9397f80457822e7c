"""Server-sent events: what is read of a stream, wherever it is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.dialects.sse import SseReader


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: x\n\n", [("", b"x")]),
        (b"data:x\n\n", [("", b"x")]),
        (b"data:  x\n\n", [("", b" x")]),
        (b"data\n\n", [("", b"")]),
        (b"data: a: b\n\n", [("", b"a: b")]),
        (b"data: x\r\n\r\n", [("", b"x")]),
        (b"data: x\r\rdata: y\r\r", [("", b"x"), ("", b"y")]),
        (b"event: ping\ndata: {}\n\ndata: y\n\n", [("ping", b"{}"), ("", b"y")]),
        (b"event: gr\xc3\xbcn\xff\ndata: {}\n\n", [("grün\ufffd", b"{}")]),
        (b"data: a\ndata: b\n\n", [("", b"a\nb")]),
        (b": hi\n\ndata: x\n: hi\nid: 1\nretry: 5\n\n", [("", b"x")]),
        (b"event: x\n\ndata: y\n\n", [("", b"y")]),
        (b"\n\n\ndata: x\n\n\n\n", [("", b"x")]),
        (
            b"data: gr\xc3\xbcn\xc2\x85\xe2\x80\xa8\x0b\x0c\n\n",
            [("", "grün\x85\u2028\v\f".encode())],
        ),
        (b"data: x\n\ndata: cut off\n", [("", b"x")]),
        (b"", []),
    ],
)
def test_a_stream_has_these_events_wherever_it_is_cut(stream, events):
    assert SseReader().feed(stream) == events
    reader = SseReader()
    assert [event for byte in stream for event in reader.feed(bytes([byte]))] == events


lines = st.binary(max_size=20).filter(lambda line: not {10, 13} & {*line})
names = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=9)


@given(
    st.lists(st.tuples(names.filter(lambda n: n[:1] != " "), st.lists(lines, min_size=1))),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(0)),
)
def test_what_is_written_is_read(events, newline, cuts):
    stream = b"".join(
        newline.join([b"event: " + n.encode(), *(b"data: " + line for line in data), newline])
        for n, data in events
    )
    bounds = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader = SseReader()

    read = [event for a, b in pairwise(bounds) for event in reader.feed(stream[a:b])]

    assert read == [(name, b"\n".join(data)) for name, data in events]
