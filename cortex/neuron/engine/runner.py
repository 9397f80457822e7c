"""
Runs plans on the device: makes steps of them, samples, and brings the tokens back.

What steps need of a sequence for longer lives on the device, a row a sequence.  `launch` only
queues work; `Launched.tokens` waits for it.  A step in which all only decode, which most are, is
made on the device of the rows alone; any other comes as one tensor.  On a GPU a step is a CUDA
graph, of one of some sizes.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch

from cortex.neuron.engine import sampler
from cortex.neuron.engine.batch import Batch, Shape, pack, waves_of
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.foresight import Foresight, tipped, trails
from cortex.neuron.engine.graphs import Graphs
from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.launched import Launched, Pick, Tip
from cortex.neuron.engine.mtp import Mtp
from cortex.neuron.engine.places import Places, places_of
from cortex.neuron.engine.plan import Layout
from cortex.neuron.engine.probe import Body
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence as Running
from cortex.neuron.engine.shards import Tokens
from cortex.neuron.engine.step import Step
from cortex.neuron.engine.tallies import Tallies
from cortex.neuron.engine.tower import Tower

SIZES = (1, 2, 4, 8, *range(16, 65, 8), *range(80, 257, 16))


class Drawn(NamedTuple):
    """
    What a step gave, by what was picked.

    Attributes:
        logits: # [sequences, vocabulary], or this rank's tokens of it
        picked: # [sequences] int64
        which: Their rows.  # [sequences] int64
        ends: Tokens before each, in its sequence; None is `Rows.lengths`.  # [sequences] int64
        guesses: Of the model's own layer; see `Foresight`.  # [tips, count] int64
    """

    logits: torch.Tensor
    picked: torch.Tensor
    which: torch.Tensor
    ends: torch.Tensor | None = None
    guesses: torch.Tensor | None = None

    def at(self, places: torch.Tensor) -> Drawn:
        """Return what it gave to some sequences; guesses stay as they are."""
        ends = None if self.ends is None else self.ends[places]
        some = self.logits[places], self.picked[places], self.which[places]
        return Drawn(*some, ends, self.guesses)


class Runner:
    """
    Runs one model's steps over *rows* rows of *blocks* blocks each.

    Where it is a share of one that several ranks run, *tokens* tells this rank's.
    """

    def __init__(
        self,
        body: Body,
        cache: Cache,
        *,
        rows: int,
        blocks: int,
        device: torch.device,
        tower: Tower | None = None,
        tokens: Tokens | None = None,
        mtp: Mtp | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self._body = body
        self._tower = tower
        self._cache = cache
        self._device = device
        self._kernels = kernels_for(device)
        self._tokens = tokens
        self._tallies = Tallies(device)
        self.rows = Rows(rows + 1, blocks, device)
        self._foresight = None if mtp is None else Foresight(mtp, cache, self.rows, draft_tokens)
        self._sizes = sorted({*(size for size in SIZES if size < rows), rows})
        self._decoding: list[int] = []  # whose rows are in *which*
        self._which = torch.zeros(rows, dtype=torch.int64, device=device)
        self._batches: dict[Shape, Batch] = {}  # that graphs read
        self._graphs = Graphs() if device.type == "cuda" else None

    def warm_up(self) -> None:
        """Make ready what the first requests would have to wait for, on rows of padding."""
        if self._graphs is None:
            return
        for size in (*reversed(self._sizes), *reversed(self._sizes)):
            self._graphs.run((size, False), partial(self.decode, self._which[:size]))
        for count in (1, 2):
            shape = Shape(
                *(32 * count, 1, 1, self._cache.tile_tokens, ()),
                has_trails=self._foresight is not None,
            ).padded()
            assert shape is not None  # noqa: S101 - there is one of so few
            self._mixed(Layout(shape=shape.numbers, packed=[0] * sum(shape.fields)))

    def places(self, job: Generate) -> Places | None:
        """Return where the tokens of a prompt are, if there are pictures in it."""
        return places_of(job, None if self._tower is None else self._tower.sight)

    def look(self, chunk: Chunk) -> None:
        """Look at the pictures in a chunk, so that a step of it has no more to do so."""
        if self._tower is not None and chunk.sequence.places is not None:
            for _, _, picture in chunk.sequence.places.inside(chunk.start, chunk.end):
                self._tower.features(picture)

    def change(
        self,
        moved: dict[tuple[int, int], int],
        entered: dict[int, Running],
        copies: list[tuple[int, int]],
    ) -> None:
        """Take in what changed before a step; see `Scheduler`.  Empties all of them."""
        self.rows.move(moved)
        self.rows.enter(entered)
        self._cache.states.copy(copies)
        copies.clear()

    def launch(self, chunks: list[Chunk]) -> Launched:
        """Queue a step; nothing of *chunks* has been noted as launched yet."""
        layout, picks, tips, shown = self._laid_out(chunks)
        samplers = [pick.sequence for pick in picks]
        drawn = self.run(layout, samplers, shown)
        logits, picked, which, ends, _ = drawn
        if not picks:
            return Launched()
        if any(sequence.is_adjusted for sequence in samplers):
            tallies = self._tallies.of(samplers, logits.shape[1])
            scores = sampler.adjusted(logits, samplers, tallies)
            ends = self.rows.lengths[which] if ends is None else ends
            picked = self.chosen(self._kernels.pick(scores, self.rows, which, ends))
            self._tallies.add(samplers, picked)
            self.rows.last[which] = picked
        wants = any(sequence.job.logprobs is not None for sequence in samplers)
        guesses = None if drawn.guesses is None else _fetched(drawn.guesses)
        return Launched(
            picks=picks,
            drafted=[(chunk, chunk.sequence.epoch) for chunk in chunks if chunk.draft],
            tips=tips,
            picked=_fetched(picked),
            guesses=guesses,
            arrived=_mark() if picked.is_cuda else None,
            logits=logits.clone() if wants else None,
        )

    def _laid_out(
        self, chunks: list[Chunk]
    ) -> tuple[Layout, list[Pick], list[Tip], dict[str, Any] | None]:
        """Return a step of *chunks*, what is picked, who is guessed at, and what is to be seen."""
        is_pictured = any(chunk.is_pictured for chunk in chunks)
        foresees = self._foresight is not None and any(c.sequence.guesser for c in chunks)
        if not (is_pictured or foresees) and all(chunk.is_decode for chunk in chunks):
            rows = [chunk.sequence.row for chunk in chunks]
            return Layout(rows=rows), [Pick.of(chunk) for chunk in chunks], [], None
        has_trails = self._foresight is not None
        waves, others = waves_of(chunks, is_waved=has_trails or bool(self._cache.states.layers))
        shape = filled = Shape.of(waves, others, self._cache.tile_tokens, has_trails=has_trails)
        if self._graphs is not None and not is_pictured:
            shape = filled.padded() or filled
        pieces = [*chain(*waves), *others]
        places = [
            start + number
            for (start, _), wave in zip(shape.spans, waves, strict=False)
            for number in range(len(wave))
        ]
        places += range(shape.decodes, shape.decodes + len(others))
        picks = [
            (place, piece) for place, piece in zip(places, pieces, strict=True) if piece.samples
        ]
        is_all = len(picks) == shape.decodes + shape.chunks
        layout = Layout(
            shape=shape.numbers,
            packed=pack(waves, others, shape)
            + (trails(waves, others, shape) if has_trails else []),
            counts=tuple(piece.count for piece in pieces),
            ends=tuple(piece.end for piece in pieces),
            is_padded=shape is not filled,
            places=None if is_all else [place for place, _ in picks],
        )
        tips = [*tipped(waves, others, shape)] if has_trails else []
        shown = self._shown(pieces) if is_pictured else None
        return layout, [Pick.of(piece) for _, piece in picks], tips, shown

    def run(
        self,
        layout: Layout,
        samplers: list[Running],  # noqa: ARG002
        shown: dict[str, Any] | None = None,
    ) -> Drawn:
        """
        Queue a step.

        Args:
            layout: What is in it.
            samplers: Those that get a token, where that is known.
            shown: What a `Step` has to know of pictures, if there are any.
        """
        if layout.rows:
            return self._decode(layout)
        drawn = self._mixed(layout, shown)
        if layout.places is None:
            return drawn
        at = torch.tensor(layout.places, dtype=torch.int64, device=self._device)
        return drawn.at(at)

    def chosen(self, picked: torch.Tensor) -> torch.Tensor:
        """Return tokens that were picked from logits adjusted here."""
        return picked

    def _decode(self, layout: Layout) -> Drawn:
        rows, is_whole = [*layout.rows], layout.is_whole
        count = len(rows)
        if rows != self._decoding:
            told = rows + [0] * (len(self._which) - count)
            self._which.copy_(torch.tensor(told), non_blocking=True)
            self._decoding = rows
        if self._graphs is None:
            return Drawn(*self.decode(self._which[:count], is_whole), self._which[:count])
        size = self._sizes[bisect_left(self._sizes, count)]
        run = partial(self.decode, self._which[:size], is_whole)
        logits, picked = self._graphs.run((size, is_whole), run)
        return Drawn(logits[:count], picked[:count], self._which[:count])

    def decode(
        self, which: torch.Tensor, is_whole: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute the next token of each of *which* rows, from what the device has alone.

        Returns:
            Logits and picked tokens.  # [rows, vocabulary], [rows] int64
        """
        rows, count = self.rows, len(which)
        ids, positions, slots, ends = self._kernels.advance(rows, which)
        step = Step(
            ids=ids,
            positions=positions,
            slots=slots,
            places=self._places(which, positions),
            rows=which,
            lengths=ends,
            table=rows.table,
            decodes=count,
            counts=() if which.is_cuda else (1,) * count,
            ends=() if which.is_cuda else tuple(ends.tolist()),
        )
        logits = self._logits(step, is_whole)
        picked = self._picked(logits, which, ends, is_whole)
        rows.last[which] = picked
        return logits, picked

    def _mixed(self, layout: Layout, shown: dict[str, Any] | None = None) -> Drawn:
        shape, told = Shape.told(layout.shape), torch.tensor(layout.packed)
        if not layout.is_padded or self._graphs is None:
            batch = Batch(told.to(self._device, non_blocking=True), shape)
            known = {"counts": layout.counts, "ends": layout.ends, **(shown or {})}
            logits, picked, *more = self.mixed(batch, layout.is_whole, **known)
            return Drawn(logits, picked, batch.rows, batch.lengths, *more)
        if shape not in self._batches:
            self._batches[shape] = Batch(torch.empty_like(told, device=self._device), shape)
        batch = self._batches[shape]
        batch.told.copy_(told, non_blocking=True)
        run = partial(self.mixed, batch, layout.is_whole)
        logits, picked, *more = self._graphs.run((shape, layout.is_whole), run)
        return Drawn(logits, picked, batch.rows, batch.lengths, *more)

    def mixed(self, batch: Batch, is_whole: bool = False, **known: Any) -> tuple[torch.Tensor, ...]:
        """
        Compute a batch; every sequence gets a token, whether it has use for it or not.

        Args:
            batch: What to compute.
            is_whole: Whether tokens are drawn from whole rows of logits; see `Layout`.
            known: Attributes of `Step` that the host knows.

        Returns:
            Logits and picked tokens, [sequences, vocabulary], [sequences] int64; and guesses, where
            the model's own layer makes some.  # [tips, count] int64
        """
        rows = self.rows
        step = Step(
            ids=torch.where(batch.said < 0, rows.last[batch.owners], batch.said),
            positions=batch.positions,
            slots=self.rows.slots(batch.owners, batch.positions),
            rows=batch.rows,
            lengths=batch.lengths,
            table=rows.table,
            decodes=batch.shape.decodes,
            waves=batch.shape.spans,
            lasts=batch.lasts,
            wanted=batch.lasts,
            tiles=batch.tiles if len(batch.tiles) else None,
            tile_tokens=batch.shape.tile_tokens,
            **{"places": self._places(batch.owners, batch.positions), **known},
        )
        if self._foresight is None:
            logits = self._logits(step, is_whole)
        else:
            logits, states = self._foresight.run(step)
        rows.lengths[batch.rows] = batch.lengths
        picked = self._picked(logits, batch.rows, batch.lengths, is_whole)
        rows.last[batch.keepers] = picked
        if self._foresight is None:
            return logits, picked
        return logits, picked, self._foresight.guesses(batch, step, states, picked)

    def _shown(self, pieces: list[Chunk]) -> dict[str, Any]:
        """Return what a step of *pieces* has to know of pictures in it."""
        assert self._tower is not None  # noqa: S101 - else nobody's tokens have places
        places, shown = self._tower.show([(p.sequence.places, p.start, p.end) for p in pieces])
        return {"places": places, "shown": shown}

    def _places(self, owners: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | None:
        """Return what tokens behind all pictures are turned by: [tokens] int64."""
        return None if self._tower is None else positions + self.rows.offsets[owners]

    def _logits(self, step: Step, is_whole: bool) -> torch.Tensor:
        """Return logits, of this rank's tokens alone where no other is asked about them."""
        if self._tokens is None:
            return self._body.logits(step, self._cache)
        part: torch.Tensor = self._body.part(step, self._cache)
        return self._tokens.whole(part) if is_whole else part

    def _picked(
        self, logits: torch.Tensor, which: torch.Tensor, ends: torch.Tensor, is_whole: bool
    ) -> torch.Tensor:
        if self._tokens is None or is_whole:
            return self._kernels.pick(logits, self.rows, which, ends)
        first = self._tokens.first
        return self._tokens.picked(self._kernels.best(logits, self.rows, which, ends, first))


def _fetched(tensor: torch.Tensor) -> torch.Tensor:
    """Return it on the host, once what is queued now is through."""
    if not tensor.is_cuda:
        return tensor
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True)


def _mark() -> torch.cuda.Event:
    """Return what tells that what is queued now is through."""
    mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
    mark.record()
    return mark
