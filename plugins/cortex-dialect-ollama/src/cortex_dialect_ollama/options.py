"""What a chat and a generation ask for alike: options, format, thinking, log probabilities."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from cortex.chat.request import MAX_STOPS, JsonFormat, Reasoning, Sampling
from cortex.errors import UnsupportedParameter

Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Think = bool | Literal["low", "medium", "high", "max"]
NEUTRAL = {"typical_p": 1, "tfs_z": 1, "mirostat": 0}


class Options(msgspec.Struct):
    """``options``; those that say how a model is loaded are not read."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    # Known, and not honoured unless they say nothing.
    typical_p: float | None = None
    tfs_z: float | None = None
    repeat_last_n: int | None = None
    mirostat: int | None = None


class WireAsk(msgspec.Struct):
    """The members both bodies have."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: Think | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is to be streamed, which is Ollama's default."""
        return self.stream is not False

    def sampling(self) -> Sampling:
        """
        Return how to pick tokens.

        Raises:
            UnsupportedParameter: Names the option we cannot honour.
        """
        options = self.options or Options()
        refuse_unsupported(options)
        if self.top_logprobs and not self.logprobs:
            raise UnsupportedParameter("top_logprobs needs logprobs", param="top_logprobs")
        stop = options.stop if isinstance(options.stop, list) else [options.stop or ""]
        limit, seed = options.num_predict, options.seed
        return Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=None if options.top_k is None else max(options.top_k, 0),
            min_p=options.min_p,
            repetition_penalty=options.repeat_penalty,
            seed=None if seed == -1 else seed,
            max_tokens=limit if limit is not None and limit > 0 else None,
            stop=tuple(filter(None, stop)),
            frequency_penalty=options.frequency_penalty or 0.0,
            presence_penalty=options.presence_penalty or 0.0,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def json_format(self) -> JsonFormat | None:
        """Return what the answer must look like."""
        if not self.format:
            return None
        return JsonFormat(schema=self.format if isinstance(self.format, Mapping) else None)

    def reasoning(self) -> Reasoning:
        """Return how much to think."""
        match self.think:
            case None:
                return Reasoning()
            case bool(enabled):
                return Reasoning(enabled=enabled)
            case effort:
                return Reasoning(enabled=True, effort="high" if effort == "max" else effort)

    def refuse_unload(self) -> None:
        """Raise if all the request wants is that its model goes."""
        if re.fullmatch(r"0+(\.0*)?[a-z]*", str(self.keep_alive)):
            raise UnsupportedParameter(
                "keep_alive: a model is not unloaded on demand of a client",
                hint="the fleet unloads what another needs the room of",
                param="keep_alive",
            )


def refuse_unsupported(options: Options) -> None:
    """Raise for the first option that asks for what we cannot do."""
    asked = [name for name, says in NEUTRAL.items() if getattr(options, name) not in (None, says)]
    penalties = options.frequency_penalty or options.presence_penalty
    if (penalties or options.repeat_penalty not in (None, 1)) and options.repeat_last_n not in (
        None,
        -1,
    ):
        asked.append("repeat_last_n")
    if asked:
        at = f"options.{asked[0]}"
        raise UnsupportedParameter(f"{at} is not supported", param=at)
