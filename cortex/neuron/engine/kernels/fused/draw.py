"""
Draws tokens: the likeliest of logits plus noise, of those that top-k, top-p and min-p keep.

Which those are is a threshold, found bit by bit: how many logits, or how much of the probability,
is above a value only falls as the value grows.  That takes a pass over a row for each bit, so what
cannot be kept is left out before: few candidates are left of most rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.rows import Rows

FEW = 1024  # candidates that are looked at apart
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
    """Return the largest logit and whose it is, and the largest of each column of parts."""
    at = tl.arange(0, PART)
    columns = tl.full([PART], -float("inf"), tl.float32)
    largest = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, COUNT, PART):
        part = tl.load(line + start + at, mask=start + at < COUNT, other=-float("inf"))
        part = part.to(tl.float32)
        columns = tl.maximum(columns, part)
        best = tl.max(part, 0)
        if best > largest:
            largest = best
            token = start + tl.argmax(part, 0)
    return largest, token, columns


@triton.jit
def bound_of_count(columns, count, BITS: tl.constexpr):
    """Return a word with *count* logits at and above it, if there are as many columns."""
    words = ordered(columns)
    least = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(BITS):
        tried = least | bit
        bit = bit >> 1
        if tl.sum((words >= tried).to(tl.int32), 0) >= count:
            least = tried
    return least


@triton.jit
def gather(line, bound, few, ids, COUNT: tl.constexpr, PART: tl.constexpr, FEW: tl.constexpr):
    """Copy the logits at and above a word, and whose they are, if they are few; return how many."""
    at = tl.arange(0, PART)
    slot = tl.arange(0, FEW)
    tl.store(few + slot, tl.full([FEW], -float("inf"), tl.float32))
    tl.store(ids + slot, tl.zeros([FEW], tl.int32))
    tl.debug_barrier()
    for start in range(0, COUNT, PART):
        is_in = start + at < COUNT
        part = tl.load(line + start + at, mask=is_in, other=0.0).to(tl.float32)
        is_found = (ordered(part) >= bound) & is_in
        place = tl.atomic_add(ids + FEW + tl.zeros([PART], tl.int32), 1, mask=is_found)
        is_kept = is_found & (place < FEW)
        tl.store(few + place, part, mask=is_kept)
        tl.store(ids + place, start + at, mask=is_kept)
    tl.debug_barrier()
    return tl.load(ids + FEW)


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
    line, floor, largest, temperature, wanted, COUNT: tl.constexpr, PART: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """Return the largest word, not below *floor*, with the mass that is wanted at and above it."""
    least = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(BITS):
        tried = least | bit
        bit = bit >> 1
        if mass(line, tl.maximum(tried, floor), largest, temperature, COUNT, PART) >= wanted:
            least = tried
    return tl.minimum(tl.maximum(least, floor), ordered(largest))


@triton.jit
def noisy(part, temperature, word, own):
    """Return logits over the temperature plus the noise of their tokens."""
    hashed = mix(word + own.to(tl.uint32) * 0x9E3779B1)
    uniform = tl.minimum((hashed.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = uniform * (1.0 + uniform * (0.5 + uniform * 0.33333333))
    wait = tl.where(uniform < SMALL, series, -tl.log(1.0 - uniform))
    return part / temperature - tl.log(wait)


@triton.jit
def drawn(
    line, ids, lowest, temperature, word, COUNT: tl.constexpr, PART: tl.constexpr,
    HAS_IDS: tl.constexpr,
):  # fmt: skip
    """Return the likeliest of logits plus noise, of those not below *lowest*."""
    at = tl.arange(0, PART)
    highest = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, COUNT, PART):
        is_in = start + at < COUNT
        part = tl.load(line + start + at, mask=is_in, other=-float("inf")).to(tl.float32)
        if HAS_IDS:
            own = tl.load(ids + start + at, mask=is_in, other=0)
        else:
            own = start + at
        score = noisy(part, temperature, word, own)
        score = tl.where(is_in & (part >= lowest), score, -float("inf"))
        best = tl.max(score, 0)
        if best > highest:
            highest = best
            token = start + tl.argmax(score, 0)
    if HAS_IDS:
        token = tl.load(ids + token)
    return token


@triton.jit
def word_of(seed, end):
    """Return a word for a token of a request at its position, as `sampler.keys` does."""
    word = mix((seed >> 32).to(tl.uint32) ^ mix(end.to(tl.uint32)))
    return mix(seed.to(tl.uint32) ^ word)


@triton.jit
def lowest_of(
    line, total, largest, temperature, top_k, top_p, min_p,
    COUNT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Return the lowest logit that is kept; *total* is the mass of all where top-k is 0."""
    least = tl.full([], 0, tl.uint32)  # of the words of logits that are kept
    if top_k > 0:
        least = least_of_count(line, top_k, COUNT, PART, BITS)
        total = mass(line, least, largest, temperature, COUNT, PART)
    if top_p < 1.0:
        least = least_of_mass(line, least, largest, temperature, top_p * total, COUNT, PART, BITS)
    lowest = float_of(least)
    if min_p > 0.0:
        lowest = tl.maximum(lowest, largest + temperature * tl.log(min_p))
    return lowest


@triton.jit(do_not_specialize_on_alignment=["which", "ends"])
def pick_kernel(
    logits, which, knobs, top_ks, seeds, ends, few, ids, out,
    COUNT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Draw one row's token."""
    number = tl.program_id(0)
    line = logits + number.to(tl.int64) * COUNT
    row = tl.load(which + number)
    temperature = tl.load(knobs + row * 3)
    largest, token, columns = likeliest(line, COUNT, PART)
    if temperature > 0.0:
        word = word_of(tl.load(seeds + row), tl.load(ends + number))
        top_p, min_p = tl.load(knobs + row * 3 + 1), tl.load(knobs + row * 3 + 2)
        top_k = tl.load(top_ks + row)
        top_k = tl.where(top_k < COUNT, top_k, 0)
        total = tl.full([], 0.0, tl.float32)
        bound = tl.full([], 0, tl.uint32)
        if (top_k > 0) & (top_k <= PART):
            bound = bound_of_count(columns, top_k, BITS)
        elif top_p < 1.0:  # what is less likely adds up to less than is left out
            total = mass(line, bound, largest, temperature, COUNT, PART)
            left = tl.maximum(1.0 - top_p, 1e-6) / COUNT
            bound = ordered(largest + temperature * tl.log(left))
        found = tl.full([], COUNT + FEW, tl.int32)  # too many
        few += number * FEW
        ids += number * (FEW + 1)
        if bound > 0:
            found = gather(line, bound, few, ids, COUNT, PART, FEW)
        if found <= FEW:
            lowest = lowest_of(
                few, total, largest, temperature, top_k, top_p, min_p, FEW, FEW, BITS
            )
            token = drawn(few, ids, lowest, temperature, word, FEW, FEW, True)
        else:
            lowest = lowest_of(
                line, total, largest, temperature, top_k, top_p, min_p, COUNT, PART, BITS
            )
            token = drawn(line, ids, lowest, temperature, word, COUNT, PART, False)
    tl.store(out + number, token.to(tl.int64))


def pick(logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(which)
    number, count = logits.shape
    pick_kernel[(number,)](
        logits, which, rows.knobs, rows.top_k, rows.seeds, ends,
        logits.new_empty(number, FEW, dtype=torch.float32),
        torch.zeros(number, FEW + 1, dtype=torch.int32, device=logits.device), out,
        COUNT=count, PART=min(16384, triton.next_power_of_2(count)),
        BITS=32 if logits.dtype == torch.float32 else 16, FEW=FEW,
        num_warps=16,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize_on_alignment=["which", "ends"])
def best_kernel(
    logits, which, knobs, seeds, ends, out, first, COUNT: tl.constexpr, PART: tl.constexpr
):
    """Find one row's best token of some."""
    number = tl.program_id(0)
    line = logits + number.to(tl.int64) * COUNT
    row = tl.load(which + number)
    temperature = tl.load(knobs + row * 3)
    at = tl.arange(0, PART)
    word = word_of(tl.load(seeds + row), tl.load(ends + number))
    highest = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for start in range(0, COUNT, PART):
        is_in = start + at < COUNT
        score = tl.load(line + start + at, mask=is_in, other=-float("inf")).to(tl.float32)
        if temperature > 0.0:
            score = noisy(score, temperature, word, first + start + at)
            score = tl.where(is_in, score, -float("inf"))
        best = tl.max(score, 0)
        if best > highest:
            highest = best
            token = start + tl.argmax(score, 0)
    tl.store(out + number * 2, highest.to(tl.float64))
    tl.store(out + number * 2 + 1, (first + token).to(tl.float64))


def best(
    logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor, first: int
) -> torch.Tensor:
    number, count = logits.shape
    out = torch.empty(number, 2, dtype=torch.float64, device=logits.device)
    best_kernel[(number,)](
        logits, which, rows.knobs, rows.seeds, ends, out, first,
        COUNT=count, PART=min(16384, triton.next_power_of_2(count)), num_warps=16,
    )  # fmt: skip
    return out
