"""Bare texts and token ids, as legacy Completions and Embeddings take them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cortex.chat.request import Prompt
from cortex.errors import InvalidRequest

MAX_PROMPTS = 2048
Token = Annotated[int, msgspec.Meta(ge=0)]
WirePrompts = str | list[str | Token | list[Token]]


def parse_prompts(wire: WirePrompts, field: str) -> tuple[Prompt, ...]:
    """
    Read a string, strings, token ids or lists of them; *field* is what errors name.

    Raises:
        InvalidRequest: They are mixed, none, too many, or one has nothing in it.
    """
    if isinstance(wire, str):
        wire = [wire]
    if len({type(one) for one in wire}) > 1:
        raise InvalidRequest(
            f"{field}: expected strings, token ids or lists of token ids, not a mix", param=field
        )
    tokens = tuple(one for one in wire if isinstance(one, int))
    texts = (
        one if isinstance(one, str) else tuple(one) for one in wire if not isinstance(one, int)
    )
    prompts: tuple[Prompt, ...] = (tokens,) if tokens else tuple(texts)
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise InvalidRequest(
            f"{field}: expected 1 to {MAX_PROMPTS} elements, got {len(prompts)}", param=field
        )
    for number, prompt in enumerate(prompts):
        if not prompt:
            where = f"{field}[{number}]" if len(prompts) > 1 else field
            raise InvalidRequest(f"{where} is empty", param=where)
    return prompts
