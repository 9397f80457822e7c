"""
A sum over the ranks of a group, each with a GPU, in one kernel.

Every rank writes its part to the rooms of all others, in words of eight bytes: four of the part and
the number of the turn.  Such a word arrives as a whole, so who finds one of this turn has what was
sent, and needs no flag besides; NCCL has it as its low-latency protocol.  Turns take halves of a
room by turns: a rank that is a turn ahead writes to the other half, and none is two ahead, since it
needs what all say in the one between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WORD = 4  # bytes
SPAN = 128  # words that have turns of their own
WARPS = SPAN // 32  # a thread has one word, so that a sum may be written where its part was
PROGRAMS = 512  # at most; the GPU has room for all of them at once


@triton.jit
def lower(words, LIKE: tl.constexpr, IS_HALF: tl.constexpr):
    """Return the numbers that are in the lower halves of words, or take whole ones."""
    if IS_HALF:
        numbers = (words & 0xFFFF).to(tl.int16).to(LIKE, bitcast=True).to(tl.float32)
    else:
        numbers = words.to(LIKE, bitcast=True)
    return numbers


@triton.jit
def upper(words, LIKE: tl.constexpr, IS_HALF: tl.constexpr):
    """Return the numbers in the upper halves; of whole ones something finite to no purpose."""
    if IS_HALF:
        numbers = (words >> 16).to(tl.int16).to(LIKE, bitcast=True).to(tl.float32)
    else:
        numbers = words.to(tl.float32)
    return numbers


@triton.jit
def packed(lowers, uppers, LIKE: tl.constexpr, IS_HALF: tl.constexpr):
    """Return words of such numbers."""
    if IS_HALF:
        words = lowers.to(LIKE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        words |= uppers.to(LIKE).to(tl.int16, bitcast=True).to(tl.int32) << 16
    else:
        words = lowers.to(tl.int32, bitcast=True)
    return words


@triton.jit
def arrived(there, is_in, turn, SPAN: tl.constexpr):
    """Wait for the words of a turn; return what is in them."""
    none = tl.zeros([SPAN], tl.int64) + (turn.to(tl.int64) << 32)
    boxed = tl.load(there, mask=is_in, other=none, volatile=True)
    while tl.max(((boxed >> 32).to(tl.int32) != turn).to(tl.int32), 0) > 0:
        boxed = tl.load(there, mask=is_in, other=none, volatile=True)
    return boxed.to(tl.int32)


@triton.jit
def allreduce_kernel(
    part, out, rooms, turns, factor, words, LIKE: tl.constexpr, RANK: tl.constexpr,
    RANKS: tl.constexpr, ROOM: tl.constexpr, SPAN: tl.constexpr, IS_HALF: tl.constexpr,
    IS_ADDED: tl.constexpr,
):  # fmt: skip
    """
    Send spans of this rank's part, then wait for those of the others and add them up.

    All are sent before the first is waited for, whichever programs run.  Sums are in the order of
    ranks, so that they have the same bits everywhere.
    """
    spans = tl.cdiv(words, SPAN)
    for span in range(tl.program_id(0), spans, tl.num_programs(0)):
        at = span * SPAN + tl.arange(0, SPAN)
        turn = tl.load(turns + span) + 1
        word = tl.load(part + at, mask=at < words, other=0)
        boxed = (turn.to(tl.int64) << 32) | (word.to(tl.int64) & 0xFFFFFFFF)
        to = ((turn & 1) * RANKS + RANK) * ROOM + at
        for rank in tl.static_range(RANKS):
            if rank != RANK:
                room = tl.load(rooms + rank).to(tl.pointer_type(tl.int64))
                tl.store(room + to, boxed, mask=at < words)
    own = tl.load(rooms + RANK).to(tl.pointer_type(tl.int64))
    for span in range(tl.program_id(0), spans, tl.num_programs(0)):
        at = span * SPAN + tl.arange(0, SPAN)
        turn = tl.load(turns + span) + 1
        if IS_ADDED:
            before = tl.load(out + at, mask=at < words, other=0)
        lowers = tl.zeros([SPAN], tl.float32)
        uppers = tl.zeros([SPAN], tl.float32)
        for rank in tl.static_range(RANKS):
            if rank == RANK:
                word = tl.load(part + at, mask=at < words, other=0)
            else:
                there = own + ((turn & 1) * RANKS + rank) * ROOM + at
                word = arrived(there, at < words, turn, SPAN)
            lowers += lower(word, LIKE, IS_HALF)
            uppers += upper(word, LIKE, IS_HALF)
        if IS_ADDED:
            lowers = lower(before, LIKE, IS_HALF) + factor * lowers
            uppers = upper(before, LIKE, IS_HALF) + factor * uppers
        tl.store(out + at, packed(lowers, uppers, LIKE, IS_HALF), mask=at < words)
        tl.store(turns + span, turn)


LIKE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def allreduce(
    part: torch.Tensor,
    out: torch.Tensor,
    rooms: torch.Tensor,
    turns: torch.Tensor,
    rank: int,
    factor: float | None = None,
) -> None:
    """
    Write the sum of the ranks' parts, or add it *factor* times to what is there.

    Args:
        part: This rank's, contiguous, of whole words of four bytes.
        out: As large, contiguous.
        rooms: Where those of the ranks are, in this process; each has twice as many words as all
            ranks' largest parts.  # [ranks] int64
        turns: How often each span was added up, from 0.  # [spans] int32
        rank: This one.
        factor: None: *out* is overwritten.
    """
    words = part.nbytes // WORD
    spans = triton.cdiv(words, SPAN)
    allreduce_kernel[(min(spans, PROGRAMS),)](
        part.view(-1).view(torch.int32), out.view(-1).view(torch.int32), rooms, turns,
        1.0 if factor is None else factor, words,
        LIKE=LIKE[part.dtype], RANK=rank, RANKS=len(rooms), ROOM=len(turns) * SPAN, SPAN=SPAN,
        IS_HALF=part.itemsize < WORD, IS_ADDED=factor is not None, num_warps=WARPS,
    )  # fmt: skip
