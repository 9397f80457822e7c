"""
Proof that a body computes what transformers computes, on a few tokens of no meaning.

Two sequences are run through a body in pieces, chunks of prompts and decodes mixed, and every
logit is compared with that of the model's own forward over each of them whole.  Of a model that
sees, one of them has a picture, which two chunks share.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, Protocol

import attrs
import torch

from cortex.neuron.engine.batch import tiled
from cortex.neuron.engine.blocks import BLOCK_TOKENS, blocks_for
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.layers import decoder_of
from cortex.neuron.engine.pictures import Picture
from cortex.neuron.engine.places import Places, places_of
from cortex.neuron.engine.step import Step
from cortex.neuron.engine.tower import Tower

LENGTHS = (37, 21)
PLANS = ((20, 9), (1, 11), (15, 1), (1, 0))  # tokens of each sequence, a step a row
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
BLOCKS = 1 + sum(map(blocks_for, LENGTHS))
SLOTS = 1 + len(LENGTHS)  # of states; sequence n has row n + 1
Piece = tuple[int, int, int, int]  # of which sequence, from where to where, and its first row


PICTURE = (13, 3, 4)  # where it is in the first sequence, and how many tokens high and wide


@attrs.frozen(kw_only=True, eq=False)
class Exhibit:
    """A picture of noise in the first sequence, and the tower that looks at it."""

    tower: Tower
    places: Places

    @property
    def picture(self) -> Picture:
        return self.places.spans[0][2]

    def told(self, module: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what transformers wants of it besides ids."""
        patches, grid = self.tower.patches(self.picture)
        kinds = (ids == self.tower.sight.token).int()[None]
        index, _ = module.model.get_rope_index(
            input_ids=ids[None], mm_token_type_ids=kinds, image_grid_thw=grid
        )
        return {"pixel_values": patches, "image_grid_thw": grid, "position_ids": index}


class Body(Protocol):
    """What runs steps."""

    name: str

    def logits(self, step: Step, cache: Cache) -> torch.Tensor: ...
    def part(self, step: Step, cache: Cache) -> torch.Tensor:
        """Return the logits of this rank's tokens, if several ranks run it."""


def sequences(vocabulary: int, device: torch.device) -> list[torch.Tensor]:
    """Return the ids that are tried: [tokens] int64 each."""
    made = torch.Generator().manual_seed(0)
    tried = [torch.randint(0, vocabulary, (length,), generator=made) for length in LENGTHS]
    return [ids.to(device) for ids in tried]


def exhibit(tried: list[torch.Tensor], tower: Tower) -> Exhibit:
    """Put a picture into the first of the sequences that are tried."""
    start, high, wide = PICTURE
    side = tower.sight.patch * tower.sight.merge
    size = (high * side, wide * side, 3)
    made = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0))
    rgb = made.to(torch.uint8).numpy().tobytes()
    picture = Picture(at=start, height=size[0], width=size[1], rgb=rgb, digest=b"exhibit")
    others = tower.sight.token + 1 if tower.sight.token == 0 else tower.sight.token - 1
    tried[0][tried[0] == tower.sight.token] = others
    tried[0][start : start + high * wide] = tower.sight.token
    job = Generate(id="", model="", prompt=tried[0].tolist(), max_tokens=1, pictures=[picture])
    places = places_of(job, tower.sight)
    assert places is not None  # noqa: S101 - there is a picture
    return Exhibit(tower=tower, places=places)


def truth(
    module: Any, tried: list[torch.Tensor], shown: Exhibit | None = None
) -> list[torch.Tensor]:
    """Return what transformers computes: [tokens, vocabulary] each."""
    more = [
        {} if shown is None or number else shown.told(module, ids)
        for number, ids in enumerate(tried)
    ]
    return [
        module(input_ids=ids[None], use_cache=False, **told).logits[0]
        for ids, told in zip(tried, more, strict=True)
    ]


def noise(
    module: Any,
    tried: list[torch.Tensor],
    wanted: list[torch.Tensor],
    shown: Exhibit | None = None,
) -> float:
    """
    Return how far transformers' computation is from itself, done another way.

    Deep models in 16 bits round their way some hundredths apart.
    """
    decoder_of(module).set_attn_implementation("eager")
    return distance(truth(module, tried, shown), wanted)


def distance(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Return how far logits are apart at most, relative to their size."""
    pairs = zip(got, wanted, strict=True)
    return max(float((a - b).float().norm() / b.float().norm()) for a, b in pairs)


def error(
    body: Body,
    cache: Cache,
    tried: list[torch.Tensor],
    wanted: list[torch.Tensor],
    shown: Exhibit | None = None,
) -> float:
    """Return how far *body* is from what is *wanted*, relative to its size; overwrites *cache*."""
    got = [torch.empty_like(logits) for logits in wanted]
    cache.states.copy((0, number + 1) for number in range(len(tried)))
    done = [0] * len(tried)
    for plan in PLANS:
        step, pieces = _step(tried, done, plan, cache.tile_tokens)
        if shown is not None:
            step = _seeing(step, pieces, shown)
        logits = body.logits(step, cache)
        for number, start, end, row in pieces:
            got[number][start:end] = logits[row : row + end - start]
            done[number] = end
    return distance(got, wanted)


def prove(
    make: Callable[[], Body],
    cache: Cache,
    tried: list[torch.Tensor],
    wanted: list[torch.Tensor],
    noise: float = 0.0,
    *,
    shown: Exhibit | None = None,
) -> tuple[Body | None, str]:
    """Return the body if it is right, else None; and how far off it is, or what it raised."""
    try:
        body = make()
        off = error(body, cache, tried, wanted, shown)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # noqa: BLE001 - whatever it is: this body is not for this model
        return None, f"{type(problem).__name__}: {problem}"
    limit = max(TOLERANCE.get(wanted[0].dtype, 3e-2), 2 * noise)
    return (body if off < limit else None), f"its logits are off by {off:.1e}"


def _seeing(step: Step, pieces: list[Piece], shown: Exhibit) -> Step:
    """Return a step, of these pieces of sequences, with the picture in it."""
    told = [(None if number else shown.places, start, end) for number, start, end, _ in pieces]
    places, features = shown.tower.show(told)
    return attrs.evolve(step, places=places, shown=features)


def _step(
    tried: list[torch.Tensor], done: list[int], plan: tuple[int, ...], tile_tokens: int
) -> tuple[Step, list[Piece]]:
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
        lengths=torch.tensor(ends, device=device),
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
