"""Picks the next token of a row of logits."""

from __future__ import annotations

import torch

from cortex.neuron.engine.jobs import Generate


class Sampler:
    """
    Greedy, or temperature, then top-k, then top-p, then one draw.

    Draws come from a generator of the request's own, so the same seed gives the same tokens
    whatever else the device is doing.
    """

    def __init__(self, job: Generate) -> None:
        self._job = job
        self._generator = torch.Generator()
        if job.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(job.seed % (1 << 63))

    def pick(self, logits: torch.Tensor) -> int:
        """
        Return a token id.

        Args:
            logits: # [vocab], any float type, any device
        """
        job = self._job
        if job.temperature == 0:
            return int(logits.argmax())
        logits = logits.float().cpu() / job.temperature
        if 0 < job.top_k < logits.numel():
            kept = logits.topk(job.top_k).values[-1]
            logits = logits.masked_fill(logits < kept, -torch.inf)
        probabilities = logits.softmax(-1)
        if job.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(-1) - ordered  # the mass of all likelier tokens
            probabilities[order[before >= job.top_p]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
