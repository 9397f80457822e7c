"""
One request on the device by itself, over a cache of transformers'.

The way of models our cache does not fit: right, and slow.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache

from cortex.neuron.engine import sampler
from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.jobs import Done, Generate, Token
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.tallies import Tallies
from cortex.neuron.engine.weights import Weights

PREFILL_TOKENS = 512


class Plain:
    """
    Prefills in chunks, then decodes a token a step; other requests step in between.

    A step is the unit of cancellation and fairness.
    """

    def __init__(
        self, job: Generate, weights: Weights, device: torch.device, grammar: Grammar | None
    ) -> None:
        self.job = job
        self._sequence = Sequence(job, grammar, row=0)
        self._tallies = Tallies(device)
        self._weights = weights
        self._device = device
        self._rows = Rows(1, 0, device)
        self._rows.enter({0: self._sequence})
        self._cache = DynamicCache(config=weights.module.config)

    @property
    def reason(self) -> str | None:
        """Why it ended, if it did."""
        return self._sequence.reason

    def step(self) -> Token | None:
        """
        Run one forward pass.

        Returns:
            The token it sampled; None while the prompt is not through, and for an end token.
        """
        sequence = self._sequence
        sequence.starts()
        chunk = sequence.tokens[sequence.planned :][:PREFILL_TOKENS]
        ids = torch.tensor([chunk], device=self._device)  # [1, chunk] int64
        logits = self._weights.module(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits[0]  # [1, vocab]
        sequence.planned += len(chunk)
        if sequence.planned < len(sequence.tokens):
            return None
        if sequence.grammar is not None:
            sequence.allowed = sequence.grammar.allowed()
        tallies = self._tallies.of([sequence], logits.shape[1])
        scores = logits
        if sequence.is_adjusted:
            scores = sampler.adjusted(logits, [sequence], tallies)
        which = self._rows.lengths.new_zeros(1)
        picked = sampler.pick(scores, self._rows, which, which + sequence.planned)
        self._tallies.add([sequence], picked)
        token = int(picked)
        if not sequence.take(token, self._weights.end_tokens):
            return None
        if self.job.logprobs is None:
            return Token(self.job.id, token)
        return Token(self.job.id, token, *sampler.logprobs(logits, picked, self.job.logprobs)[0])

    def done(self, reason: str) -> Done:
        """Return the closing event."""
        return self._sequence.done(reason)
