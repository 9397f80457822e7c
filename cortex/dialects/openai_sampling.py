"""The fields Chat Completions and legacy Completions share: how to pick tokens, how to stream."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cortex.chat.request import MAX_STOPS, Sampling

MAX_CHOICES = 128
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Repetition = Annotated[float, msgspec.Meta(gt=0, le=10)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]


class StreamOptions(msgspec.Struct):
    """``stream_options``; the second is vLLM's, and counts the prompt at once."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class WireSampling(msgspec.Struct, kw_only=True):
    """The fields as they are on the wire."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    repetition_penalty: Repetition | None = None
    repeat_penalty: Repetition | None = None  # llama.cpp's name for it
    seed: int | None = None
    ignore_eos: bool | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    logit_bias: dict[int, Bias] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    n: Choices | None = None

    @property
    def asks_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def counts_at_once(self) -> bool:
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """Return what the fields say, with what the two dialects call differently."""
        repetition = self.repetition_penalty
        stop = self.stop if isinstance(self.stop, list) else [self.stop or ""]
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0) if self.top_k is not None else None,
            min_p=self.min_p,
            repetition_penalty=self.repeat_penalty if repetition is None else repetition,
            seed=self.seed,
            max_tokens=max_tokens,
            ignore_eos=bool(self.ignore_eos),
            stop=tuple(filter(None, stop)),
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            logprobs=logprobs,
        )
