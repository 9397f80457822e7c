"""
Picks the next token of each row of logits, all rows at once, on their device.

Noise is a hash of a request's seed, the token's position and its id: the same seed gives the same
answer whatever else is in the batch, and whether or not a sequence was preempted.  The likeliest of
logits plus Gumbel noise is a draw from their softmax, so nothing is normalised and greedy is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

import attrs
import torch

from cortex.neuron.engine.jobs import Generate

LIKELIEST = 1024  # of a row, sorted for top-p; the rest only where those have too little of it
MASK = (1 << 32) - 1


@attrs.frozen(kw_only=True)
class Draw:
    """
    How one row is to be drawn.

    Attributes:
        seed: Of its request.
        position: Of the token that is picked.
        answer: What was picked before, for penalties.
        allowed: Which tokens may come; None is all.  # [at least vocabulary] bool
    """

    job: Generate
    seed: int
    position: int
    answer: Rows[int] = ()
    allowed: torch.Tensor | None = None


def sample(logits: torch.Tensor, draws: Rows[Draw]) -> torch.Tensor:
    """
    Return a token id for each row: [rows] int64.

    Args:
        logits: # [rows, vocabulary], any float type; as the model gave them
        draws: One for each row.
    """
    logits = _adjusted(logits, draws)
    if all(draw.job.temperature == 0 for draw in draws):
        return logits.argmax(-1)
    temperatures = _column(logits, [draw.job.temperature or 1.0 for draw in draws])
    scores = _filtered(logits.float() / temperatures, draws)
    greedy = torch.tensor([draw.job.temperature == 0 for draw in draws], device=logits.device)
    keys = [_key(draw.seed, draw.position) for draw in draws]
    noise = gumbel(torch.tensor(keys, device=logits.device), logits.shape[1])
    return torch.where(greedy[:, None], scores, scores + noise).argmax(-1)


def gumbel(keys: torch.Tensor, count: int) -> torch.Tensor:
    """
    Return Gumbel noise: [rows, count] float32.

    Args:
        keys: Of each row, below 2 ** 32.  # [rows] int64
        count: How many there are for each.
    """
    ids = torch.arange(count, device=keys.device) * 0x9E3779B1
    mixed = mix((keys[:, None] + ids) & MASK)
    uniform = (mixed.double() + 0.5) / (1 << 32)
    return -torch.log(-torch.log1p(-uniform)).float()


def mix(words: torch.Tensor) -> torch.Tensor:
    """Return words of 32 bits, each a hash of one: two rounds of multiply and shift."""
    for factor in (0x7FEB352D, 0x846CA68B):
        words = words ^ (words >> 16)
        words = (words * factor) & MASK
        words = words ^ (words >> 15)
    return words


def _key(seed: int, position: int) -> int:
    """Return a word of 32 bits for a request's token."""
    word = seed ^ (seed >> 31) ^ (position * 0x9E3779B97F4A7C15)
    word = (word ^ (word >> 29)) * 0xBF58476D1CE4E5B9 & ((1 << 64) - 1)
    return (word >> 32) & MASK


def _column(like: torch.Tensor, values: Rows[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _adjusted(logits: torch.Tensor, draws: Rows[Draw]) -> torch.Tensor:
    """
    Return the logits with bias and penalties, and without what may not come.

    Penalties count the tokens of the answer, not of the prompt, as OpenAI's and vLLM's do.
    """
    changed: dict[int, torch.Tensor] = {}
    for row, draw in enumerate(draws):
        less = _less(draw, logits.shape[1])
        if not less and draw.allowed is None:
            continue
        line = logits[row].float()
        if less:
            ids = torch.tensor(list(less), device=logits.device)
            line = line.index_add(0, ids, _column(line, list(less.values()))[:, 0], alpha=-1)
        if draw.allowed is not None:
            kept = draw.allowed[: line.numel()].to(logits.device)
            line = line.masked_fill(~kept, -torch.inf)
        changed[row] = line
    if not changed:
        return logits
    logits = logits.float()  # a copy, or ours to change
    logits = logits.clone()
    for row, line in changed.items():
        logits[row] = line
    return logits


def _less(draw: Draw, vocabulary: int) -> dict[int, float]:
    """Return what is taken off logits, by token id."""
    job = draw.job
    off = {token: -bias for token, bias in job.logit_bias.items() if token < vocabulary}
    if job.frequency_penalty or job.presence_penalty:
        for token, count in Counter(draw.answer).items():
            penalty = job.presence_penalty + count * job.frequency_penalty
            off[token] = off.get(token, 0.0) + penalty
    return off


def _filtered(scores: torch.Tensor, draws: Rows[Draw]) -> torch.Tensor:
    """Return the scores with -inf for what top-k and top-p leave out."""
    wanted = [0 < d.job.top_k < scores.shape[1] or d.job.top_p < 1 for d in draws]
    if not any(wanted):
        return scores
    least = torch.full_like(scores[:, 0], -torch.inf)
    for row, draw in enumerate(draws):
        if wanted[row]:
            least[row] = _least(scores[row], draw.job)
    return scores.masked_fill(scores < least[:, None], -torch.inf)


def _least(scores: torch.Tensor, job: Generate) -> torch.Tensor:
    """Return the least score that is kept of a row: [] float32."""
    count = min(job.top_k or scores.numel(), scores.numel())
    best = scores.topk(count if job.top_k else min(count, LIKELIEST)).values
    total = (best if job.top_k else scores).logsumexp(-1)
    if job.top_p < 1:
        if best.numel() < count and (best - total).exp().sum() < job.top_p:
            best = scores.topk(count).values
        shares = (best - total).exp()
        before = shares.cumsum(-1) - shares  # the mass of all likelier tokens
        best = best[before < job.top_p]
    return best[-1]


def logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, count: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """
    Return each row's log probability of its token, and the *count* likeliest tokens with theirs.

    Args:
        logits: # [rows, vocabulary], any float type, any device; as the model gave them
        tokens: # [rows] int64
        count: May be 0, and more than there are.
    """
    every = logits.float().log_softmax(-1)
    own = every.gather(1, tokens[:, None])[:, 0].tolist()
    top = every.topk(min(count, every.shape[1]))
    likeliest = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [(p, list(zip(*row, strict=True))) for p, row in zip(own, likeliest, strict=True)]
