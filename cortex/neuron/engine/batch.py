"""The tokens of a step, of prompts and of answers, as one tensor, which is one copy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import attrs
import torch

from cortex.neuron.engine.scheduler import Chunk

DECODES = (0, 8, 16, 32, 64, 128, 256)
TOKENS = (32, 64, 128, 256, 512, 1024, 2048)
CHUNKS = 16


@attrs.frozen
class Shape:
    """
    How much a batch has room for; what is not needed is padding, of row 0.

    Attributes:
        decodes: Sequences of one token, which come first.
        tokens: Of all others together.
        chunks: Other sequences.
        tiles: Of them.
        tile_tokens: Of a tile, at most.
    """

    decodes: int
    tokens: int
    chunks: int
    tiles: int
    tile_tokens: int

    @classmethod
    def of(cls, chunks: list[Chunk], tile_tokens: int) -> Shape:
        """Return the shape *chunks* fill."""
        counts = [chunk.count for chunk in chunks if chunk.count > 1]
        return cls(
            decodes=len(chunks) - len(counts),
            tokens=sum(counts),
            chunks=len(counts),
            tiles=sum(-(-count // tile_tokens) for count in counts),
            tile_tokens=tile_tokens,
        )

    def padded(self) -> Shape | None:
        """Return one of few shapes that has room for it, if there is one."""
        if self.decodes > DECODES[-1] or self.tokens > TOKENS[-1] or self.chunks > CHUNKS:
            return None
        tokens = TOKENS[bisect_left(TOKENS, self.tokens)]
        return Shape(
            decodes=DECODES[bisect_left(DECODES, self.decodes)],
            tokens=tokens,
            chunks=CHUNKS,
            tiles=tokens // self.tile_tokens + CHUNKS,
            tile_tokens=self.tile_tokens,
        )

    @property
    def fields(self) -> list[int]:
        """How long each field of a batch is."""
        tokens, sequences = self.decodes + self.tokens, self.decodes + self.chunks
        return [*[tokens] * 3, *[sequences] * 4, self.tiles * 4]


class Batch:
    """
    A batch's fields, views of one tensor.

    Attributes:
        told: All of them.
        said: Token ids; -1 where only the device knows.  # [tokens] int64
        positions: # [tokens] int64
        owners: The rows of tokens.  # [tokens] int64
        rows: Of sequences.  # [sequences] int64
        lengths: Of sequences, new tokens included.  # [sequences] int64
        lasts: Their last tokens, in the batch.  # [sequences] int64
        keepers: Rows that keep the token picked for them; 0 where it is for nobody.
            # [sequences] int64
        tiles: See `Step`.  # [tiles, 4] int64
    """

    def __init__(self, told: torch.Tensor, shape: Shape) -> None:
        self.told = told
        self.shape = shape
        fields = torch.split(told, shape.fields)
        self.said, self.positions, self.owners = fields[:3]
        self.rows, self.lengths, self.lasts, self.keepers = fields[3:7]
        self.tiles = fields[7].view(-1, 4)


def pack(ones: list[Chunk], others: list[Chunk], shape: Shape) -> list[int]:
    """Return all fields of a batch of chunks of one token, and others, padded to *shape*."""
    said: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    lengths: list[int] = []
    lasts: list[int] = []
    keepers: list[int] = []
    tiles: list[int] = []
    ends = (
        (shape.decodes, shape.decodes),
        (shape.decodes + shape.tokens, shape.decodes + shape.chunks),
    )
    for chunks, (tokens, sequences) in zip((ones, others), ends, strict=True):
        for chunk in chunks:
            row, start = chunk.sequence.row, len(said)
            known = chunk.sequence.tokens[chunk.start : chunk.end]
            said += known
            said += [-1] * (chunk.count - len(known))
            positions += range(chunk.start, chunk.end)
            owners += [row] * chunk.count
            rows.append(row)
            lengths.append(chunk.end)
            lasts.append(len(said) - 1)
            keepers.append(row if chunk.samples else 0)
            if chunk.count > 1:
                tiles += tiled(row, start, chunk.start, chunk.count, shape.tile_tokens)
        for field in (said, positions, owners):
            field.extend([0] * (tokens - len(field)))
        for field in (rows, lengths, lasts, keepers):
            field.extend([0] * (sequences - len(field)))
    tiles += [0] * (4 * shape.tiles - len(tiles))
    return [*said, *positions, *owners, *rows, *lengths, *lasts, *keepers, *tiles]


def tiled(row: int, place: int, start: int, count: int, most: int) -> Iterator[int]:
    """
    Yield the tiles of tokens of one sequence, four numbers each; see `Step`.

    Args:
        row: Of the sequence.
        place: Of the first token in the batch.
        start: Of the first token in the sequence.
        count: How many tokens there are.
        most: How many a tile may have.
    """
    for first in range(0, count, most):
        tokens = min(most, count - first)
        yield from (row, place + first, tokens, start + first + tokens)
