"""Picks the next token of a row of logits."""

from __future__ import annotations

from collections import Counter

import torch

from cortex.neuron.engine.jobs import Generate


def logprobs(logits: torch.Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """
    Return the log probability of a token, and the *count* likeliest tokens with theirs.

    Args:
        logits: # [vocab], any float type, any device; as the model gave them
        token: The id of one of them.
        count: May be 0, and more than there are.
    """
    every = logits.float().log_softmax(-1)
    top = every.topk(min(count, every.numel()))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return float(every[token]), list(likeliest)


class Sampler:
    """
    Bias and penalties, then greedy, or temperature, top-k, top-p and one draw.

    Penalties count the tokens of the answer, not of the prompt, as OpenAI's and vLLM's do.
    Draws come from a generator of the request's own, so the same seed gives the same tokens
    whatever else the device is doing.
    """

    def __init__(self, job: Generate) -> None:
        self._job = job
        self._answer: Counter[int] = Counter()  # what was picked, by token id
        self._generator = torch.Generator()
        if job.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(job.seed % (1 << 63))

    def pick(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        """
        Return a token id.

        Args:
            logits: # [vocab], any float type, any device
            allowed: # [at least vocab] bool, any device; None allows all
        """
        logits = self._adjusted(logits)
        if allowed is not None:
            kept = allowed[: logits.numel()].to(logits.device)
            logits = logits.masked_fill(~kept, -torch.inf)
        token = self._draw(logits)
        self._answer[token] += 1
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        job = self._job
        penalised = bool(job.frequency_penalty or job.presence_penalty)
        off = {token: -bias for token, bias in job.logit_bias.items() if token < logits.numel()}
        for token, count in self._answer.items() if penalised else ():
            penalty = job.presence_penalty + count * job.frequency_penalty
            off[token] = off.get(token, 0.0) + penalty
        if not off:
            return logits
        ids = torch.tensor(list(off), device=logits.device)  # [adjusted] int64
        less = torch.tensor(list(off.values()), dtype=torch.float32, device=logits.device)
        return logits.float().index_add(0, ids, less, alpha=-1)

    def _draw(self, logits: torch.Tensor) -> int:
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
