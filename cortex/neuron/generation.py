"""One answer of the built-in engine: what it is asked, and what it says of the end."""

from __future__ import annotations

import attrs

from cortex.chat.events import Finished, Usage
from cortex.chat.request import ChatRequest
from cortex.errors import ContextLengthExceeded, InvalidRequest
from cortex.neuron.engine import jobs
from cortex.neuron.running import Running
from cortex.neuron.text.answer import Answer
from cortex.neuron.text.begun import Begun
from cortex.neuron.text.side import Prompt

LEAST_TEMPERATURE = 1e-6  # lower is greedy: of logits over it floats would be infinite
SEEDS = 1 << 63  # that many there are: a worker takes no larger number


def generate_job(
    request: ChatRequest, prompt: Prompt, running: Running, job_id: str, grammar: str | None
) -> jobs.Generate:
    """
    Return the engine's job for a request.

    What the request leaves open is filled from models.toml, then from the checkpoint.

    Raises:
        ContextLengthExceeded: The prompt leaves no room for an answer.
        InvalidRequest: A token id is not one of the model's.
    """
    tokens = len(prompt.ids)
    room = running.context - tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"maximum context length is {running.context} tokens, the prompt has {tokens}",
            param="prompt" if request.prompts else "messages",
            details={"prompt_tokens": tokens, "context_tokens": running.context},
        )
    sampling, defaults = request.sampling, running.defaults
    for token in sampling.logit_bias:
        if not 0 <= token < running.text.vocabulary.size:
            raise InvalidRequest(
                f"logit_bias: the model has no token {token}, its ids end at"
                f" {running.text.vocabulary.size - 1}",
                param="logit_bias",
            )

    def chosen(asked: float | None, name: str, otherwise: float) -> float:
        return asked if asked is not None else defaults.get(name, otherwise)

    temperature = chosen(sampling.temperature, "temperature", 1.0)
    return jobs.Generate(
        id=job_id,
        model=request.model,
        prompt=prompt.ids,
        pictures=prompt.pictures,
        max_tokens=min(sampling.max_tokens or room, room),
        temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
        top_p=chosen(sampling.top_p, "top_p", 1.0),
        top_k=min(int(chosen(sampling.top_k, "top_k", 0)), running.text.vocabulary.size),
        min_p=chosen(sampling.min_p, "min_p", 0.0),
        repetition_penalty=chosen(sampling.repetition_penalty, "repetition_penalty", 1.0),
        ignore_eos=sampling.ignore_eos,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=dict(sampling.logit_bias),
        seed=None if sampling.seed is None else sampling.seed % SEEDS,
        logprobs=sampling.logprobs,
        principal=request.principal,
        priority=request.priority,
        weight=request.weight,
        grammar=grammar,
    )


def finished(job: jobs.Generate, answer: Answer, done: jobs.Done | None = None) -> Finished:
    """Return the last event of an answer; without *done* it ended before the engine did."""
    cut = done is not None and done.reason == "length"
    times = (done.queue_ms, done.prefill_ms, done.decode_ms) if done else (0.0, 0.0, 0.0)
    return Finished(
        reason=answer.reason(cut=cut),
        usage=Usage(
            prompt_tokens=len(job.prompt),
            completion_tokens=done.completion_tokens if done else answer.tokens,
            cached_tokens=done.cached_tokens if done else 0,
            reasoning_tokens=answer.reasoning_tokens,
            queue_ms=times[0],
            prefill_ms=times[1],
            decode_ms=times[2],
        ),
        stop_string=answer.stop_string,
    )


def whole(event: Finished, before: Begun | None) -> Finished:
    """Return the last event of an answer, with the tokens of what was said of it *before*."""
    if before is None:
        return event
    usage = attrs.evolve(
        event.usage,
        prompt_tokens=event.usage.prompt_tokens - before.tokens,
        completion_tokens=event.usage.completion_tokens + before.tokens,
        reasoning_tokens=event.usage.reasoning_tokens + before.thought_tokens,
    )
    return attrs.evolve(event, usage=usage)
