"""One request for vectors on the device."""

from __future__ import annotations

import torch

from cortex.neuron.engine.jobs import Embed, Embedded, Lost
from cortex.neuron.engine.pooling import Pooling, unit
from cortex.neuron.engine.weights import Weights

STEP_TOKENS = 2048  # padding included; an input is never split


class Embedding:
    """
    Embeds a few inputs a step, inputs of like length together; other requests step in between.

    A step is the unit of cancellation and fairness.
    """

    def __init__(
        self, job: Embed, weights: Weights, pooling: Pooling, device: torch.device
    ) -> None:
        self.job = job
        self.reason: str | None = None
        self._weights = weights
        self._pooling = pooling
        self._device = device
        self._left = sorted(range(len(job.inputs)), key=lambda number: len(job.inputs[number]))
        self._vectors: dict[int, torch.Tensor] = {}

    def step(self) -> None:
        """Embed the longest inputs that are left."""
        longest = len(self.job.inputs[self._left[-1]])
        count = max(STEP_TOKENS // longest, 1)
        numbers = self._left[-count:]
        del self._left[-count:]
        texts = [self.job.inputs[number] for number in numbers]
        pad = self._weights.module.config.get_text_config().pad_token_id or 0
        ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        ids, mask = ids.to(self._device), mask.to(self._device)  # [texts, longest] int64
        states = self._weights.module(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = self._pooling(states, mask)
        if self.job.dimensions is not None:
            vectors = unit(vectors[:, : self.job.dimensions])
        self._vectors |= zip(numbers, vectors.cpu(), strict=True)
        if not self._left:
            self.reason = "stop"

    def done(self, reason: str) -> Embedded | Lost:
        """Return the closing event."""
        if self._left:
            return Lost(id=self.job.id, message=f"the embedding was {reason}")
        every = torch.stack([self._vectors[number] for number in range(len(self.job.inputs))])
        return Embedded(id=self.job.id, width=every.shape[1], vectors=every.numpy().tobytes())
