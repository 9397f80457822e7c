"""Requests for vectors, on their way to a device worker and back."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from cortex.chat.request import EmbeddingRequest, Prompt
from cortex.errors import ContextLengthExceeded, InvalidRequest
from cortex.neuron.engine.jobs import Embed, Embedded
from cortex.neuron.text.tokens import Vocabulary


def embed_job(
    request: EmbeddingRequest, vocabulary: Vocabulary, *, context: int, width: int, job_id: str
) -> Embed:
    """
    Return the engine's job for a request.

    Args:
        request: What is wanted.
        vocabulary: Of the model.
        context: Tokens the model takes at most; nothing is cut off.
        width: Components of its vectors.
        job_id: The job's.

    Raises:
        ContextLengthExceeded: An input is too long.
        InvalidRequest: An input is empty or holds a token the model does not have, or more
            dimensions are asked for than there are.
    """
    if request.dimensions is not None and not 1 <= request.dimensions <= width:
        raise InvalidRequest(
            f"dimensions: the model's vectors have {width}, not {request.dimensions}",
            param="dimensions",
        )
    inputs = [_tokens(one, vocabulary, f"input[{n}]") for n, one in enumerate(request.inputs)]
    for number, tokens in enumerate(inputs):
        if len(tokens) > context:
            raise ContextLengthExceeded(
                f"maximum context length is {context} tokens, input[{number}] has {len(tokens)}",
                param=f"input[{number}]",
                details={"prompt_tokens": len(tokens), "context_tokens": context},
            )
    return Embed(id=job_id, model=request.model, inputs=inputs, dimensions=request.dimensions)


def _tokens(one: Prompt, vocabulary: Vocabulary, where: str) -> list[int]:
    tokens = vocabulary.encode(one, special=True) if isinstance(one, str) else list(one)
    if not tokens:
        raise InvalidRequest(f"{where} is empty", param=where)
    if strange := [token for token in tokens if not 0 <= token < vocabulary.size]:
        raise InvalidRequest(
            f"{where}: the model has no token {strange[0]}, its ids end at {vocabulary.size - 1}",
            param=where,
        )
    return tokens


def vectors_of(event: Embedded) -> tuple[tuple[float, ...], ...]:
    """Return the vectors a worker made."""
    every: Sequence[float] = array("f", event.vectors)
    starts = range(0, len(every), event.width)
    return tuple(tuple(every[start : start + event.width]) for start in starts)
