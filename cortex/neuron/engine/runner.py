"""
Runs plans on the device: makes steps of them, samples, and brings the tokens back.

What steps need of a sequence for longer lives on the device, a row a sequence.  `launch` only
queues work; `Launched.tokens` waits for it.  A step in which all only decode, which most are, is
made on the device of the rows alone, and on a GPU it is one CUDA graph.
"""

from __future__ import annotations

from itertools import accumulate

import attrs
import torch

from cortex.neuron.engine import sampler
from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.graphs import Graphs
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.probe import Body
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.step import Step, tiles_of


@attrs.frozen(kw_only=True, eq=False)
class Launched:
    """
    A step that is on its way.

    Attributes:
        samplers: Sequences that get a token, with their epoch at the launch.
        picked: Their tokens.  # [samplers] int64, on the host once *arrived*
        logits: What they were picked from, where log probabilities are wanted.
    """

    samplers: tuple[tuple[Sequence, int], ...]
    picked: torch.Tensor | None = None
    arrived: torch.cuda.Event | None = None
    logits: torch.Tensor | None = None

    def tokens(self) -> list[int]:
        """Wait for the tokens."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [] if self.picked is None else self.picked.tolist()

    def logprobs(self, number: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Return a sampler's log probability, and the *count* likeliest tokens with theirs."""
        assert self.logits is not None and self.picked is not None  # noqa: S101, PT018
        row = self.logits[number : number + 1]
        return sampler.logprobs(row, self.picked[number : number + 1].to(row.device), count)[0]


class Runner:
    """Runs one model's steps over *rows* rows of *blocks* blocks each."""

    def __init__(
        self, body: Body, cache: Cache, *, rows: int, blocks: int, device: torch.device
    ) -> None:
        self._body = body
        self._cache = cache
        self._device = device
        self._kernels = kernels_for(device)
        self.rows = Rows(rows + 1, blocks, device)
        self._decoding: list[int] = []  # whose rows the tensor has
        self._which = torch.zeros(0, dtype=torch.int64, device=device)
        self._graphs = Graphs(self.decode, rows, device) if device.type == "cuda" else None

    def warm_up(self) -> None:
        """Make ready what the first requests would have to wait for."""
        if self._graphs is not None:
            self._graphs.capture()

    def launch(self, chunks: list[Chunk]) -> Launched:
        """Queue a step; nothing of *chunks* has been noted as launched yet."""
        if all(chunk.samples and chunk.count == 1 for chunk in chunks):
            samplers = [chunk.sequence for chunk in chunks]
            logits, picked, which = self._decode([sequence.row for sequence in samplers])
        else:
            chunks = sorted(chunks, key=lambda chunk: chunk.count != 1)
            sampling = [number for number, chunk in enumerate(chunks) if chunk.samples]
            samplers = [chunks[number].sequence for number in sampling]
            step, rows = self._step(chunks, sampling)
            logits = self._body.logits(step, self._cache)
            self.rows.lengths[rows] = step.lengths.long()
            if not sampling:
                return Launched(samplers=())
            which, picked = rows[sampling], None
        if any(sequence.is_adjusted for sequence in samplers):
            picked = self._kernels.pick(sampler.adjusted(logits, samplers), self.rows, which)
            self.rows.last[which] = picked
        elif picked is None:
            picked = self._kernels.pick(logits, self.rows, which)
            self.rows.last[which] = picked
        return self._launched(samplers, picked, logits)

    def _launched(
        self, samplers: list[Sequence], picked: torch.Tensor, logits: torch.Tensor
    ) -> Launched:
        arrived = None
        if picked.is_cuda:
            there = torch.empty(picked.shape, dtype=picked.dtype, pin_memory=True)
            picked = there.copy_(picked, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        wants = any(sequence.job.logprobs is not None for sequence in samplers)
        return Launched(
            samplers=tuple((sequence, sequence.epoch) for sequence in samplers),
            picked=picked,
            arrived=arrived,
            logits=logits.clone() if wants else None,
        )

    def _decode(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits and picked tokens, by row, and the rows: [rows] int64."""
        if rows != self._decoding:
            self._decoding = rows
            self._which = torch.tensor(rows).to(self._device, non_blocking=True)
            if self._graphs is not None:
                self._graphs.enter(self._which)
        if self._graphs is None:
            return *self.decode(self._which), self._which
        return *self._graphs.run(len(rows)), self._which

    def decode(self, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute the next token of each of *which* rows, from what the device has alone.

        Returns:
            Logits and picked tokens.  # [rows, vocabulary], [rows] int64
        """
        rows = self.rows
        positions = rows.lengths[which]
        table = rows.table[which]
        block = table.gather(1, (positions // BLOCK_TOKENS)[:, None])[:, 0].long()
        ends = positions + 1
        count = len(which)
        step = Step(
            ids=rows.last[which],
            positions=positions,
            slots=block * BLOCK_TOKENS + positions % BLOCK_TOKENS,
            lengths=ends.int(),
            table=table,
            wanted=None,
            decodes=count,
            counts=(1,) * count,
            ends=() if which.is_cuda else tuple(ends.tolist()),
        )
        logits = self._body.logits(step, self._cache)
        rows.lengths[which] = ends * (which > 0)  # padding stays where it is
        picked = self._kernels.pick(logits, rows, which)
        rows.last[which] = picked
        return logits, picked

    def _step(self, chunks: list[Chunk], sampling: list[int]) -> tuple[Step, torch.Tensor]:
        """Return the step, and the rows of its sequences, [chunks] int64."""
        ids: list[int] = []
        positions: list[int] = []
        for chunk in chunks:
            known = chunk.sequence.tokens[chunk.start : chunk.end]
            ids += known
            ids += [-1] * (chunk.count - len(known))  # only the device knows it
            positions += range(chunk.start, chunk.end)
        counts = tuple(chunk.count for chunk in chunks)
        starts = [0, *accumulate(counts)]
        owners = [number for number, chunk in enumerate(chunks) for _ in range(chunk.count)]
        ends = tuple(chunk.end for chunk in chunks)

        def told(*values: object) -> torch.Tensor:
            return torch.tensor(values).to(self._device, non_blocking=True)

        rows, lengths = told([chunk.sequence.row for chunk in chunks], ends)
        said, position, owner = told(ids, positions, owners)  # [tokens] int64 each
        table = self.rows.table[rows]
        blocks = table[owner, position // BLOCK_TOKENS].long()
        decodes = counts.count(1)
        step = Step(
            ids=torch.where(said < 0, self.rows.last[rows[owner]], said),
            positions=position,
            slots=blocks * BLOCK_TOKENS + position % BLOCK_TOKENS,
            lengths=lengths.int(),
            table=table,
            wanted=told(*[starts[n + 1] - 1 for n in sampling]).long(),
            decodes=decodes,
            counts=counts,
            ends=ends,
            tiles=tiles_of(counts, ends, self._cache.tile_tokens, self._device),
            tile_tokens=self._cache.tile_tokens,
        )
        return step, rows
