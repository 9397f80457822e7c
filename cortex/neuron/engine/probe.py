"""
Proof that a body computes what transformers computes, on a few tokens of no meaning.

Two sequences are run through a body in pieces, chunks of prompts and decodes mixed, and every
logit is compared with that of the model's own forward over each of them whole.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Protocol

import torch

from cortex.neuron.engine.batch import tiled
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.step import Step

LENGTHS = (37, 21)
PLANS = ((20, 9), (1, 11), (15, 1), (1, 0))  # tokens of each sequence, a step a row
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
BLOCKS = 1 + sum(map(blocks_for, LENGTHS))
SLOTS = 1 + len(LENGTHS)  # of states; sequence n has row n + 1


class Body(Protocol):
    """What runs steps."""

    name: str

    def logits(self, step: Step, cache: Cache) -> torch.Tensor: ...


def sequences(vocabulary: int, device: torch.device) -> list[torch.Tensor]:
    """Return the ids that are tried: [tokens] int64 each."""
    made = torch.Generator().manual_seed(0)
    tried = [torch.randint(0, vocabulary, (length,), generator=made) for length in LENGTHS]
    return [ids.to(device) for ids in tried]


def truth(module: Any, tried: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what transformers computes: [tokens, vocabulary] each."""
    return [module(input_ids=ids[None], use_cache=False).logits[0] for ids in tried]


def noise(module: Any, tried: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """
    Return how far transformers' computation is from itself, done another way.

    Deep models in 16 bits round their way some hundredths apart.
    """
    module.set_attn_implementation("eager")
    return distance(truth(module, tried), wanted)


def distance(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return how far logits are apart at most, relative to their size."""
    pairs = zip(got, wanted, strict=True)
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)


def error(body: Body, cache: Cache, tried: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return how far *body* is from what is *wanted*, relative to its size; overwrites *cache*."""
    got = [torch.empty_like(logits) for logits in wanted]
    cache.states.copy((0, number + 1) for number in range(len(tried)))
    done = [0] * len(tried)
    for plan in PLANS:
        step, places = _step(tried, done, plan, cache.tile_tokens)
        logits = body.logits(step, cache)
        for number, start, end, row in places:
            got[number][start:end] = logits[row : row + end - start]
            done[number] = end
    return distance(got, wanted)


def prove(
    make: Callable[[], Body],
    cache: Cache,
    tried: list[torch.Tensor],
    wanted: list[torch.Tensor],
    noise: float = 0.0,
) -> tuple[Body | None, str]:
    """Return the body if it is right, else None; and how far off it is, or what it raised."""
    try:
        body = make()
        off = error(body, cache, tried, wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # noqa: BLE001 - whatever it is: this body is not for this model
        return None, f"{type(problem).__name__}: {problem}"
    limit = max(TOLERANCE.get(wanted[0].dtype, 3e-2), 2 * noise)
    return (body if off < limit else None), f"its logits are off by {off:.1e}"


def _step(
    tried: list[torch.Tensor], done: list[int], plan: tuple[int, ...], tile_tokens: int
) -> tuple[Step, list[tuple[int, int, int, int]]]:
    """Return the next step, and which tokens of which sequence its rows are."""
    device = tried[0].device
    order = sorted((n for n, count in enumerate(plan) if count), key=lambda n: plan[n] != 1)
    counts = tuple(plan[n] for n in order)
    ends = tuple(done[n] + plan[n] for n in order)
    firsts = [1 + sum(map(blocks_for, LENGTHS[:n])) for n in range(len(tried))]
    width = blocks_for(max(LENGTHS))
    positions = torch.cat([torch.arange(done[n], done[n] + plan[n]) for n in order])
    slots = [torch.arange(done[n], done[n] + plan[n]) + firsts[n] * BLOCK_TOKENS for n in order]
    starts = [0, *accumulate(counts)]
    tiles: list[int] = []
    for start, number in zip(starts, order, strict=False):
        if plan[number] > 1:
            tiles += tiled(number + 1, start, done[number], plan[number], tile_tokens)
    step = Step(
        ids=torch.cat([tried[n][done[n] : done[n] + plan[n]] for n in order]),
        positions=positions.to(device),
        slots=torch.cat(slots).to(device),
        rows=torch.tensor(order, device=device) + 1,
        lengths=torch.tensor(ends, dtype=torch.int32, device=device),
        table=torch.stack([torch.arange(f, f + width) for f in (0, *firsts)]).int().to(device),
        lasts=torch.tensor(starts[1:], device=device) - 1,
        wanted=torch.arange(sum(counts), device=device),
        decodes=counts.count(1),
        counts=counts,
        ends=ends,
        tiles=torch.tensor(tiles, device=device).view(-1, 4) if tiles else None,
        tile_tokens=tile_tokens,
    )
    return step, [
        (n, done[n], done[n] + plan[n], row) for n, row in zip(order, starts, strict=False)
    ]
