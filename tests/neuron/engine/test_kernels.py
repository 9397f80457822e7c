"""Triton's kernels compute what plain torch does; on a GPU they run, elsewhere as conftest says."""

from __future__ import annotations

from itertools import accumulate

import attrs
import pytest
import torch

from cortex.neuron.engine.batch import tiled
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Cache, Heads
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.kernels import fused, reference
from cortex.neuron.engine.kernels.fused.dense import SOME
from cortex.neuron.engine.layers import Delta, Linear, Norm, Rotary
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.states import Recurrence, States
from cortex.neuron.engine.step import Step

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
MULTIPLIED = FLOATS if DEVICE.type == "cuda" else FLOATS[:2]  # interpreted, bfloat16 is not
CLOSE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
QUANTISED = [None, torch.int8, *([torch.float8_e4m3fn] if DEVICE.type == "cuda" else [])]


@pytest.fixture(autouse=True)
def made():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(DEVICE, dtype)


def close(got, wanted, limit=None):
    off = (got.float() - wanted.float()).norm() / wanted.float().norm()
    assert off < (limit or CLOSE[wanted.dtype]), f"off by {off:.1e}"


def norm_of(width, dtype, shift=0.0):
    return Norm(weight=random(width, dtype=dtype) * 0.1 + 1 - shift, eps=1e-5, shift=shift)


def linear_of(out, width, dtype, *, quantised=None, bias=False):
    layer = Linear(
        weight=random(out, width, dtype=dtype) * width**-0.5,
        bias=random(out, dtype=dtype) if bias else None,
    )
    return layer.quantised(quantised) if quantised else layer


def limit_of(dtype, quantised, tokens):
    """Return how far off what is computed in eight bits may be."""
    narrow = dtype == torch.bfloat16 and quantised == torch.float8_e4m3fn
    return 6e-2 if narrow and tokens > SOME else None


def test_rows_advance():
    rows, other = Rows(5, 4, DEVICE), Rows(5, 4, DEVICE)
    for each in (rows, other):
        each.lengths.copy_(torch.tensor([0, 15, 16, 40, 0]))
        each.last.copy_(torch.arange(5) + 100)
        each.table.copy_(torch.arange(20).view(5, 4))
        each.table[0] = 0
    which = torch.tensor([3, 1, 4, 2, 0, 0], device=DEVICE)

    got = fused.advance(rows, which)

    for ours, theirs in zip(got, reference.advance(other, which), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(rows.lengths, other.lengths)
    assert rows.lengths.tolist() == [0, 16, 17, 41, 1]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("width", [64, 96])
def test_a_norm(dtype, shift, width):
    x, norm = random(3, width, dtype=dtype), norm_of(width, dtype, shift)
    close(fused.norm(x, norm), reference.norm(x, norm))


@pytest.mark.parametrize("dtype", MULTIPLIED, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 40, 70])
@pytest.mark.parametrize("quantised", QUANTISED, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_linear_layer(dtype, tokens, quantised, bias):
    out = 40 if quantised is None else 48
    layer = linear_of(out, 96, dtype, quantised=quantised, bias=bias)
    x, norm = random(tokens, 96, dtype=dtype), norm_of(96, dtype)
    limit = limit_of(dtype, quantised, tokens)

    close(fused.linear(x, layer), reference.linear(x, layer), limit)
    close(fused.linear(x, layer, norm), reference.linear(x, layer, norm), limit)

    there = random(tokens, out, dtype=dtype)
    wanted = there.clone()
    fused.add(x, layer, there, 0.5)
    reference.add(x, layer, wanted, 0.5)
    close(there, wanted, limit)


@pytest.mark.parametrize("dtype", MULTIPLIED, ids=str)
@pytest.mark.parametrize(("tokens", "out"), [(1, 40), (3, 40), (20, 40), (20, 1104)])
@pytest.mark.parametrize("quantised", QUANTISED, ids=str)
def test_a_gated_layer(dtype, tokens, quantised, out):
    layer = linear_of(2 * out, 64, dtype, quantised=quantised)
    x, norm = random(tokens, 64, dtype=dtype), norm_of(64, dtype, 1.0)
    limit = limit_of(dtype, quantised, tokens)
    close(fused.gated(x, layer, norm), reference.gated(x, layer, norm), limit)


def step_of(counts, before, blocks, tile_tokens):
    """Return a step of sequences that have *before* tokens in the cache, in no order of blocks."""
    ends = tuple(b + c for b, c in zip(before, counts, strict=True))
    table = torch.randperm(blocks - 1)[: len(counts) * 8].view(len(counts), 8) + 1
    positions = torch.cat([torch.arange(b, e) for b, e in zip(before, ends, strict=True)])
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    slots = table[owners, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    assert max(map(blocks_for, ends)) <= 8
    tiles = []
    for row, (place, count) in enumerate(zip([0, *accumulate(counts)], counts, strict=False)):
        if count > 1:
            tiles += tiled(row, place, before[row], count, tile_tokens)
    return Step(
        ids=torch.zeros_like(positions).to(DEVICE),
        positions=positions.to(DEVICE),
        slots=slots.to(DEVICE),
        rows=torch.arange(len(counts), device=DEVICE),
        lengths=torch.tensor(ends, device=DEVICE),
        table=table.int().to(DEVICE),
        lasts=torch.tensor([*accumulate(counts)], device=DEVICE) - 1,
        decodes=counts.count(1),
        counts=counts,
        ends=ends,
        tiles=torch.tensor(tiles, device=DEVICE).view(-1, 4) if tiles else None,
        tile_tokens=tile_tokens,
    )


def cache_of(queries, kv_heads, width, value_width, dtype, **more):
    heads = Heads(queries=queries, count=kv_heads, key=width, value=value_width, scale=0.2, **more)
    cache = Cache({0: heads}, 40, dtype, DEVICE)
    cache.pages[0].keys.copy_(random(*cache.pages[0].keys.shape))
    cache.pages[0].values.copy_(random(*cache.pages[0].values.shape))
    return cache


@pytest.mark.parametrize("dtype", MULTIPLIED, ids=str)
@pytest.mark.parametrize(
    ("queries", "kv_heads", "width", "value_width"),
    [(4, 2, 16, 16), (2, 2, 24, 16), (8, 1, 32, 32)],
)
@pytest.mark.parametrize("more", ["", "window", "softcap and sinks"])
@pytest.mark.parametrize(
    ("counts", "before"),
    [((1, 1), (63, 0)), ((1, 40, 30), (90, 0, 37))],
    ids=str,
)
def test_attention(monkeypatch, dtype, queries, kv_heads, width, value_width, more, counts, before):
    extra = {
        "window": {"window": 20},
        "softcap and sinks": {"softcap": 2.0, "sinks": random(queries, dtype=dtype)},
    }.get(more, {})
    cache = cache_of(queries, kv_heads, width, value_width, dtype, **extra)
    step = step_of(counts, before, 40, cache.tile_tokens)
    asked = random(queries, sum(counts), width, dtype=dtype).transpose(0, 1)
    pages = cache.pages[0]
    monkeypatch.setattr(fused.attention, "PROGRAMS", 12)  # few splits: they are interpreted

    got = fused.attend(asked, pages, step)

    close(got, reference.attend(asked, pages, step))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["", "normed"])
@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
@pytest.mark.parametrize(("width", "value_width", "turned"), [(16, 16, 16), (24, 16, 12)])
def test_rotation(dtype, normed, gated, width, value_width, turned):
    cache = cache_of(4, 2, width, value_width, dtype)
    other = cache_of(4, 2, width, value_width, dtype)
    other.pages[0].keys.copy_(cache.pages[0].keys)
    other.pages[0].values.copy_(cache.pages[0].values)
    step = step_of((1, 9), (70, 3), 40, cache.tile_tokens)
    asked = 4 * width * (1 + gated)
    projected = random(10, asked + 2 * width + 2 * value_width, dtype=dtype)
    rotary = Rotary(frequencies=100.0 ** -torch.linspace(0, 1, turned // 2), scale=1.2)
    turns = rotary.turns(step.positions.cpu()).to(DEVICE)
    norms = (norm_of(width, dtype, 1.0), norm_of(width, dtype, 1.0)) if normed else None

    got = fused.rotate(projected, turns, norms, cache.pages[0], step)

    close(got, reference.rotate(projected, turns, norms, other.pages[0], step))
    close(cache.pages[0].keys, other.pages[0].keys)
    close(cache.pages[0].values, other.pages[0].values)


def delta_of(shape, dtype, *, ordered=False):
    """Return a layer of linear attention, without the linear layers around it."""
    out = shape.channels + shape.value_heads * (shape.value + 2)
    nothing = Linear(weight=random(0, 0))
    return Delta(
        shape=shape,
        norm=None,
        inward=nothing,
        order=torch.randperm(out, device=DEVICE) if ordered else None,
        taps=random(shape.taps, shape.channels),
        decay=-random(shape.value_heads).exp(),
        delay=random(shape.value_heads, dtype=dtype),
        after=norm_of(shape.value, dtype),
        out=nothing,
    )


def states_of(shape, slots, dtype):
    states = States({0: shape}, slots, dtype, DEVICE)
    state = states.layers[0]
    state.inputs[1:] = random(*state.inputs[1:].shape, dtype=dtype)
    state.memory[1:] = random(*state.memory[1:].shape)
    return states


SHAPES = [
    Recurrence(key_heads=2, value_heads=4, key=16, value=32, taps=4),
    Recurrence(key_heads=3, value_heads=3, key=12, value=20, taps=2),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
def test_linear_attention_of_decodes(dtype, shape, ordered):
    layer = delta_of(shape, dtype, ordered=ordered)
    states, others = states_of(shape, 9, dtype), states_of(shape, 9, dtype)
    rows = torch.tensor([5, 1, 8], device=DEVICE)
    width = shape.channels + shape.value_heads * (shape.value + 2)
    projected = random(3, width, dtype=dtype)
    places = torch.arange(width, device=DEVICE) if layer.order is None else layer.order
    projected[1, places[-shape.value_heads :]] = 30  # times whose softplus is a straight line
    step = attrs.evolve(step_of((1, 1, 1), (7, 8, 9), 40, 32), rows=rows)
    for mine, its in zip(states._all, others._all, strict=True):
        its.copy_(mine)

    for _ in range(3):
        got = fused.delta(projected, layer, states.layers[0], step)
        close(got, reference.delta(projected, layer, others.layers[0], step))
    for mine, its in zip(states._all, others._all, strict=True):
        close(mine, its, None if dtype == torch.float32 else 2e-3)  # by way of TF32


@pytest.mark.parametrize("kernels", [fused, reference], ids=["fused", "reference"])
def test_linear_attention_of_several_tokens_of_a_sequence_that_come_alone(kernels):
    shape = SHAPES[0]
    layer = delta_of(shape, torch.float32)
    states, others = states_of(shape, 9, torch.float32), states_of(shape, 9, torch.float32)
    for mine, its in zip(states._all, others._all, strict=True):
        its.copy_(mine)
    rows = torch.tensor([5, 1, 8, 5, 8, 5], device=DEVICE)
    step = attrs.evolve(
        step_of((1,) * 6, (7,) * 6, 60, 32), rows=rows, waves=((0, 3), (3, 5), (5, 6))
    )
    projected = random(6, shape.channels + shape.value_heads * (shape.value + 2))

    got = kernels.delta(projected, layer, states.layers[0], step)

    for number, row in enumerate(rows):
        one = attrs.evolve(step_of((1,), (7,), 40, 32), rows=row[None])
        token = projected[number : number + 1]
        close(got[number : number + 1], reference.delta(token, layer, others.layers[0], one))
    for mine, its in zip(states._all, others._all, strict=True):
        close(mine, its)


def test_linear_attention_of_padding_leaves_its_state_zero():
    layer, states = delta_of(SHAPES[0], torch.float32), states_of(SHAPES[0], 3, torch.float32)
    width = SHAPES[0].channels + SHAPES[0].value_heads * (SHAPES[0].value + 2)
    step = attrs.evolve(
        step_of((1, 1), (0, 0), 40, 32), rows=torch.zeros(2, dtype=torch.int64, device=DEVICE)
    )
    out = fused.delta(random(2, width), layer, states.layers[0], step)
    assert out.isfinite().all()
    assert not any(tensor[:, 0].any() for tensor in states._all)


def test_linear_attention_of_the_same_token_again_and_again():
    """What its keys have written is nearly all overwritten each time."""
    shape = Recurrence(key_heads=1, value_heads=1, key=64, value=32, taps=4)
    layer = attrs.evolve(delta_of(shape, torch.float32), decay=torch.tensor([-1e-3], device=DEVICE))
    states, others = (States({0: shape}, 2, torch.float32, DEVICE) for _ in range(2))
    projected = random(1, shape.channels + shape.value + 2).repeat(90, 1)
    projected[:, shape.channels - shape.value : shape.channels] = random(90, shape.value)
    projected[:, -2] = 6.0  # the amount: nearly all
    rows = torch.tensor([1], device=DEVICE)
    step = attrs.evolve(step_of((90,), (0,), 40, 32), rows=rows)

    got = fused.delta(projected, layer, states.layers[0], step)

    close(got, reference.delta(projected, layer, others.layers[0], step), 1e-3)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_linear_attention_of_a_padded_batch_is_that_of_an_exact_one(dtype):
    shape, rows = SHAPES[0], [4, 1, 2]
    layer = delta_of(shape, dtype)
    states, others = states_of(shape, 5, dtype), states_of(shape, 5, dtype)
    for mine, its in zip(states._all, others._all, strict=True):
        its.copy_(mine)
    exact = attrs.evolve(
        step_of((1, 20, 3), (7, 8, 9), 40, 32), rows=torch.tensor(rows, device=DEVICE)
    )
    padded = attrs.evolve(
        exact,
        decodes=3,
        waves=((0, 3),),
        rows=torch.tensor([4, 0, 0, 1, 2, 0, 0], device=DEVICE),
        lasts=torch.tensor([0, 0, 0, 22, 25, 0, 0], device=DEVICE),
    )
    width = shape.channels + shape.value_heads * (shape.value + 2)
    projected = random(40, width, dtype=dtype)
    places = [0, *range(3, 26)]

    got = fused.delta(projected, layer, states.layers[0], padded)

    assert got.isfinite().all()
    close(got[places], reference.delta(projected[places], layer, others.layers[0], exact))
    for mine, its in zip(states._all, others._all, strict=True):
        close(mine, its, None if dtype == torch.float32 else 2e-3)  # by way of TF32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("kernels", "counts"),
    [
        *((fused, counts) for counts in ((1, 50, 2), (1, 16, 17), (1, 5, 80))),
        *((reference, counts) for counts in ((1, 130, 2), (1, 64, 65), (1, 5, 200))),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_linear_attention_of_pieces_is_that_of_one_token_after_the_other(shape, counts, kernels):
    layer = delta_of(shape, torch.float32)
    states, others = (States({0: shape}, 5, torch.float32, DEVICE) for _ in range(2))
    width = shape.channels + shape.value_heads * (shape.value + 2)
    projected = random(sum(counts), width)
    rows = torch.tensor([4, 1, 2], device=DEVICE)
    whole = Step(
        ids=rows, positions=rows, slots=rows, rows=rows, lengths=rows, table=rows, decodes=1,
        counts=counts, lasts=torch.tensor([*accumulate(counts)], device=DEVICE) - 1,
    )  # fmt: skip

    got = kernels.delta(projected, layer, states.layers[0], whole)

    wanted = []
    for row, tokens in zip(rows, torch.split(projected, counts), strict=True):
        one = attrs.evolve(whole, rows=row[None], counts=(1,))
        wanted += [reference.delta(token[None], layer, others.layers[0], one) for token in tokens]
    close(got, torch.cat(wanted), 1e-5)
    for mine, its in zip(states._all, others._all, strict=True):
        close(mine, its, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "vocabulary"),
    [(torch.float32, 2000), (torch.bfloat16, 300 if DEVICE.type == "cpu" else 150_000)],
    ids=str,
)
@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"temperature": 2.0, "min_p": 0.2},
        {"temperature": 1.0, "top_p": 0.0},
    ],
    ids=str,
)
def test_picks(dtype, vocabulary, knobs):
    count = 6
    rows = Rows(count + 1, 1, DEVICE)
    entered = {}
    for row in range(1, count + 1):
        job = Generate(id="r", model="m", prompt=[1], max_tokens=9, seed=row << 33 | 5, **knobs)
        sequence = Sequence(job)
        sequence.row, sequence.planned = row, 7 * row
        entered[row] = sequence
    rows.enter(entered)
    logits = random(count, vocabulary, dtype=dtype) * torch.tensor([[3.0], [0.1]] * 3).to(DEVICE)
    logits = logits.to(dtype)  # rows of few candidates, and of many
    which = torch.arange(count, 0, -1, device=DEVICE)

    got = fused.pick(logits, rows, which, rows.lengths[which])

    assert got.tolist() == reference.pick(logits, rows, which, rows.lengths[which]).tolist()
    if not {*knobs} - {"temperature"}:
        parts = torch.split(logits, [vocabulary // 3, vocabulary - vocabulary // 3], 1)
        firsts = (0, vocabulary // 3)
        best = [
            [
                kernels.best(part.contiguous(), rows, which, rows.lengths[which], first)
                for kernels in (fused, reference)
            ]
            for part, first in zip(parts, firsts, strict=True)
        ]
        for ours, wanted in best:
            assert ours[:, 1].tolist() == wanted[:, 1].tolist()
            assert torch.allclose(ours[:, 0], wanted[:, 0], rtol=1e-4, atol=1e-4)
        winners = torch.stack([ours for ours, _ in best])  # [parts, rows, 2]
        first = winners[..., 0].argmax(0)
        assert winners[..., 1].gather(0, first[None])[0].long().tolist() == got.tolist()
