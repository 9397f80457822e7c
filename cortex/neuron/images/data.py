"""Images in ``data:`` URIs."""

from __future__ import annotations

import re
from binascii import Error, a2b_base64

from cortex.errors import InvalidImage

HEAD = re.compile(r"data:([^;,]*)(?:;[^;,]*)*;base64,", re.IGNORECASE)
PIECE = 1 << 20  # characters, whole groups of four; other threads go on between two


def read_data(url: str, at: str, max_bytes: int) -> tuple[str, bytes]:
    """
    Return media type and bytes of a ``data:`` URI.

    Args:
        url: It.
        at: Where it is in the request.
        max_bytes: Of the image.

    Raises:
        InvalidImage: It is no image in base64, or too large.
    """
    head = HEAD.match(url)
    if head is None:
        raise InvalidImage(f"{at}: expected data:image/...;base64,", param=at)
    if (kind := head[1].strip().lower()).split("/")[0] != "image":
        raise InvalidImage(f"{at}: {kind or 'text/plain'!r} is no type of image", param=at)
    start, end = head.end(), len(url)
    if (end - start) * 3 // 4 > max_bytes + 2:
        raise too_large(at, max_bytes)
    if 0 <= url.find("=", start) < end - 2:
        raise InvalidImage(f"{at}: malformed base64: padding before its end", param=at)
    data = bytearray()
    for begin in range(start, end, PIECE):
        try:
            data += a2b_base64(url[begin : min(begin + PIECE, end)], strict_mode=True)
        except (Error, ValueError) as error:  # the second where a character is not ASCII
            raise InvalidImage(f"{at}: malformed base64: {str(error).lower()}", param=at) from None
    if len(data) > max_bytes:
        raise too_large(at, max_bytes)
    return kind, bytes(data)


def too_large(at: str, max_bytes: int) -> InvalidImage:
    """Return the error for an image that is."""
    return InvalidImage(f"{at}: the image is over {max_bytes >> 20} MiB", param=at)
