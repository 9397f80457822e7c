"""Triton's kernels compute what plain torch does; on a GPU they run, elsewhere as conftest says."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from cortex.neuron.engine.batch import tiled
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Cache, Heads
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.kernels import fused, reference
from cortex.neuron.engine.kernels.fused.dense import SOME
from cortex.neuron.engine.layers import Linear, Norm, Rotary
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.sequence import Sequence
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
@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("quantised", QUANTISED, ids=str)
@pytest.mark.parametrize("out", [40, 1104])
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
        lengths=torch.tensor(ends, dtype=torch.int32, device=DEVICE),
        table=table.int().to(DEVICE),
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
@pytest.mark.parametrize(("width", "value_width", "turned"), [(16, 16, 16), (24, 16, 12)])
def test_rotation(dtype, normed, width, value_width, turned):
    cache = cache_of(4, 2, width, value_width, dtype)
    other = cache_of(4, 2, width, value_width, dtype)
    other.pages[0].keys.copy_(cache.pages[0].keys)
    other.pages[0].values.copy_(cache.pages[0].values)
    step = step_of((1, 9), (70, 3), 40, cache.tile_tokens)
    projected = random(10, 6 * width + 2 * value_width, dtype=dtype)
    rotary = Rotary(frequencies=100.0 ** -torch.linspace(0, 1, turned // 2), scale=1.2)
    turns = rotary.turns(step.positions.cpu()).to(DEVICE)
    norms = (norm_of(width, dtype, 1.0), norm_of(width, dtype, 1.0)) if normed else None

    got = fused.rotate(projected, turns, norms, cache.pages[0], step)

    close(got, reference.rotate(projected, turns, norms, other.pages[0], step))
    close(cache.pages[0].keys, other.pages[0].keys)
    close(cache.pages[0].values, other.pages[0].values)


@pytest.mark.parametrize("dtype", FLOATS[::2], ids=str)
@pytest.mark.parametrize("vocabulary", [300, 150_000] if DEVICE.type == "cuda" else [300, 2000])
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

    got = fused.pick(logits, rows, which)

    assert got.tolist() == reference.pick(logits, rows, which).tolist()
