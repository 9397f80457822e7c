"""
Draws tokens: the likeliest of logits plus noise, of those that top-k, top-p and min-p keep.

Which those are is a threshold, found bit by bit: how many logits, or how much of the probability,
is above a value only falls as the value grows.  Logits of 16 bits take 16 passes over a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.rows import Rows

SMALL = tl.constexpr(0.01)  # below, a logarithm is a series


@triton.jit
def mix(word):
    """Return words of 32 bits, each a hash of one, as `sampler.mix` does."""
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ (word >> 15)
    word = word ^ (word >> 16)
    word = word * 0x846CA68B
    return word ^ (word >> 15)


@triton.jit
def ordered(value):
    """Return words that are ordered as floats are."""
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)


@triton.jit
def float_of(word):
    """Return the floats of such words; of 0, minus infinity."""
    bits = tl.where(word >> 31 == 1, word ^ 0x80000000, ~word)
    return tl.where(word == 0, -float("inf"), bits.to(tl.float32, bitcast=True))


@triton.jit
def likeliest(line, COUNT: tl.constexpr, PART: tl.constexpr):
    """Return the largest logit, and whose it is."""
    at = tl.arange(0, PART)
    largest = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, COUNT, PART):
        part = tl.load(line + start + at, mask=start + at < COUNT, other=-float("inf"))
        part = part.to(tl.float32)
        best = tl.max(part, 0)
        if best > largest:
            largest = best
            token = start + tl.argmax(part, 0)
    return largest, token


@triton.jit
def mass(line, least, largest, temperature, COUNT: tl.constexpr, PART: tl.constexpr):
    """Return how much is at and above a word: as shares of what the largest has."""
    at = tl.arange(0, PART)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, COUNT, PART):
        is_in = start + at < COUNT
        part = tl.load(line + start + at, mask=is_in, other=0.0).to(tl.float32)
        share = tl.exp((part - largest) / temperature)
        total += tl.sum(tl.where((ordered(part) >= least) & is_in, share, 0.0), 0)
    return total


@triton.jit
def least_of_count(line, count, COUNT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr):
    """Return the largest word with *count* logits at and above it."""
    at = tl.arange(0, PART)
    least = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(BITS):
        tried = least | bit
        bit = bit >> 1
        many = tl.full([], 0, tl.int32)
        for start in range(0, COUNT, PART):
            is_in = start + at < COUNT
            part = tl.load(line + start + at, mask=is_in, other=0.0).to(tl.float32)
            many += tl.sum(((ordered(part) >= tried) & is_in).to(tl.int32), 0)
        if many >= count:
            least = tried
    return least


@triton.jit
def least_of_mass(
    line, floor, largest, temperature, top_p, COUNT: tl.constexpr, PART: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Return the largest word with *top_p* of the mass above *floor* at and above it."""
    wanted = top_p * mass(line, floor, largest, temperature, COUNT, PART)
    least = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(BITS):
        tried = least | bit
        bit = bit >> 1
        if mass(line, tl.maximum(tried, floor), largest, temperature, COUNT, PART) >= wanted:
            least = tried
    return tl.minimum(tl.maximum(least, floor), ordered(largest))


@triton.jit
def drawn(line, lowest, temperature, word, COUNT: tl.constexpr, PART: tl.constexpr):
    """Return the likeliest of logits plus noise, of those not below *lowest*."""
    at = tl.arange(0, PART)
    highest = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, COUNT, PART):
        is_in = start + at < COUNT
        part = tl.load(line + start + at, mask=is_in, other=-float("inf")).to(tl.float32)
        ids = (start + at).to(tl.uint32)
        uniform = (mix(word + ids * 0x9E3779B1).to(tl.float32) + 0.5) * 2.3283064365386963e-10
        uniform = tl.minimum(uniform, 0.99999994)
        series = uniform * (1.0 + uniform * (0.5 + uniform * 0.33333333))
        wait = tl.where(uniform < SMALL, series, -tl.log(1.0 - uniform))
        score = part / temperature - tl.log(wait)
        score = tl.where(is_in & (part >= lowest), score, -float("inf"))
        best = tl.max(score, 0)
        if best > highest:
            highest = best
            token = start + tl.argmax(score, 0)
    return token


@triton.jit
def pick_kernel(
    logits, which, knobs, top_ks, seeds, lengths, out,
    COUNT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Draw one row's token."""
    number = tl.program_id(0)
    line = logits + number.to(tl.int64) * COUNT
    row = tl.load(which + number)
    temperature = tl.load(knobs + row * 3)
    largest, token = likeliest(line, COUNT, PART)
    if temperature > 0.0:
        least = tl.full([], 0, tl.uint32)  # of the words of logits that are kept
        top_k = tl.load(top_ks + row)
        if (top_k > 0) & (top_k < COUNT):
            least = least_of_count(line, top_k, COUNT, PART, BITS)
        top_p = tl.load(knobs + row * 3 + 1)
        if top_p < 1.0:
            least = least_of_mass(line, least, largest, temperature, top_p, COUNT, PART, BITS)
        lowest = float_of(least)
        min_p = tl.load(knobs + row * 3 + 2)
        if min_p > 0.0:
            lowest = tl.maximum(lowest, largest + temperature * tl.log(min_p))
        seed = tl.load(seeds + row)
        word = mix((seed >> 32).to(tl.uint32) ^ mix(tl.load(lengths + row).to(tl.uint32)))
        word = mix(seed.to(tl.uint32) ^ word)
        token = drawn(line, lowest, temperature, word, COUNT, PART)
    tl.store(out + number, token.to(tl.int64))


def pick(logits: torch.Tensor, rows: Rows, which: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(which)
    count = logits.shape[1]
    pick_kernel[(len(which),)](
        logits, which, rows.knobs, rows.top_k, rows.seeds, rows.lengths, out,
        COUNT=count, PART=min(16384, triton.next_power_of_2(count)),
        BITS=32 if logits.dtype == torch.float32 else 16,
        num_warps=16,
    )  # fmt: skip
    return out
