"""A padded batch holds what an exact one does, and padding that touches nobody."""

from __future__ import annotations

import random

import pytest
import torch

from cortex.neuron.engine.batch import CHUNKS, DECODES, TOKENS, Batch, Shape, pack
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence


def chunk_of(made, row, count):
    tokens = [made.randrange(1, 1000) for _ in range(made.randrange(count, 200))]
    sequence = Sequence(Generate(id=str(row), model="m", prompt=tokens, max_tokens=9), row=row)
    start = made.randrange(len(tokens) - count + 1)
    return Chunk(sequence, start, count)


def batch_of(waves, others, shape):
    told = torch.tensor(pack(waves, others, shape))
    assert len(told) == sum(shape.fields)
    return Batch(told, shape)


@pytest.mark.parametrize("seed", range(20))
def test_a_padded_batch_is_the_exact_one_and_padding_of_row_0(seed):
    made = random.Random(seed)
    ones = [chunk_of(made, row, 1) for row in range(1, made.randrange(1, 40))]
    count = made.randrange(1, CHUNKS + 1)
    others = [chunk_of(made, 50 + row, made.randrange(2, 100)) for row in range(count)]
    filled = Shape.of([ones], others, 32)
    shape = filled.padded()

    exact, padded = batch_of([ones], others, filled), batch_of([ones], others, shape)

    tokens = [*range(len(ones)), *(shape.decodes + n for n in range(filled.tokens))]
    sequences = [*range(len(ones)), *(shape.decodes + n for n in range(filled.chunks))]
    for name in ("said", "positions", "owners"):
        assert torch.equal(getattr(padded, name)[tokens], getattr(exact, name))
        assert getattr(padded, name).sum() == getattr(exact, name).sum()
    for name in ("rows", "lengths", "keepers"):
        assert torch.equal(getattr(padded, name)[sequences], getattr(exact, name))
        assert getattr(padded, name).sum() == getattr(exact, name).sum()
    assert torch.equal(padded.said[padded.lasts[sequences]], exact.said[exact.lasts])
    moved = exact.tiles + torch.tensor([0, shape.decodes - len(ones), 0, 0])
    assert torch.equal(padded.tiles[: len(moved)], moved)
    assert not padded.tiles[len(moved) :].any()


def test_a_token_the_host_does_not_know_is_minus_one():
    sequence = Sequence(Generate(id="r", model="m", prompt=[7, 8, 9], max_tokens=9), row=3)
    sequence.in_flight = 1
    chunk = Chunk(sequence, 3, 1)
    assert batch_of([[chunk]], [], Shape.of([[chunk]], [], 32)).said.tolist() == [-1]


@pytest.mark.parametrize(
    ("decodes", "tokens", "chunks"),
    [(DECODES[-1] + 1, 5, 1), (0, TOKENS[-1] + 1, 1), (0, 100, CHUNKS + 1)],
)
def test_what_no_shape_has_room_for_is_not_padded(decodes, tokens, chunks):
    assert Shape(tokens, chunks, chunks, 32, (decodes,)).padded() is None
