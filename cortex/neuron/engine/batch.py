"""The tokens of a step, of prompts and of answers, as one tensor, which is one copy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import attrs
import torch

from cortex.neuron.engine.scheduler import Chunk

DECODES = (0, 8, 16, 32, 64, 128, 256)
FEW = (0, 1, 2, 4)  # decodes, where there is nothing else
TOKENS = (0, 32, 64, 128, 256, 512, 1024, 2048)
CHUNKS = 16


@attrs.frozen
class Shape:
    """
    How much a batch has room for; what is not needed is padding, of row 0.

    Attributes:
        tokens: Of the sequences that come last, several each, together.
        chunks: Those sequences.
        tiles: Of them.
        tile_tokens: Of a tile, at most.
        waves: How many decode, one token each, and come first; then how many of those try a second
            token, a third, and so on.
        has_trails: Whether it is told what follows each token; see `foresight`.
    """

    tokens: int
    chunks: int
    tiles: int
    tile_tokens: int
    waves: tuple[int, ...]
    has_trails: bool = False

    @classmethod
    def of(
        cls,
        waves: list[list[Chunk]],
        others: list[Chunk],
        tile_tokens: int,
        *,
        has_trails: bool = False,
    ) -> Shape:
        """Return the shape that is filled by *waves* of one token each, and *others*."""
        return cls(
            tokens=sum(chunk.count for chunk in others),
            chunks=len(others),
            tiles=sum(-(-chunk.count // tile_tokens) for chunk in others),
            tile_tokens=tile_tokens,
            waves=tuple(map(len, waves)),
            has_trails=has_trails,
        )

    @classmethod
    def told(cls, numbers: Sequence[int]) -> Shape:
        """Return the shape whose `numbers` these are."""
        tokens, chunks, tiles, tile_tokens, has_trails, *waves = numbers
        return cls(tokens, chunks, tiles, tile_tokens, tuple(waves), bool(has_trails))

    @property
    def numbers(self) -> tuple[int, ...]:
        fixed = self.tokens, self.chunks, self.tiles, self.tile_tokens, int(self.has_trails)
        return (*fixed, *self.waves)

    @property
    def decodes(self) -> int:
        """Tokens that come alone."""
        return sum(self.waves)

    def padded(self) -> Shape | None:
        """Return one of few shapes that has room for it, if there is one."""
        first, *later = self.waves or (0,)
        if first > DECODES[-1] or self.tokens > TOKENS[-1] or self.chunks > CHUNKS:
            return None
        tokens = TOKENS[bisect_left(TOKENS, self.tokens)]
        chunks = CHUNKS if tokens else 0
        sizes = DECODES if tokens else (*FEW, *DECODES[1:])
        waves = [sizes[bisect_left(sizes, first)]]
        if later:  # as if all tried as many tokens as any
            waves += [_power(max(later))] * _power(len(later))
        return Shape(
            tokens=tokens,
            chunks=chunks,
            tiles=tokens // self.tile_tokens + chunks,
            tile_tokens=self.tile_tokens,
            waves=tuple(waves),
            has_trails=self.has_trails,
        )

    @property
    def fields(self) -> list[int]:
        """How long each field of a batch is."""
        tokens, sequences = self.decodes + self.tokens, self.decodes + self.chunks
        trails = [tokens, tokens, self.tips] if self.has_trails else []
        return [*[tokens] * 3, *[sequences] * 4, self.tiles * 4, *trails]

    @property
    def tips(self) -> int:
        """How many sequences there are: each alone in the first wave, or one of the others."""
        return sum(self.waves[:1]) + self.chunks

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """From where to where waves are."""
        return tuple(pairwise((0, *accumulate(self.waves))))


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
        following: What comes after each token; of what is picked here for a sequence, -1 less its
            place among them.  # [tokens] int64
        after: Where the guess is that was tried after a token; 0 is nowhere.  # [tokens] int64
        tips: The last token of each sequence that is no guess; -1 where none is.  # [tips] int64
    """

    def __init__(self, told: torch.Tensor, shape: Shape) -> None:
        self.told = told
        self.shape = shape
        fields = torch.split(told, shape.fields)
        self.said, self.positions, self.owners = fields[:3]
        self.rows, self.lengths, self.lasts, self.keepers = fields[3:7]
        self.tiles = fields[7].view(-1, 4)
        if shape.has_trails:
            self.following, self.after, self.tips = fields[8:]


def waves_of(chunks: list[Chunk], *, is_waved: bool) -> tuple[list[list[Chunk]], list[Chunk]]:
    """
    Return what comes alone, token by token, and what does not.

    Args:
        chunks: Of a step.
        is_waved: Whether no sequence may be twice in a wave; there is one at most if not.
    """
    waves: list[list[Chunk]] = []
    others: list[Chunk] = []
    for chunk in chunks:
        if chunk.count > 1 and not chunk.draft:
            others.append(chunk)
            continue
        for depth, single in enumerate(chunk.singly() if chunk.draft else (chunk,)):
            if len(waves) <= depth * is_waved:
                waves.append([])
            waves[depth * is_waved].append(single)
    return waves, others


def pack(waves: list[list[Chunk]], others: list[Chunk], shape: Shape) -> list[int]:
    """Return all fields of a batch of what comes alone, and others, padded to *shape*."""
    said: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    lengths: list[int] = []
    lasts: list[int] = []
    keepers: list[int] = []
    tiles: list[int] = []
    ends = [(end, end) for _, end in shape.spans]
    ends.append((shape.decodes + shape.tokens, shape.decodes + shape.chunks))
    waves = [*waves, *[[]] * (len(shape.waves) - len(waves))]
    for chunks, (tokens, sequences) in zip((*waves, others), ends, strict=True):
        for chunk in chunks:
            row, start = chunk.sequence.row, len(said)
            known = chunk.known
            said += known
            said += [-1] * (chunk.count - len(known))
            positions += range(chunk.start, chunk.end)
            owners += [row] * chunk.count
            rows.append(row)
            lengths.append(chunk.end)
            lasts.append(len(said) - 1)
            keepers.append(row if chunk.samples and not chunk.draft else 0)
            if chunk.count > 1:
                tiles += tiled(row, start, chunk.start, chunk.count, shape.tile_tokens)
        for field in (said, positions, owners):
            field.extend([0] * (tokens - len(field)))
        for field in (rows, lengths, lasts, keepers):
            field.extend([0] * (sequences - len(field)))
    tiles += [0] * (4 * shape.tiles - len(tiles))
    return [*said, *positions, *owners, *rows, *lengths, *lasts, *keepers, *tiles]


def _power(count: int) -> int:
    """Return the least power of two that is no less."""
    return 1 << (count - 1).bit_length()


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
