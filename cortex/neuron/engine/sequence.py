"""One request on the device: its tokens, its place in the cache, and how it ended."""

from __future__ import annotations

import random
from collections.abc import Sequence as Tokens
from time import perf_counter

import attrs
import torch

from cortex.neuron.engine.drafts import Guesser
from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.jobs import Done, Generate
from cortex.neuron.engine.places import Places
from cortex.neuron.engine.poison import inject


@attrs.define(eq=False)
class Sequence:
    """
    A prompt and what was made of it.

    Attributes:
        places: Where its tokens are, if there are pictures in the prompt.
        opening: So many tokens others are likely to begin with, too; whole blocks, 0 is unknown.
        tokens: Ids of prompt and answer, as far as the host knows them.
        planned: Tokens whose keys are in the cache once every step that was launched is through.
        in_flight: Tokens that were sampled in steps the host has not looked at yet.
        row: Its row of device state; -1 while it waits.
        blocks: Its blocks of the cache, in order.
        digests: Hashes of what fills a block, as far as they were needed; they outlive blocks.
        kept: How many of its blocks can be found by them.
        marks: After how many tokens its state is to be kept, in order; steps end there.
        cached: Prompt tokens that were found in the cache.
        epoch: How often it was preempted; what was launched before the last time is void.
        begins: When its turn begins, in the virtual time of those that wait.
        guesser: What guesses at its answer.
        draft: What may come next; only a guess.
        redone: Tokens to be computed once more, since a draft spoilt the state behind them.
        tallied: The epoch its row's tally is of; -1 is none.
        allowed: Which tokens its grammar lets come next.  # [vocabulary] bool, cpu
        reason: Why it ended: ``stop``, ``length`` or ``cancelled``.
    """

    job: Generate
    grammar: Grammar | None = None
    places: Places | None = None
    tokens: list[int] = attrs.field(init=False)
    prompt_tokens: int = attrs.field(init=False)
    seed: int = attrs.field(init=False)
    opening: int = 0
    planned: int = 0
    in_flight: int = 0
    row: int = -1
    blocks: list[int] = attrs.field(factory=list)
    digests: list[bytes] = attrs.field(factory=list)
    kept: int = 0
    marks: list[int] = attrs.field(factory=list)
    cached: int = 0
    epoch: int = 0
    begins: float = 0.0
    guesser: Guesser | None = None
    draft: list[int] = attrs.field(factory=list)
    redone: int = 0
    tallied: int = -1
    allowed: torch.Tensor | None = None
    reason: str | None = None
    received: float = attrs.field(factory=perf_counter)
    started: float = 0.0
    first: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.tokens = list(self.job.prompt)
        self.prompt_tokens = len(self.tokens)
        seed = self.job.seed
        self.seed = random.getrandbits(63) if seed is None else seed % (1 << 63)

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def offset(self) -> int:
        """What is added to the positions of its answer."""
        return 0 if self.places is None else self.places.offset

    @property
    def total(self) -> int:
        """Tokens of prompt and answer, those included that only the device knows."""
        return len(self.tokens) + self.in_flight

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more than its last token is to be computed."""
        return self.planned + self.redone + 1 < self.total

    @property
    def wants_step(self) -> bool:
        """Whether there is something to compute now."""
        total = len(self.tokens) + self.in_flight
        if self.planned >= total:
            return False
        if total - self.prompt_tokens >= self.job.max_tokens:
            return False
        return not (self.in_flight and self.is_watched)

    @property
    def is_watched(self) -> bool:
        """Whether the next token depends on what the host makes of the one before."""
        return self.grammar is not None

    @property
    def is_adjusted(self) -> bool:
        """Whether its logits are not taken as they are."""
        job = self.job
        return self.grammar is not None or job.penalises or bool(job.logit_bias)

    def starts(self) -> None:
        """Note that its first step is about to be run, if it is the first."""
        if not self.started:
            self.started = perf_counter()
            inject(self.job.fault)

    def take(self, token: int, end_tokens: frozenset[int]) -> bool:
        """
        Take the next token of the answer; sets `reason` if it was the last.

        Returns:
            Whether it is part of the answer: an end token is not.
        """
        self.first = self.first or perf_counter()
        self.tokens.append(token)
        if token in end_tokens and not self.job.ignore_eos:
            self.reason = "stop"
            return False
        if self.grammar is not None and self.grammar.accept(token):
            self.reason = "stop"
        elif self.completion_tokens >= self.job.max_tokens:
            self.reason = "length"
        return True

    def guess(self, foreseen: Tokens[int] = ()) -> None:
        """Guess what comes next, as far as it would still be of use; see `Guesser.drafts`."""
        if self.guesser is None:
            return
        left = self.job.max_tokens - self.completion_tokens - 1
        self.draft = self.guesser.drafts(self.tokens, foreseen)[: max(left, 0)]

    def done(self, reason: str) -> Done:
        """Return the closing event."""
        now = perf_counter()
        started, first = self.started or now, self.first or now
        return Done(
            id=self.job.id,
            reason=reason,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached,
            queue_ms=1e3 * (started - self.received),
            prefill_ms=1e3 * (first - started),
            decode_ms=1e3 * (now - first),
        )
