"""
Picks the next token of each row of logits, all rows at once, on their device.

Noise is a hash of a request's seed, the token's position and its id: the same seed gives the same
answer whatever else is in the batch, and whether or not a sequence was preempted.  The likeliest of
logits plus Gumbel noise is a draw from their softmax, so nothing is normalised and greedy is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from cortex.neuron.engine.tallies import IN_ANSWER

if TYPE_CHECKING:
    from cortex.neuron.engine.jobs import Generate
    from cortex.neuron.engine.rows import Rows
    from cortex.neuron.engine.sequence import Sequence

LIKELIEST = 1024  # of a row, sorted for top-p; the rest only where those have too little of it
MASK = (1 << 32) - 1


def pick(logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Draw a token for each of *which* rows: [rows] int64; see `kernels.Kernels.pick`."""
    knobs = rows.knobs[which]
    temperatures = knobs[:, :1]
    if not temperatures.any():
        return logits.argmax(-1)
    greedy = temperatures == 0
    scores = logits.float() / temperatures.masked_fill(greedy, 1.0)
    scores = filtered(scores, rows.top_k[which], knobs[:, 1], knobs[:, 2])
    noise = gumbel(keys(rows.seeds[which], ends), logits.shape[1])
    return torch.where(greedy, scores, scores + noise).argmax(-1)


def best(
    logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor, first: int
) -> torch.Tensor:
    """Return the best of some tokens for each of *which* rows; see `kernels.Kernels.best`."""
    temperatures = rows.knobs[which][:, :1]
    greedy = temperatures == 0
    scores = logits.float() / temperatures.masked_fill(greedy, 1.0)
    if not greedy.all():
        noise = gumbel(keys(rows.seeds[which], ends), logits.shape[1], first)
        scores = torch.where(greedy, scores, scores + noise)
    highest = scores.max(-1)
    return torch.stack([highest.values.double(), (highest.indices + first).double()], -1)


def keys(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return a word of 32 bits for the token of a request at a position: [rows] int64."""
    words = mix((seeds >> 32) ^ mix(positions & MASK))
    return mix((seeds & MASK) ^ words)


def gumbel(words: torch.Tensor, count: int, first: int = 0) -> torch.Tensor:
    """
    Return Gumbel noise: [rows, count] float32.

    Args:
        words: Of each row, of 32 bits.  # [rows] int64
        count: How many there are for each.
        first: Id of the first token it is for.
    """
    ids = torch.arange(first, first + count, device=words.device) * 0x9E3779B1
    mixed = mix((words[:, None] + ids) & MASK)
    uniform = (mixed.double() + 0.5) / (1 << 32)
    return -torch.log(-torch.log1p(-uniform)).float()


def mix(words: torch.Tensor) -> torch.Tensor:
    """Return words of 32 bits, each a hash of one: two rounds of multiply and shift."""
    for factor in (0x7FEB352D, 0x846CA68B):
        words = words ^ (words >> 16)
        words = (words * factor) & MASK
        words = words ^ (words >> 15)
    return words


def adjusted(
    logits: torch.Tensor, sequences: list[Sequence], tallies: torch.Tensor | None
) -> torch.Tensor:
    """
    Return logits with bias and penalties, and without what may not come.

    Args:
        logits: # [rows, vocabulary], any float type; left as they are
        sequences: One for each row.
        tallies: A line for each sequence with penalties, in order; see `tallies`.
            # [penalised, vocabulary] int32
    """
    device, count = logits.device, logits.shape[1]
    logits = logits.to(torch.float32, copy=True)
    biased = [
        (row, token, bias)
        for row, sequence in enumerate(sequences)
        for token, bias in sequence.job.logit_bias.items()
        if token < count
    ]
    if biased:
        rows, tokens, biases = zip(*biased, strict=True)
        index = torch.tensor([rows, tokens], device=device)
        logits[index[0], index[1]] += _column(logits, biases)[:, 0]
    if tallies is not None:
        penalised = [row for row, sequence in enumerate(sequences) if sequence.job.penalises]
        index = torch.tensor(penalised, device=device)
        jobs = [sequences[row].job for row in penalised]
        logits[index] = _penalised(logits[index], jobs, tallies)
    held = [(row, s.allowed) for row, s in enumerate(sequences) if s.allowed is not None]
    if held:
        index = torch.tensor([row for row, _ in held], device=device)
        kept = torch.stack([allowed[:count] for _, allowed in held]).to(device)
        logits[index] = logits[index].masked_fill(~kept, -torch.inf)
    return logits


def _penalised(logits: torch.Tensor, jobs: list[Generate], tallies: torch.Tensor) -> torch.Tensor:
    """
    Return logits with penalties taken off.

    A repetition penalty looks at prompt and answer, as in https://arxiv.org/abs/1909.05858 and
    transformers; the others look at the answer alone, as OpenAI's and vLLM's do.
    """
    often = _column(logits, [job.repetition_penalty for job in jobs])
    logits = torch.where(
        tallies > 0, torch.where(logits > 0, logits / often, logits * often), logits
    )
    times = tallies // IN_ANSWER
    frequency = _column(logits, [job.frequency_penalty for job in jobs])
    presence = _column(logits, [job.presence_penalty for job in jobs])
    return logits - times * frequency - (times > 0) * presence


def _column(like: torch.Tensor, values: Iterable[float]) -> torch.Tensor:
    return torch.tensor([*values], dtype=torch.float32, device=like.device)[:, None]


def filtered(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Return the scores with -inf for what top-k, then top-p, and min-p leave out."""
    count = scores.shape[1]
    cut = (top_k > 0) & (top_k < count)
    if not (cut.any() or (top_p < 1).any() or (min_p > 0).any()):
        return scores
    limit = torch.where(cut, top_k, count)[:, None]
    likeliest = int(min(max(LIKELIEST, int(top_k.masked_fill(~cut, 0).max())), count))
    best = scores.topk(likeliest).values
    within = torch.arange(likeliest, device=scores.device) < limit
    top = best.masked_fill(~within, -torch.inf)
    total = torch.where(cut, top.logsumexp(-1), scores.logsumexp(-1))[:, None]
    held = (best - total).exp().sum(-1)
    if likeliest < count and ((held < top_p) & (top_p < 1) & ~cut).any():
        best = scores.sort(descending=True).values
    shares = (best - total).exp()
    before = shares.cumsum(-1) - shares  # the mass of all likelier tokens
    kept = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    kept[:, 0] = True
    kept &= torch.arange(best.shape[1], device=best.device) < limit
    least = best.masked_fill(~kept, torch.inf).amin(-1)
    least = torch.where(cut | (top_p < 1), least, -torch.inf)
    least = torch.maximum(least, best[:, 0] + min_p.log())
    return scores.masked_fill(scores < least[:, None], -torch.inf)


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
