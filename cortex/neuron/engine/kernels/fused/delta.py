"""
The gated delta rule, for sequences that decode and for pieces of prompts.

The time of decodes is that of their states.  A prompt goes through a head's memory `SIZE` tokens at
a time, from first to last, each program with some of its columns, which know nothing of each other;
what it computes `reference.delta_rule` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.kernels.fused.overlap import LAUNCH, let_next_begin, wait_for_last
from cortex.neuron.engine.layers import Delta
from cortex.neuron.engine.states import State
from cortex.neuron.engine.step import Step

LONG = tl.constexpr(20.0)  # times beyond are what their softplus is
PART = 512  # channels of the convolution a program does, of one token
SOME, TOKENS = 128, 32  # channels and tokens at a time, of several
COLUMNS, WARPS = 32, 4  # of a memory, that pieces of prompts go through together
SIZE = 16  # tokens that go through a memory together
PIECES = 16  # that are looked through at a time
VARYING = {  # from step to step, so kernels are compiled for any
    "do_not_specialize": ["tokens", "decodes", "sequences"],
    "do_not_specialize_on_alignment": ["rows", "lasts"],
}
LOWEST = tl.constexpr(-1e30)  # a logarithm of nothing


@triton.jit(**VARYING)
def convolve_kernel(
    inputs, latest, taps, rows, out, stride,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Convolve some channels of one token with those before it, and keep it for those after."""
    let_next_begin()
    wait_for_last()
    number, at = tl.program_id(0), tl.program_id(1) * PART + tl.arange(0, PART)
    is_in = at < CHANNELS
    row = tl.load(rows + number)
    is_kept = at < tl.where(row > 0, CHANNELS, 0)  # padding's stays zero
    now = tl.load(latest + number * stride + at, mask=is_in, other=0.0)
    total = now.to(tl.float32) * tl.load(taps + (TAPS - 1) * CHANNELS + at, mask=is_in, other=0.0)
    slot = inputs + row * (TAPS - 1) * CHANNELS + at
    for tap in tl.static_range(TAPS - 1):
        was = tl.load(slot + tap * CHANNELS, mask=is_in, other=0.0)
        total += was.to(tl.float32) * tl.load(taps + tap * CHANNELS + at, mask=is_in, other=0.0)
        if tap > 0:
            tl.store(slot + (tap - 1) * CHANNELS, was, mask=is_kept)
    if TAPS > 1:
        tl.store(slot + (TAPS - 2) * CHANNELS, now, mask=is_kept)
    tl.store(out + number * CHANNELS + at, total / (1.0 + tl.exp(-total)), mask=is_in)


@triton.jit
def span(lasts, rows, decodes):
    """Return the row of a sequence that does not decode, its first token and its last."""
    number = decodes + tl.program_id(0)
    before = tl.maximum(number - 1, 0)
    row = tl.load(rows + number)
    first = tl.where(number > decodes, tl.load(lasts + before) + 1, decodes)
    return row, first, tl.where(row > 0, tl.load(lasts + number), first - 1)


@triton.jit
def owned(token, lasts, rows, decodes, sequences, PIECES: tl.constexpr):
    """Return the rows of tokens that do not decode, 0 of padding, and their pieces' first ones."""
    first = tl.zeros_like(token) + decodes
    its = tl.zeros_like(token) + decodes
    for start in range(decodes, sequences, PIECES):
        number = start + tl.arange(0, PIECES)
        is_piece = tl.load(rows + number, mask=number < sequences, other=0) > 0
        last = tl.load(lasts + number, mask=is_piece, other=0).to(tl.int32)
        is_after = is_piece[None, :] & (token[:, None] > last[None, :])
        first = tl.maximum(first, tl.max(tl.where(is_after, last[None, :] + 1, decodes), 1))
        its += tl.sum(is_after.to(tl.int32), 1)
    return tl.load(rows + its, mask=its < sequences, other=0), first


@triton.jit(**VARYING)
def convolve_pieces_kernel(
    inputs, latest, taps, rows, lasts, out, stride, tokens, decodes, sequences,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, PART: tl.constexpr, TOKENS: tl.constexpr,
    PIECES: tl.constexpr,
):  # fmt: skip
    """Convolve some channels of some tokens of pieces of prompts; padding's are zero."""
    token = decodes + tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    at = tl.program_id(1) * PART + tl.arange(0, PART)
    is_in = (token < tokens)[:, None] & (at < CHANNELS)[None, :]
    row, first = owned(token, lasts, rows, decodes, sequences, PIECES)
    is_own = is_in & (row > 0)[:, None]
    slot = inputs + row[:, None] * (TAPS - 1) * CHANNELS + at[None, :]
    total = tl.zeros([TOKENS, PART], tl.float32)
    for tap in tl.static_range(TAPS):
        place = token - (TAPS - 1 - tap) - first  # below 0 it is of the step before
        new = latest + (first + place)[:, None] * stride + at[None, :]
        old = slot + (TAPS - 1 + place)[:, None] * CHANNELS
        x = tl.load(new, mask=is_own & (place >= 0)[:, None], other=0.0).to(tl.float32)
        x += tl.load(old, mask=is_own & (place < 0)[:, None], other=0.0).to(tl.float32)
        by = tl.load(taps + tap * CHANNELS + at, mask=at < CHANNELS, other=0.0)
        total += x * by[None, :]
    to = out + token[:, None] * CHANNELS + at[None, :]
    tl.store(to, total / (1.0 + tl.exp(-total)), mask=is_in)


@triton.jit(**VARYING)
def keep_kernel(
    inputs, latest, rows, lasts, stride, decodes,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Keep the last inputs of some channels of a piece for the step after."""
    at = tl.program_id(1) * PART + tl.arange(0, PART)
    row, first, last = span(lasts, rows, decodes)
    slot = inputs + row * (TAPS - 1) * CHANNELS + at
    count = last + 1 - first
    for number in tl.static_range(TAPS - 1):
        place = count + number - (TAPS - 1)
        is_new = at < tl.where(place >= 0, CHANNELS, 0)
        is_old = at < tl.where(place < 0, CHANNELS, 0)
        new = tl.load(latest + (first + place) * stride + at, mask=is_new, other=0.0)
        old = tl.load(slot + (TAPS - 1 + place) * CHANNELS, mask=is_old, other=0.0)
        is_kept = at < tl.where(count > 0, CHANNELS, 0)
        tl.store(slot + number * CHANNELS, tl.where(place >= 0, new, old), mask=is_kept)


@triton.jit
def unit(vectors):
    """Return vectors of length one: [..., width]."""
    return vectors / tl.sqrt(tl.sum(vectors * vectors, -1, keep_dims=True) + 1e-6)


@triton.jit
def softplus(time):
    return tl.where(time > LONG, time, tl.log(1.0 + tl.exp(tl.minimum(time, LONG))))


@triton.jit(**VARYING)
def delta_kernel(
    mixed, gates, amounts, times, decay, delay, weight, memory, rows, out, stride, eps,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEY_PAD: tl.constexpr, VALUE_PAD: tl.constexpr,
):  # fmt: skip
    """Write one head of one token into its memory, read it, norm what is read and gate it."""
    let_next_begin()
    wait_for_last()
    number, head = tl.program_id(0), tl.program_id(1)
    low, wide = tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    is_low, is_wide = low < KEY, wide < VALUE
    row = tl.load(rows + number)
    start = mixed + number * (2 * KEY_HEADS * KEY + VALUE_HEADS * VALUE)
    shared = start + head // (VALUE_HEADS // KEY_HEADS) * KEY + low
    query = unit(tl.load(shared, mask=is_low, other=0.0)) * KEY**-0.5
    key = unit(tl.load(shared + KEY_HEADS * KEY, mask=is_low, other=0.0))
    own = start + 2 * KEY_HEADS * KEY + head * VALUE + wide
    value = tl.load(own, mask=is_wide, other=0.0)
    time = tl.load(times + number * stride + head).to(tl.float32)
    time = softplus(time + tl.load(delay + head).to(tl.float32))
    fade = tl.exp(tl.load(decay + head) * time)
    amount = 1.0 / (1.0 + tl.exp(-tl.load(amounts + number * stride + head).to(tl.float32)))
    at = memory + ((row * VALUE_HEADS + head) * KEY + low)[:, None] * VALUE + wide[None, :]
    is_in = is_low[:, None] & is_wide[None, :]
    kept = tl.load(at, mask=is_in, other=0.0) * fade
    off = value - tl.sum(kept * key[:, None], 0)
    kept += key[:, None] * (amount * off)[None, :]
    is_own = low < tl.where(row > 0, KEY, 0)  # padding's stays zero
    tl.store(at, kept, mask=is_own[:, None] & is_wide[None, :])
    found = tl.sum(kept * query[:, None], 0)
    found /= tl.sqrt(tl.sum(found * found, 0) / VALUE + eps)
    found *= tl.load(weight + wide, mask=is_wide, other=0.0).to(tl.float32)
    gate = tl.load(gates + number * stride + head * VALUE + wide, mask=is_wide, other=0.0)
    gate = gate.to(tl.float32)
    answer = found * gate / (1.0 + tl.exp(-gate))
    to = out + (number * VALUE_HEADS + head) * VALUE + wide
    tl.store(to, answer.to(out.dtype.element_ty), mask=is_wide)


@triton.jit
def inverse(lower, SIZE: tl.constexpr):
    """
    Return the inverse of 1 + *lower*, a triangle: [SIZE, SIZE]; SIZE is 16.

    It is 1 - L + L^2 - ..., or (1 - L) (1 + L^2) (1 + L^4) (1 + L^8).  Powers can be some thousand
    times as large as what they add up to, so the products are exact to 24 bits.
    """
    at = tl.arange(0, SIZE)
    out = tl.where(at[:, None] == at[None, :], 1.0, 0.0) - lower
    for _ in tl.static_range(3):
        lower = tl.dot(lower, lower, input_precision="ieee")
        out += tl.dot(out, lower, input_precision="ieee")
    return out


@triton.jit(**VARYING)
def delta_pieces_kernel(
    mixed, amounts, times, decay, delay, memory, rows, lasts, stride, decodes,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    KEY_PAD: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """
    Write one head of all tokens of one sequence into some columns of its memory, and read them.

    What is read takes the place of the values in *mixed*.
    """
    head, at = tl.program_id(1), tl.arange(0, SIZE)
    low, wide = tl.arange(0, KEY_PAD), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    is_low, is_wide = low < KEY, wide < VALUE
    row, first, last = span(lasts, rows, decodes)
    slot = memory + ((row * VALUE_HEADS + head) * KEY + low)[:, None] * VALUE + wide[None, :]
    kept = tl.load(slot, mask=is_low[:, None] & is_wide[None, :], other=0.0)
    unit_time, later = tl.load(decay + head), tl.load(delay + head).to(tl.float32)
    is_before = at[:, None] > at[None, :]
    is_seen = at[:, None] >= at[None, :]
    for start in range(first, last + 1, SIZE):
        token = start + at
        is_token = token <= last
        key_in, value_in = is_token[:, None] & is_low[None, :], is_token[:, None] & is_wide[None, :]
        own = mixed + token[:, None] * (2 * KEY_HEADS * KEY + VALUE_HEADS * VALUE)
        shared = own + head // (VALUE_HEADS // KEY_HEADS) * KEY + low[None, :]
        query = unit(tl.load(shared, mask=key_in, other=0.0)) * KEY**-0.5
        key = unit(tl.load(shared + KEY_HEADS * KEY, mask=key_in, other=0.0))
        its = own + 2 * KEY_HEADS * KEY + head * VALUE + wide[None, :]
        value = tl.load(its, mask=value_in, other=0.0)
        time = tl.load(times + token * stride + head, mask=is_token, other=0.0).to(tl.float32)
        fade = tl.where(is_token, unit_time * softplus(time + later), 0.0)
        amount = tl.load(amounts + token * stride + head, mask=is_token, other=0.0).to(tl.float32)
        amount = tl.where(is_token, 1.0 / (1.0 + tl.exp(-amount)), 0.0)[:, None]
        since, whole = tl.cumsum(fade, 0), tl.sum(fade, 0)
        between = tl.exp(tl.where(is_seen, since[:, None] - since[None, :], LOWEST))
        near = tl.dot(key, tl.trans(key), input_precision=PRECISION) * between * amount
        past = tl.exp(since)[:, None]
        off = value - past * tl.dot(key, kept, input_precision=PRECISION)
        solved = inverse(tl.where(is_before, near, 0.0), SIZE)
        wrote = tl.dot(solved, off * amount, input_precision=PRECISION)
        seen = tl.dot(query, tl.trans(key), input_precision=PRECISION) * between
        found = past * tl.dot(query, kept, input_precision=PRECISION)
        found += tl.dot(seen, wrote, input_precision=PRECISION)
        faded = tl.trans(key * tl.exp(whole - since)[:, None])
        kept = kept * tl.exp(whole) + tl.dot(faded, wrote, input_precision=PRECISION)
        tl.store(its, found, mask=value_in)
    is_own = low < tl.where(row > 0, KEY, 0)
    tl.store(slot, kept, mask=is_own[:, None] & is_wide[None, :])


@triton.jit(**VARYING)
def finish_kernel(
    mixed, gates, weight, out, stride, decodes, tokens, eps,
    SKIP: tl.constexpr, VALUE_HEADS: tl.constexpr, VALUE: tl.constexpr, VALUE_PAD: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """Norm what was read of one head by some tokens, and gate it."""
    token = decodes + tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head, wide = tl.program_id(1), tl.arange(0, VALUE_PAD)
    is_in = (token < tokens)[:, None] & (wide < VALUE)[None, :]
    at = (head * VALUE + wide)[None, :]
    own = mixed + token[:, None] * (SKIP + VALUE_HEADS * VALUE) + SKIP + at
    found = tl.load(own, mask=is_in, other=0.0)
    found /= tl.sqrt(tl.sum(found * found, 1) / VALUE + eps)[:, None]
    found *= tl.load(weight + wide, mask=wide < VALUE, other=0.0).to(tl.float32)[None, :]
    gate = tl.load(gates + token[:, None] * stride + at, mask=is_in, other=0.0).to(tl.float32)
    answer = found * gate / (1.0 + tl.exp(-gate))
    to = out + token[:, None] * (VALUE_HEADS * VALUE) + at
    tl.store(to, answer.to(out.dtype.element_ty), mask=is_in)


def delta(projected: torch.Tensor, layer: Delta, state: State, step: Step) -> torch.Tensor:
    shape, decodes, sequences = layer.shape, step.decodes, len(step.rows)
    latest, gates, amounts, times = layer.parts(projected)
    stride, eps = latest.stride(0), layer.after.eps
    out = projected.new_empty(len(projected), shape.value_heads * shape.value)
    mixed = torch.empty(len(projected), shape.channels, device=out.device)
    sizes = {
        "KEY_HEADS": shape.key_heads,
        "VALUE_HEADS": shape.value_heads,
        "KEY": shape.key,
        "VALUE": shape.value,
        "KEY_PAD": max(triton.next_power_of_2(shape.key), SIZE),
    }
    value_pad = max(triton.next_power_of_2(shape.value), SIZE)
    for start, end in step.waves:
        rows = step.rows[start:end]
        convolve_kernel[end - start, triton.cdiv(shape.channels, PART)](
            state.inputs, latest[start:], layer.taps, rows, mixed[start:], stride,
            CHANNELS=shape.channels, TAPS=shape.taps, PART=PART, **LAUNCH,
        )  # fmt: skip
        delta_kernel[end - start, shape.value_heads](
            mixed[start:], gates[start:], amounts[start:], times[start:],
            layer.decay, layer.delay, layer.after.weight,
            state.memory, rows, out[start:], stride, eps,
            VALUE_PAD=value_pad, num_warps=8, **sizes, **LAUNCH,
        )  # fmt: skip
    if sequences > decodes:
        _pieces(mixed, latest, amounts, times, layer, state, step, sizes)
        finish_kernel[triton.cdiv(len(out) - decodes, TOKENS), shape.value_heads](
            mixed, gates, layer.after.weight, out, stride, decodes, len(out), eps,
            SKIP=2 * shape.key_heads * shape.key, VALUE_HEADS=shape.value_heads,
            VALUE=shape.value, VALUE_PAD=value_pad, TOKENS=TOKENS,
        )  # fmt: skip
    return out


def _pieces(
    mixed: torch.Tensor,
    latest: torch.Tensor,
    amounts: torch.Tensor,
    times: torch.Tensor,
    layer: Delta,
    state: State,
    step: Step,
    sizes: dict[str, int],
) -> None:
    """Take pieces of prompts into their states, and put what is read in place of their values."""
    shape, decodes, sequences = layer.shape, step.decodes, len(step.rows)
    tokens, pieces, stride = len(mixed), sequences - decodes, latest.stride(0)
    assert step.lasts is not None  # noqa: S101 - it is what tells pieces apart
    told = step.rows, step.lasts
    tiles = triton.cdiv(tokens - decodes, TOKENS)
    convolve_pieces_kernel[tiles, triton.cdiv(shape.channels, SOME)](
        state.inputs, latest, layer.taps, *told, mixed, stride, tokens, decodes, sequences,
        CHANNELS=shape.channels, TAPS=shape.taps, PART=SOME, TOKENS=TOKENS,
        PIECES=PIECES,
    )  # fmt: skip
    keep_kernel[pieces, triton.cdiv(shape.channels, PART)](
        state.inputs, latest, *told, stride, decodes,
        CHANNELS=shape.channels, TAPS=shape.taps, PART=PART,
    )  # fmt: skip
    delta_pieces_kernel[pieces, shape.value_heads, triton.cdiv(shape.value, COLUMNS)](
        mixed, amounts, times, layer.decay, layer.delay, state.memory, *told, stride, decodes,
        COLUMNS=COLUMNS, SIZE=SIZE, num_warps=WARPS,
        PRECISION="ieee" if latest.dtype == torch.float32 else "tf32", **sizes,
    )  # fmt: skip
