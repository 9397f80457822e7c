"""
Runs plans on the device: makes steps of them, samples, and brings the tokens back.

What a step needs that lives longer than it is kept on the device, a row a sequence: the last token
and the blocks.  `launch` only queues work; `Launched.tokens` waits for it.
"""

from __future__ import annotations

from itertools import accumulate

import attrs
import torch

from cortex.neuron.engine import sampler
from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.probe import Body
from cortex.neuron.engine.sampler import Draw
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.step import Step


@attrs.frozen(kw_only=True, eq=False)
class Launched:
    """
    A step that is on its way.

    Attributes:
        samplers: Sequences that get a token, with their epoch at the launch.
        picked: Their tokens.  # [samplers] int64, on the device
        logits: What they were picked from, where log probabilities are wanted.
    """

    samplers: tuple[tuple[Sequence, int], ...]
    picked: torch.Tensor | None
    logits: torch.Tensor | None

    def tokens(self) -> list[int]:
        """Wait for the tokens."""
        return [] if self.picked is None else self.picked.tolist()

    def logprobs(self, number: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Return a sampler's log probability, and the *count* likeliest tokens with theirs."""
        assert self.logits is not None and self.picked is not None  # noqa: S101, PT018
        rows = slice(number, number + 1)
        return sampler.logprobs(self.logits[rows], self.picked[rows], count)[0]


class Runner:
    """Runs one model's steps over *rows* rows, row 0 being padding's."""

    def __init__(self, body: Body, *, rows: int, blocks: int, device: torch.device) -> None:
        self._body = body
        self._device = device
        self._last = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self._table = torch.zeros(rows + 1, blocks, dtype=torch.int32, device=device)

    def move(self, moved: dict[tuple[int, int], int]) -> None:
        """Take in which blocks came into the rows' tables; empties *moved*."""
        if moved:
            rows, places = zip(*moved, strict=True)
            index = torch.tensor([rows, places], device=self._device)
            blocks = torch.tensor(list(moved.values()), dtype=torch.int32, device=self._device)
            self._table[index[0], index[1]] = blocks
            moved.clear()

    def launch(self, chunks: list[Chunk]) -> Launched:
        """Queue a step; nothing of *chunks* has been noted as launched yet."""
        chunks = sorted(chunks, key=lambda chunk: chunk.count != 1)
        sampling = [number for number, chunk in enumerate(chunks) if chunk.samples]
        step, rows = self._step(chunks, sampling)
        logits = self._body.logits(step)
        if not sampling:
            return Launched(samplers=(), picked=None, logits=None)
        samplers = [chunks[number].sequence for number in sampling]
        picked = sampler.sample(logits, [draw(sequence) for sequence in samplers])
        self._last[rows[sampling]] = picked
        wants = any(sequence.job.logprobs is not None for sequence in samplers)
        return Launched(
            samplers=tuple((sequence, sequence.epoch) for sequence in samplers),
            picked=picked,
            logits=logits if wants else None,
        )

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
        device = self._device
        rows = torch.tensor([chunk.sequence.row for chunk in chunks], device=device)
        told = torch.tensor([ids, positions, owners], device=device)  # [3, tokens] int64
        table = self._table[rows]
        owner, position = told[2], told[1]
        blocks = table[owner, position // BLOCK_TOKENS].long()
        step = Step(
            ids=torch.where(told[0] < 0, self._last[rows[owner]], told[0]),
            positions=position,
            slots=blocks * BLOCK_TOKENS + position % BLOCK_TOKENS,
            lengths=torch.tensor([c.end for c in chunks], dtype=torch.int32, device=device),
            table=table,
            wanted=torch.tensor(
                [starts[n + 1] - 1 for n in sampling], dtype=torch.int64, device=device
            ),
            decodes=counts.count(1),
            counts=counts,
            ends=tuple(chunk.end for chunk in chunks),
        )
        return step, rows


def draw(sequence: Sequence) -> Draw:
    """Return how a sequence's next token is to be drawn."""
    return Draw(
        job=sequence.job,
        seed=sequence.seed,
        position=sequence.total,
        answer=sequence.tokens[sequence.prompt_tokens :] if sequence.is_watched else (),
        allowed=sequence.allowed,
    )
