"""A step that is on its way, and what is picked in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch

from cortex.neuron.engine import sampler
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence as Running

Tip = tuple[int, Running]


class Pick(NamedTuple):
    """
    A token that is picked for a sequence.

    Attributes:
        epoch: Of the sequence, at the launch.
        place: Of the token, in the sequence.
        follows: The guess it was picked after, which has to come true; None is no guess.
    """

    sequence: Running
    epoch: int
    place: int
    follows: int | None

    @classmethod
    def of(cls, chunk: Chunk) -> Pick:
        return cls(chunk.sequence, chunk.sequence.epoch, chunk.end, chunk.follows)

    @property
    def is_good(self) -> bool:
        """Whether it is what comes next, now that all before it is known."""
        sequence = self.sequence
        if sequence.reason is not None or sequence.epoch != self.epoch:
            return False  # it ended, or computes this anew
        if len(sequence.tokens) != self.place:
            return False
        return self.follows is None or self.follows == sequence.tokens[-1]


@attrs.frozen(kw_only=True, eq=False)
class Launched:
    """
    A step that is on its way.

    Attributes:
        picks: What is picked.
        drafted: Whose drafts are tried, with the epoch at the launch.
        tips: Who is guessed at, and which of *guesses* are for it.
        guesses: What they may say after that.  # [tips, count] int64, on the host once *arrived*
        picked: Their tokens.  # [picks] int64, on the host once *arrived*
        logits: What they were picked from, where log probabilities are wanted.
    """

    picks: Sequence[Pick] = ()
    drafted: Sequence[tuple[Chunk, int]] = ()
    tips: Sequence[Tip] = ()
    picked: torch.Tensor | None = None
    guesses: torch.Tensor | None = None
    arrived: torch.cuda.Event | None = None
    logits: torch.Tensor | None = None

    def tokens(self) -> list[int]:
        """Wait for the tokens."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [] if self.picked is None else self.picked.tolist()

    def guessed(self) -> dict[str, list[int]]:
        """Return what was guessed, by request; the tokens have been waited for."""
        guesses = [] if self.guesses is None else self.guesses.tolist()
        return {sequence.id: guesses[number] for number, sequence in self.tips}

    def logprobs(self, number: int, count: int) -> tuple[float, list[tuple[int, float]]]:
        """Return a sampler's log probability, and the *count* likeliest tokens with theirs."""
        assert self.logits is not None and self.picked is not None  # noqa: S101, PT018
        row = self.logits[number : number + 1]
        return sampler.logprobs(row, self.picked[number : number + 1].to(row.device), count)[0]
