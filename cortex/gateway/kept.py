"""What went by of a stream, kept small: nobody wants it unless its node dies."""

from __future__ import annotations

import zlib

BLOCK_BYTES = 32 << 10
MAX_BYTES = 4 << 20  # of a stream; who said more than that is not gone on with
LEVEL = 1  # events repeat their frame: a block becomes a tenth or less, in a fifth of a millisecond


class Kept:
    """Takes the pieces of a stream, and gives them back whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0  # of the pieces
        self._blocks: list[bytes] = []
        self._said = 0  # all of it, but for the pieces

    def feed(self, data: bytes) -> None:
        """Take what goes by."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > BLOCK_BYTES:
            self._pack()

    def whole(self) -> bytes | None:
        """Return all that went by; None if it was too much."""
        if self._said > MAX_BYTES:
            return None
        return b"".join([*map(zlib.decompress, self._blocks), *self._pieces])

    def _pack(self) -> None:
        self._said += self._size
        if self._said <= MAX_BYTES:
            self._blocks.append(zlib.compress(b"".join(self._pieces), LEVEL))
        else:
            self._blocks.clear()
        self._pieces, self._size = [], 0
