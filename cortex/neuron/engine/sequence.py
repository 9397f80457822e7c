"""One request on the device: its tokens, its cache, its next token."""

from __future__ import annotations

from time import perf_counter

import torch
from transformers import DynamicCache

from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.jobs import Done, Generate, Token
from cortex.neuron.engine.sampler import Sampler, logprobs
from cortex.neuron.engine.weights import Weights

PREFILL_TOKENS = 512


class Sequence:
    """
    Prefills in chunks, then decodes a token a step; other sequences step in between.

    A step is the unit of cancellation and fairness.
    """

    def __init__(
        self, job: Generate, weights: Weights, device: torch.device, grammar: Grammar | None
    ) -> None:
        self.job = job
        self.reason: str | None = None
        self.completion_tokens = 0
        self._weights = weights
        self._device = device
        self._sampler = Sampler(job)
        self._grammar = grammar
        self._cache = DynamicCache(config=weights.module.config)
        self._ahead = job.prompt  # tokens whose keys are not in the cache yet
        self._received = perf_counter()
        self._started = self._first = 0.0

    def step(self) -> Token | None:
        """
        Run one forward pass.

        Returns:
            The token it sampled; None while the prompt is not through, and for an end token.
        """
        if not self._started:
            self._started = perf_counter()
        chunk, self._ahead = self._ahead[:PREFILL_TOKENS], self._ahead[PREFILL_TOKENS:]
        ids = torch.tensor([chunk], device=self._device)  # [1, chunk] int64
        logits = self._weights.module(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits  # [1, 1, vocab]
        if self._ahead:
            return None
        row = logits[0, -1]
        token = self._sampler.pick(row, self._grammar.allowed() if self._grammar else None)
        self._first = self._first or perf_counter()
        self.completion_tokens += 1
        self._ahead = [token]
        if token in self._weights.end_tokens:
            self.reason = "stop"
            return None
        if self._grammar is not None and self._grammar.accept(token):
            self.reason = "stop"
        elif self.completion_tokens >= self.job.max_tokens:
            self.reason = "length"
        if self.job.logprobs is None:
            return Token(self.job.id, token)
        return Token(self.job.id, token, *logprobs(row, token, self.job.logprobs))

    def done(self, reason: str) -> Done:
        """Return the closing event."""
        now = perf_counter()
        started, first = self._started or now, self._first or now
        return Done(
            id=self.job.id,
            reason=reason,
            completion_tokens=self.completion_tokens,
            queue_ms=1e3 * (started - self._received),
            prefill_ms=1e3 * (first - started),
            decode_ms=1e3 * (now - first),
        )
