"""A padded batch holds what an exact one does, and padding that touches nobody."""

from __future__ import annotations

import random

import pytest
import torch

from cortex.neuron.engine.batch import CHUNKS, DECODES, TOKENS, Batch, Shape, pack, waves_of
from cortex.neuron.engine.foresight import trails
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


@pytest.mark.parametrize(
    ("waves", "tokens", "padded"),
    [
        ((1, 1, 1, 1), 0, (1, 1, 1, 1, 1)),  # three tokens after the first are as four
        ((3, 3, 2), 0, (4, 4, 4)),
        ((5, 1), 0, (8, 1)),
        ((5, 1), 30, (8, 1)),
        ((1, 1), 30, (8, 1)),
        ((), 30, (0,)),
    ],
)
def test_waves_are_padded_to_few_sizes(waves, tokens, padded):
    shape = Shape(tokens, int(tokens > 0), int(tokens > 0), 32, waves).padded()
    assert shape.waves == padded
    assert Shape.told(shape.numbers) == shape
    assert bool(shape.chunks) == bool(shape.tiles) == bool(tokens)
    assert shape.spans[0] == (0, padded[0])


@pytest.mark.parametrize("has_trails", [False, True])
def test_what_comes_alone_is_packed_wave_by_wave(has_trails):
    made = [
        Sequence(
            Generate(id=f"{n}", model="m", prompt=[*range(10 * n, 10 * n + 5)], max_tokens=9), row=n
        )
        for n in (1, 2, 3)
    ]
    chunks = [
        Chunk(made[0], 4, 1),
        Chunk(made[1], 3, 2, draft=(77, 78)),  # one token again, one new, and two guesses
        Chunk(made[2], 0, 4),
    ]
    waves, others = waves_of(chunks, is_waved=True)
    shape = Shape.of(waves, others, 32, has_trails=has_trails).padded()
    packed = pack(waves, others, shape) + (trails(waves, others, shape) if has_trails else [])
    batch = Batch(torch.tensor(packed), shape)

    assert shape.waves == (8, 1, 1, 1, 1)
    assert batch.said[[0, 1, 8, 9, 10]].tolist() == [14, 23, 24, 77, 78]
    assert batch.positions[[0, 1, 8, 9, 10]].tolist() == [4, 3, 4, 5, 6]
    assert batch.said[12:16].tolist() == [30, 31, 32, 33]
    assert batch.keepers.tolist() == [1, *[0] * (len(batch.keepers) - 1)]
    if has_trails:
        assert batch.following[[0, 1, 8, 9, 10]].tolist() == [-1, 24, -9, -10, -11]
        assert batch.following[12:16].tolist() == [31, 32, 33, 34]
        assert batch.after.nonzero().flatten().tolist() == [8, 9]
        assert batch.after[[8, 9]].tolist() == [9, 10]
        assert batch.tips[:2].tolist() == [0, 8]
        assert set(batch.tips[2:].tolist()) == {-1}
