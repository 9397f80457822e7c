"""Images in ``data:`` URIs: strictly, and never more than is allowed."""

from __future__ import annotations

import base64
import os

import pytest

from cortex.errors import InvalidImage
from cortex.neuron.images.data import PIECE, read_data

MIB = 1 << 20


def read(url, max_bytes=MIB):
    return read_data(url, "messages[0].content[1]", max_bytes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("data:image/png;base64,AAEC", ("image/png", b"\0\1\2")),
        ("DATA:Image/PNG;charset=utf-8;BASE64,AAE=", ("image/png", b"\0\1")),
        ("data:image/x;base64,", ("image/x", b"")),
    ],
)
def test_a_data_uri_is_read(url, expected):
    assert read(url) == expected


def test_large_data_are_read_piece_by_piece():
    data = os.urandom(2 * PIECE + 1)
    assert read(f"data:image/png;base64,{base64.b64encode(data).decode()}", 3 * MIB)[1] == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png,abc", "expected data:image"),
        ("data:;base64,AAAA", "'text/plain' is no type of image"),
        ("data:text/html;base64,AAAA", "'text/html' is no type of image"),
        ("data:image/png;base64,AAA", "malformed base64"),
        ("data:image/png;base64,A AA", "malformed base64"),
        ("data:image/png;base64,AA_A", "malformed base64"),
        ("data:image/png;base64,AA\u00e4A", "malformed base64"),
        ("data:image/png;base64,AA==AAAA", "malformed base64: padding"),
        (f"data:image/png;base64,{'A' * (PIECE - 2)}==AAAA", "malformed base64: padding"),
        (f"data:image/png;base64,{'A' * (2 * MIB)}", "over 1 MiB"),
        (f"data:image/png;base64,{base64.b64encode(bytes(MIB + 1)).decode()}", "over 1 MiB"),
    ],
)
def test_what_is_none_is_refused_in_words(url, words):
    with pytest.raises(InvalidImage, match=words) as caught:
        read(url)
    assert (caught.value.status, caught.value.param) == (400, "messages[0].content[1]")
